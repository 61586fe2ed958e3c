"""Data sets of the Hugging Face hub, through ``datasets``."""

from importlib import import_module
from typing import Any

import numpy as np

from fednar_ray.config.data import HuggingFaceSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.random import Purpose, generator
from fednar_ray.data.examples import Array, Examples, one_group_each
from fednar_ray.data.partition import held_out
from fednar_ray.data.sources.arrays import as_images, own_normalization
from fednar_ray.data.sources.source import Source


def load_huggingface(settings: HuggingFaceSettings) -> Source:
    """The data set ``data.dataset`` of the hub, or of a local directory; its card has its license and its citation.

    ``features`` names one column of images, sequences or numbers, or several of numbers; ``groups`` the column whose
    values are the natural clients. The test set is its split ``test``; without one, ``test_share`` of its split
    ``train``, at random. Images are normalized by their own mean and standard deviation.
    """
    splits = _loaded(settings)
    train_part = _split(splits, "train", settings)
    if "test" in splits:
        test_part = _split(splits, "test", settings)
    else:
        order = generator(0, Purpose.TEST_SHARE).permutation(len(train_part))
        held = held_out(settings.test_share, len(order), "data.test_share")
        if not held:
            raise DataError(f"data.test_share: 0, and {settings.dataset} has no split test; set it to 0.2, say")
        train_part, test_part = train_part.select(np.sort(order[held:])), train_part.select(np.sort(order[:held]))
    train, test = _examples(train_part, settings, "train"), _examples(test_part, settings, "test")
    groups, test_groups = (_groups(part, own, settings) for part, own in ((train_part, train), (test_part, test)))
    return Source(
        name=settings.dataset,
        train_x=train.x,
        train_y=train.y,
        test_x=test.x,
        test_y=test.y,
        groups=groups,
        test_groups=test_groups,
        task=settings.task,
        transform=own_normalization(train.x),
    )


def _loaded(settings: HuggingFaceSettings) -> Any:
    try:
        datasets: Any = import_module("datasets")
    except ImportError as error:
        raise DataError(f"data.source: huggingface needs datasets: pip install 'fednar-ray[hub]' ({error})") from None
    place = f"data.dataset: {settings.dataset}"
    try:
        return datasets.load_dataset(settings.dataset, settings.configuration)
    except Exception as error:
        raise DataError(f"{place}: cannot be loaded: {type(error).__name__}: {error}") from error


def _split(splits: Any, name: str, settings: HuggingFaceSettings) -> Any:
    if name not in splits:
        raise DataError(f"data.dataset: {settings.dataset}: has no split {name}; it has {', '.join(splits)}")
    part = splits[name]
    named = [*settings.features, settings.label, *([] if settings.groups is None else [settings.groups])]
    missing = [column for column in named if column not in part.column_names]
    if missing:
        text = f"has no column {', '.join(map(str, missing))}; it has {', '.join(part.column_names)}"
        raise DataError(f"data.dataset: {settings.dataset}, {name}: {text}")
    return part


def _examples(part: Any, settings: HuggingFaceSettings, name: str) -> Examples:
    place = f"data.dataset: {settings.dataset}, {name}"
    columns = [_column(part, column) for column in settings.features]
    shapes = {column.shape for column in columns}
    if len(shapes) > 1:
        raise DataError(f"{place}: the features {', '.join(settings.features)} differ in shape: {shapes}")
    x = columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
    return Examples.of((as_images(x, "last"), _column(part, settings.label)), place, settings.task)


def _groups(part: Any, examples: Examples, settings: HuggingFaceSettings) -> Array | None:
    if settings.groups is None:
        return None
    return one_group_each(_column(part, settings.groups), examples, f"data.groups: {settings.groups}")


def _column(part: Any, name: str) -> Array:
    """A column as one array; images as uint8. Rows of unequal shapes give an array of objects, which is refused."""
    rows = [np.asarray(value) for value in part[name]]
    if len({row.shape for row in rows}) > 1:
        raise DataError(f"column {name}: its rows differ in shape; all must be alike")
    return np.stack(rows) if rows else np.empty(0)
