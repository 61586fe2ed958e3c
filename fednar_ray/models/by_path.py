"""Builds models from elsewhere: torchvision's by name, and those that a user's function returns."""

import difflib
from collections.abc import Mapping
from typing import Any

from torch import nn

from fednar_ray.core.errors import ModelError
from fednar_ray.core.import_path import call_and_check, call_by_path

MODULE = "a torch.nn.Module"


def build_from_function(path: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Builds a model by calling a user's function.

    Args:
        path: ``package.module:function``, importable. It returns a torch.nn.Module.
        arguments: Keyword arguments of the function.

    Raises:
        ModelError: The function cannot be imported, fails, or returns something else.
    """
    return call_by_path("model.function", path, arguments, nn.Module, MODULE, ModelError)


def build_from_torchvision(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Builds one of torchvision's models with random weights.

    Args:
        name: torchvision's name of the model.
        arguments: Keyword arguments of the model.

    Raises:
        ModelError: torchvision is not installed, does not know the name, or the model does not take the arguments.
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

    def build(**given: Any) -> nn.Module:
        return get_model(name, weights=None, **given)  # type: ignore[no-any-return]

    return call_and_check(place, build, arguments, nn.Module, MODULE, ModelError)
