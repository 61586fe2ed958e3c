"""Whether a run's objects can travel to Ray's actors: found before Ray starts."""

from typing import Any

from ray import cloudpickle
from torch import nn

from fednar_ray.core.errors import ConfigError, ModelError, first_line
from fednar_ray.core.module_state import describe_module


class _Nowhere:
    """A file that forgets what is written to it."""

    def write(self, data: Any) -> int:
        return len(data)


def check_model_is_picklable(model: nn.Module) -> None:
    """Raises ModelError, naming the module and attribute, if the model cannot be pickled for Ray's actors."""
    try:
        _pickle(model)
    except Exception as error:
        text = f"{_what_cannot_be_sent(model)}: {first_line(error)}"
        raise ModelError(f"{text}; leave it out in __getstate__, or use execution.placement=serial") from error


def check_correction_is_picklable(function: str, rule: Any) -> None:
    """Raises ConfigError if a client correction, which ``function`` returned, cannot be pickled for Ray's actors."""
    try:
        _pickle(rule)
    except Exception as error:
        text = (
            f"algorithm.function: {function}: its client correction cannot be sent to Ray's actors: {first_line(error)}"
        )
        raise ConfigError((f"{text}; let it hold no such object, or use execution.placement=serial",)) from error


def _what_cannot_be_sent(model: nn.Module) -> str:
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute != "_modules" and not _travels(value):
                owner = describe_module(name, module)
                return f"{owner} has an attribute '{attribute}' that cannot be sent to Ray's actors"
    return f"{describe_module('', model)} cannot be sent to Ray's actors"


def _travels(value: object) -> bool:
    try:
        _pickle(value)
    except Exception:  # noqa: BLE001 - whatever a user's object raises
        return False
    return True


def _pickle(value: object) -> None:
    cloudpickle.CloudPickler(_Nowhere()).dump(value)
