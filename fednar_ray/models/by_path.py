"""Models that are not ours: torchvision's by name, and what a function gives."""

import difflib
from collections.abc import Mapping
from typing import Any

from torch import nn

from fednar_ray.core.errors import ModelError
from fednar_ray.core.import_path import called, called_by_path

MODULE = "a torch.nn.Module"


def from_function(path: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The module that ``package.module.function`` returns, called with ``arguments``.

    Raises ModelError where it cannot be imported, fails, or returns something else.
    """
    return called_by_path("model.function", path, arguments, nn.Module, MODULE, ModelError)


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

    def built(**given: Any) -> nn.Module:
        return get_model(name, weights=None, **given)  # type: ignore[no-any-return]

    return called(place, built, arguments, nn.Module, MODULE, ModelError)
