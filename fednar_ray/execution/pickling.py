"""Checks before Ray starts whether the objects of a run can be pickled for Ray's actors."""

import pickle
from typing import Any, TypeVar

from torch import nn

from fednar_ray.core.errors import ConfigError, ModelError, first_line
from fednar_ray.core.module_state import describe_module

Object = TypeVar("Object")


class _NullFile:
    """A file that discards what is written to it."""

    def write(self, data: Any) -> int:
        return len(data)


def check_model_is_picklable(model: nn.Module) -> None:
    """Raises ModelError if a model cannot be pickled. The message names the module and the attribute at fault."""
    try:
        _pickle(model)
    except Exception as error:
        text = f"{_find_unpicklable(model)}: {first_line(error)}"
        raise ModelError(f"{text}; leave it out in __getstate__, or use execution.placement=serial") from error


def check_correction_is_picklable(function: str, correction: Any) -> None:
    """Raises ConfigError if a client correction, which ``function`` returned, cannot be pickled."""
    try:
        _pickle(correction)
    except Exception as error:
        text = (
            f"algorithm.function: {function}: its client correction cannot be sent to Ray's actors: {first_line(error)}"
        )
        raise ConfigError((f"{text}; keep no such object in it, or use execution.placement=serial",)) from error


def check_object_is_picklable(place: str, name: str, value: Any) -> None:
    """Raises ConfigError if a function or an object that was given as ``place`` cannot be pickled."""
    try:
        _pickle(value)
    except Exception as error:
        text = f"{place}: {name}: cannot be sent to other processes: {first_line(error)}"
        raise ConfigError((f"{text}; let it use no such object",)) from error


def copy_by_pickling(value: Object) -> Object:
    """Returns a copy of an object. Raises whatever pickling it raises."""
    from ray import cloudpickle  # not for a run in the driver's process

    copy: Object = pickle.loads(cloudpickle.dumps(value))  # noqa: S301 - pickled by this line
    return copy


def _find_unpicklable(model: nn.Module) -> str:
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute != "_modules" and not _is_picklable(value):
                owner = describe_module(name, module)
                return f"{owner} has an attribute '{attribute}' that cannot be sent to Ray's actors"
    return f"{describe_module('', model)} cannot be sent to Ray's actors"


def _is_picklable(value: object) -> bool:
    try:
        _pickle(value)
    except Exception:  # noqa: BLE001 - a user's object may raise anything
        return False
    return True


def _pickle(value: object) -> None:
    from ray import cloudpickle

    cloudpickle.CloudPickler(_NullFile()).dump(value)
