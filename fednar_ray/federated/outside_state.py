"""Finds state that a model's code keeps outside of the module: in globals, class attributes and closures.

All clients of a process share such state, and different processes do not, so clients cannot start from its initial
value. Values that only grow (a cache, a record of calls), or that are set once, from None or False, are not counted as
state. Neither are values that do not influence the outputs, such as a count of calls: see ``outside_influence``.
"""

import functools
import itertools
import pickle
import random
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

LIBRARIES = sys.stdlib_module_names | {"torch", "torchvision", "numpy", "fednar_ray"}
MOST_ELEMENTS, DEEPEST = 100_000, 6
OPAQUE = object()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value is kept: a key of a dict or a list, the content of a cell, or an attribute."""

    owner: Any
    key: Any

    def get(self) -> Any:
        """Returns the value that is there now."""
        if isinstance(self.owner, types.CellType):
            return self.owner.cell_contents
        return self.owner[self.key] if isinstance(self.owner, dict | list | deque) else getattr(self.owner, self.key)

    def set(self, value: Any) -> None:
        """Replaces the value at this place."""
        if isinstance(self.owner, types.CellType):
            self.owner.cell_contents = value
        elif isinstance(self.owner, dict | list | deque):
            self.owner[self.key] = value
        else:
            setattr(self.owner, self.key, value)


def find_outside_places(module: nn.Module) -> dict[str, Place]:
    """Finds the values outside of a module that its code and that of its submodules refers to.

    Returns:
        Where each value is kept, by a name for messages.
    """
    found: dict[str, Place] = {}
    seen: set[Any] = set()
    for part in module.modules():
        for cls in type(part).__mro__:
            _follow_class(cls, found, seen)
        for value in (*vars(part).values(), *_iter_hooks(part)):
            _follow_function(value, found, seen)
    return found


def read_outside_state(module: nn.Module) -> dict[str, Any]:
    """Returns the contents of all ``find_outside_places``, by name."""
    return {name: _get_content(place.get()) for name, place in find_outside_places(module).items()}


def find_changed_places(module: nn.Module, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Place]:
    """Returns where the single values are kept that changed in a way other than growing."""
    places = find_outside_places(module)
    both = [name for name in before if name in after and name in places]
    return [leaf for name in both for leaf in _find_leaves(places[name], before[name], after[name])]


def find_outside_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Returns the name of the first value that changed in a way other than growing; None if there is none."""
    return next((name for name in before if name in after and not _is_continued(before[name], after[name])), None)


def _iter_hooks(part: nn.Module) -> Iterator[Any]:
    for hooks in (part._forward_hooks, part._forward_pre_hooks):
        yield from hooks.values()


def _is_user_code(module_name: str | None) -> bool:
    return (module_name or "builtins").partition(".")[0] not in LIBRARIES


def _follow_class(cls: type, found: dict[str, Place], seen: set[Any]) -> None:
    if cls in seen or not _is_user_code(cls.__module__):
        return
    seen.add(cls)
    for name, value in vars(cls).items():
        if isinstance(value, property):
            _follow_function(value.fget, found, seen)
        elif isinstance(value, types.FunctionType | staticmethod | classmethod):
            _follow_function(getattr(value, "__func__", value), found, seen)
        elif not name.startswith("__"):
            found[f"the class attribute '{cls.__name__}.{name}'"] = Place(cls, name)


def _follow_function(function: Any, found: dict[str, Place], seen: set[Any]) -> None:
    """Follows a function's own variables, its globals, and the functions and classes among them."""
    if isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType) or function in seen or not _is_user_code(function.__module__):
        return
    seen.add(function)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__" and _is_bound(cell):
            _follow_reference(f"the variable '{name}' around {function.__name__}()", Place(cell, None), found, seen)
    names = _collect_names(function.__code__)
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType) and _is_user_code(value.__name__):
            for inner in names & vars(value).keys():
                _follow_reference(f"the global '{value.__name__}.{inner}'", Place(vars(value), inner), found, seen)
        else:
            _follow_reference(
                f"the global '{function.__module__}.{name}'", Place(function.__globals__, name), found, seen
            )


def _is_bound(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not OPAQUE
    except ValueError:
        return False


def _follow_reference(name: str, place: Place, found: dict[str, Place], seen: set[Any]) -> None:
    value = place.get()
    if isinstance(value, type):
        _follow_class(value, found, seen)
    elif isinstance(value, types.FunctionType | types.MethodType | functools.partial):
        _follow_function(value, found, seen)
    elif not isinstance(value, types.ModuleType):
        found[name] = place


def _collect_names(code: types.CodeType) -> set[str]:
    inner = (_collect_names(value) for value in code.co_consts if isinstance(value, types.CodeType))
    return set(code.co_names).union(*inner)


# ——— content ———


def _get_content(value: Any, depth: int = 0) -> Any:
    """Returns a value's content in a comparable form; OPAQUE if it is large, deeply nested, or a library's."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return type(value), repr(value)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _get_array_content(value)
    if isinstance(value, np.random.Generator | np.random.RandomState | torch.Generator):
        return type(value), pickle.dumps(value)
    if type(value) is random.Random:
        return value.getstate()
    if isinstance(value, itertools.count):
        return repr(value)
    return _get_parts_content(value, depth + 1) if depth < DEEPEST else OPAQUE


def _get_array_content(value: Any) -> Any:
    if isinstance(value, Tensor):
        if is_functorch_wrapped_tensor(value):  # a hook recorded it while a group was traced
            return OPAQUE
        if value.layout is not torch.strided or value.device.type == "meta" or value.numel() > MOST_ELEMENTS:
            return OPAQUE
        return tuple(value.shape), value.dtype, repr(value.detach().cpu().reshape(-1).tolist())
    array = np.asarray(value)
    return OPAQUE if array.size > MOST_ELEMENTS or array.dtype.hasobject else (array.shape, array.tobytes())


def _get_parts_content(value: Any, depth: int) -> Any:
    if isinstance(value, list | tuple | deque) and len(value) <= MOST_ELEMENTS:
        return [_get_content(part, depth) for part in value]
    if isinstance(value, set | frozenset):
        return {*value}
    if isinstance(value, dict):
        return {key: _get_content(part, depth) for key, part in value.items()}
    if _is_user_code(type(value).__module__) and hasattr(value, "__dict__"):
        return {key: _get_content(part, depth) for key, part in vars(value).items()}
    return OPAQUE


def _find_leaves(place: Place, before: Any, after: Any) -> Iterator[Place]:
    """Yields the places of the single values in which two contents differ. ``after`` is the content of ``place``."""
    if _is_continued(before, after):
        return
    value, alike = place.get(), type(before) is type(after)
    if alike and isinstance(before, list) and isinstance(value, list | deque) and len(before) <= len(after):
        parts = [(Place(value, i), before[i], after[i]) for i in range(len(before))]
    elif alike and isinstance(before, dict) and before.keys() <= after.keys():
        owner = value if isinstance(value, dict) else vars(value)
        parts = [(Place(owner, key), before[key], after[key]) for key in before]
    else:
        parts = []
        yield place
    for part in parts:
        yield from _find_leaves(*part)


def _is_continued(before: Any, after: Any) -> bool:
    """Returns whether a content is unchanged, has only grown, or was set for the first time."""
    if before in (_get_content(None), _get_content(False)) or before is OPAQUE or after is OPAQUE:
        return True
    if type(before) is not type(after):
        return False
    if isinstance(before, list):
        return len(before) <= len(after) and all(map(_is_continued, before, after))
    if isinstance(before, dict):
        return all(key in after and _is_continued(part, after[key]) for key, part in before.items())
    return bool(before <= after if isinstance(before, set) else before == after)
