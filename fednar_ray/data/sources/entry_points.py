"""A data set that a Python function of the user returns."""

from dataclasses import replace

import numpy as np

from fednar_ray.config.data import EntryPointSettings
from fednar_ray.config.source_base import TASK_NAMES
from fednar_ray.core.errors import DataError
from fednar_ray.core.import_path import call_by_path
from fednar_ray.data.examples import Examples, check_groups
from fednar_ray.data.sources.source import Source


def load_entry_point(settings: EntryPointSettings) -> Source:
    """Calls the function ``data.entry_point`` with ``data.arguments``, and checks the Source that it returns.

    Raises:
        DataError: There is no such function, it fails, or it does not return a valid Source.
    """
    key, path, arguments = "data.entry_point", settings.entry_point, settings.arguments
    source = call_by_path(key, path, arguments, Source, "a fednar_ray.data.sources.Source", DataError)
    return _check_source(source, f"{key}: {path}")


def _check_source(source: Source, place: str) -> Source:
    """Checks a source's arrays, and returns it with the types that training uses."""
    if source.task not in TASK_NAMES:
        raise DataError(f"{place}: task {source.task!r} should be one of {', '.join(TASK_NAMES)}")
    train = Examples.of((source.train_x, source.train_y), f"{place}: training set", source.task)
    test = Examples.of((source.test_x, source.test_y), f"{place}: test set", source.task)
    if source.transform is not None and (train.x.dtype != np.uint8 or train.x.ndim != 4):
        raise DataError(f"{place}: a transform needs uint8 inputs [N, channels, height, width], not {train.x.dtype}")
    groups, test_groups = (
        None if own is None else check_groups(own, examples, f"{place}: {name}")
        for own, examples, name in ((source.groups, train, "groups"), (source.test_groups, test, "test_groups"))
    )
    return replace(
        source,
        train_x=train.x,
        train_y=train.y,
        test_x=test.x,
        test_y=test.y,
        groups=groups,
        test_groups=test_groups,
    )
