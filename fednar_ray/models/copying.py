"""Copies of a user's module, and which of its attributes is to blame where it cannot be copied."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from fednar_ray.errors import ModelError, first_line

SUBMODULES = "_modules"


def copy_model(model: nn.Module) -> nn.Module:
    """Returns a deep copy that shares nothing with ``model`` and holds no autograd graph.

    Tensors that carry a graph, as the weights that old-style ``weight_norm`` and pruning recompute in every forward
    pass, become plain values; ``copy.deepcopy`` alone refuses them.

    Raises:
        ModelError: The model cannot be copied. The message names the module and its attribute.
    """
    tensors = [tensor for module in model.modules() for tensor in _tensors(vars(module))]
    copies = {id(tensor): _copied(tensor) for tensor in tensors if _deepcopy_refuses(tensor)}
    try:
        return copy.deepcopy(model, dict(copies))
    except Exception as error:
        culprit = find_culprit(model, lambda value: copy.deepcopy(value, dict(copies)))
        text = f"the model cannot be copied: {culprit}: {first_line(error)}"
        raise ModelError(f"{text}; create it in forward, or leave it out in __getstate__") from error


def _deepcopy_refuses(tensor: Tensor) -> bool:
    return isinstance(tensor, UninitializedBuffer) or not tensor.is_leaf


def _copied(tensor: Tensor) -> Tensor:
    if isinstance(tensor, UninitializedBuffer):
        return UninitializedBuffer(device=tensor.device, dtype=tensor.dtype)  # type: ignore[call-arg]
    return tensor.detach().clone()


def find_culprit(model: nn.Module, attempt: Callable[[Any], object]) -> str:
    """Returns which attribute of which module makes ``attempt`` raise; of the whole model if none does alone."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute != SUBMODULES and _raises(attempt, value):
                place = f"module {name} ({type(module).__name__})" if name else type(module).__name__
                return f"attribute {attribute} of {place}"
    return type(model).__name__


def _raises(attempt: Callable[[Any], object], value: object) -> bool:
    try:
        attempt(value)
    except Exception:  # noqa: BLE001 - whatever a user's object raises
        return True
    return False


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
