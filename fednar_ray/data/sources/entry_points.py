"""Anything else: a Python function that returns a source."""

import numpy as np

from fednar_ray.config import TASK_NAMES, DataSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.import_path import call_by_path
from fednar_ray.data.examples import Examples, one_group_each
from fednar_ray.data.sources.source import Source


def entry_point(settings: DataSettings) -> Source:
    """What the function at ``data.entry_point`` returns, called with ``data.arguments``; license and citation are its.

    Raises DataError where there is no such function, where it fails, or where what it returns is no sound Source.
    """
    assert settings.entry_point is not None
    key, path, arguments = "data.entry_point", settings.entry_point, settings.arguments or {}
    source = call_by_path(key, path, arguments, Source, "a fednar_ray.data.sources.Source", DataError)
    return _checked(source, f"{key}: {path}")


def _checked(source: Source, place: str) -> Source:
    if source.task not in TASK_NAMES:
        raise DataError(f"{place}: task {source.task!r} should be {', '.join(TASK_NAMES)}")
    train = Examples.of((source.train_x, source.train_y), f"{place}: training set", source.task)
    test = Examples.of((source.test_x, source.test_y), f"{place}: test set", source.task)
    if source.transform is not None and (train.x.dtype != np.uint8 or train.x.ndim != 4):
        raise DataError(f"{place}: a transform is of uint8 [N, channels, height, width], not of {train.x.dtype}")
    groups, test_groups = (
        None if own is None else one_group_each(own, examples, f"{place}: {name}")
        for own, examples, name in ((source.groups, train, "groups"), (source.test_groups, test, "test_groups"))
    )
    return Source(
        name=source.name,
        train_x=train.x,
        train_y=train.y,
        test_x=test.x,
        test_y=test.y,
        groups=groups,
        test_groups=test_groups,
        task=source.task,
        transform=source.transform,
        preprocessing=source.preprocessing,
    )
