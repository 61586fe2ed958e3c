"""Models that are not ours: torchvision's by name, and what a function gives."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fednar_ray.errors import ModelError


def from_function(path: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The module that ``package.module.function`` returns, called with ``arguments``.

    Raises ModelError where it cannot be imported, fails, or returns something else.
    """
    module_name, _, name = path.rpartition(".")
    place = f"model.function: {path}"
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        raise ModelError(f"{place}: cannot be imported: {error}") from error
    return _called(place, function, arguments)


def from_torchvision(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A model of torchvision's, with random weights.

    Raises ModelError without torchvision, for a name that it does not know, or arguments that the model does not take.
    """
    place = f"model.torchvision: {name}"
    try:
        from torchvision.models import get_model, list_models
    except ImportError as error:
        raise ModelError(f"{place}: torchvision is needed (pip install 'fednar-ray[vision]'): {error}") from error
    known = list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or known
        raise ModelError(f"{place}: torchvision has no such model; it has {', '.join(close)}")
    return _called(place, lambda **given: get_model(name, weights=None, **given), arguments)


def _called(place: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> nn.Module:
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    try:
        model = function(**arguments)
    except Exception as error:
        raise ModelError(f"{place}: fails when called with ({given}): {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{place}: gives {type(model).__name__}; a torch.nn.Module is needed")
    return model
