"""Data sets of the Hugging Face hub, read with the package ``datasets``."""

from importlib import import_module
from typing import Any

import numpy as np

from fednar_ray.config.data import HuggingFaceSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.random import Purpose, generator
from fednar_ray.data.examples import Array, Examples, check_groups
from fednar_ray.data.partition import count_held_out
from fednar_ray.data.sources.arrays import arrange_images, compute_normalization
from fednar_ray.data.sources.source import Source


def load_huggingface(settings: HuggingFaceSettings) -> Source:
    """Loads the data set ``data.dataset`` of the hub or of a local directory. Its card states license and citation.

    ``features`` names one column of images, sequences or numbers, or several columns of numbers. ``groups`` names the
    column whose values are the natural clients. The test set is the split ``test``. If there is none, it is a random
    ``test_share`` of the split ``train``, the same in every run. Images are normalized by the mean and the standard
    deviation of each channel over the training images.

    Raises:
        DataError: ``datasets`` is not installed, the data set cannot be loaded, does not have a split or column, or its
            columns are not valid examples.
    """
    splits = _load_dataset(settings)
    train_part = _get_split(splits, "train", settings)
    if "test" in splits:
        test_part = _get_split(splits, "test", settings)
    else:
        order = generator(0, Purpose.TEST_SHARE).permutation(len(train_part))
        held = count_held_out(settings.test_share, len(order), "data.test_share")
        if not held:
            raise DataError(f"data.test_share: 0, but {settings.dataset} has no split test; set it, for example to 0.2")
        train_part, test_part = train_part.select(np.sort(order[held:])), train_part.select(np.sort(order[:held]))
    train, test = _build_examples(train_part, settings, "train"), _build_examples(test_part, settings, "test")
    groups, test_groups = (_read_groups(part, own, settings) for part, own in ((train_part, train), (test_part, test)))
    return Source(
        name=settings.dataset,
        train_x=train.x,
        train_y=train.y,
        test_x=test.x,
        test_y=test.y,
        groups=groups,
        test_groups=test_groups,
        task=settings.task,
        transform=compute_normalization(train.x),
    )


def _load_dataset(settings: HuggingFaceSettings) -> Any:
    try:
        datasets: Any = import_module("datasets")
    except ImportError as error:
        raise DataError(f"data.source: huggingface needs datasets: pip install 'fednar-ray[hub]' ({error})") from None
    place = f"data.dataset: {settings.dataset}"
    try:
        return datasets.load_dataset(settings.dataset, settings.configuration)
    except Exception as error:
        raise DataError(f"{place}: cannot be loaded: {type(error).__name__}: {error}") from error


def _get_split(splits: Any, name: str, settings: HuggingFaceSettings) -> Any:
    """Returns a split. Raises DataError if there is none, or if a column is missing."""
    if name not in splits:
        raise DataError(f"data.dataset: {settings.dataset}: has no split {name}; it has {', '.join(splits)}")
    part = splits[name]
    named = [*settings.features, settings.label, *([] if settings.groups is None else [settings.groups])]
    missing = [column for column in named if column not in part.column_names]
    if missing:
        text = f"has no column {', '.join(map(str, missing))}; it has {', '.join(part.column_names)}"
        raise DataError(f"data.dataset: {settings.dataset}, {name}: {text}")
    return part


def _build_examples(part: Any, settings: HuggingFaceSettings, name: str) -> Examples:
    place = f"data.dataset: {settings.dataset}, {name}"
    columns = [_read_column(part, column) for column in settings.features]
    shapes = {column.shape for column in columns}
    if len(shapes) > 1:
        raise DataError(f"{place}: the features {', '.join(settings.features)} differ in shape: {shapes}")
    x = columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
    return Examples.of((arrange_images(x, "last"), _read_column(part, settings.label)), place, settings.task)


def _read_groups(part: Any, examples: Examples, settings: HuggingFaceSettings) -> Array | None:
    if settings.groups is None:
        return None
    return check_groups(_read_column(part, settings.groups), examples, f"data.groups: {settings.groups}")


def _read_column(part: Any, name: str) -> Array:
    """Reads a column as one array; images become uint8. Raises DataError if its rows differ in shape."""
    rows = [np.asarray(value) for value in part[name]]
    if len({row.shape for row in rows}) > 1:
        raise DataError(f"column {name}: its rows differ in shape; all rows must have the same shape")
    return np.stack(rows) if rows else np.empty(0)
