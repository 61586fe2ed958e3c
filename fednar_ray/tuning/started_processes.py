"""Lets trials take the processes that a local Ray has started already, with PyTorch imported."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.tune.execution import class_cache

NONE_OF_ITS_OWN = {"DEFAULT_ENV_VARS": {}, "ENV_VARS_TO_PROPAGATE": frozenset[str]()}


@contextmanager
def use_started_processes() -> Iterator[None]:
    """Keeps Tune from giving environment variables of its own to the processes of trials.

    Ray gives an actor with variables of its own a new process, which imports PyTorch and Tune for five seconds, while
    those that it has started stay idle. The variables are those of the driver, and a local Ray has them from the
    driver; ``local_ray.VARIABLES`` has the one that is ours. Tune has no setting for this. If a version of Tune names
    its constants differently, trials get new processes.
    """
    before: dict[str, Any] = {
        name: getattr(class_cache, name) for name in NONE_OF_ITS_OWN if hasattr(class_cache, name)
    }
    for name in before:
        setattr(class_cache, name, NONE_OF_ITS_OWN[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(class_cache, name, value)
