"""State that a model's code keeps outside of the module: globals, class attributes, variables of enclosing functions.

It is shared by all clients of a process and by no two processes, so no client can start with it as given. What only
grows (a cache, a record of calls) and what is set once, from None or False, are taken to be no state.
"""

import functools
import itertools
import pickle
import random
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LIBRARIES = sys.stdlib_module_names | {"torch", "torchvision", "numpy", "fednar_ray"}
MOST_ELEMENTS, DEEPEST = 100_000, 6
OPAQUE = object()


def outside_state(module: nn.Module) -> dict[str, Any]:
    """What the code of a module and its submodules refers to outside of them: name in words → content."""
    found: dict[str, Any] = {}
    seen: set[Any] = set()
    for part in module.modules():
        for cls in type(part).__mro__:
            _of_class(cls, found, seen)
        for value in (*vars(part).values(), *_hooks(part)):
            _of_function(value, found, seen)
    return found


def outside_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """The first that changed and did not only grow, in words."""
    return next((name for name in before if name in after and not _continues(before[name], after[name])), None)


def _hooks(part: nn.Module) -> Iterator[Any]:
    for hooks in (part._forward_hooks, part._forward_pre_hooks):
        yield from hooks.values()


def _of_a_user(module_name: str | None) -> bool:
    return (module_name or "builtins").partition(".")[0] not in LIBRARIES


def _of_class(cls: type, found: dict[str, Any], seen: set[Any]) -> None:
    if cls in seen or not _of_a_user(cls.__module__):
        return
    seen.add(cls)
    for name, value in vars(cls).items():
        if isinstance(value, property):
            _of_function(value.fget, found, seen)
        elif isinstance(value, types.FunctionType | staticmethod | classmethod):
            _of_function(getattr(value, "__func__", value), found, seen)
        elif not name.startswith("__"):
            found[f"the class attribute '{cls.__name__}.{name}'"] = _content(value)


def _of_function(function: Any, found: dict[str, Any], seen: set[Any]) -> None:
    """Follows a function's own variables, its globals, and the functions and classes among them."""
    if isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType) or function in seen or not _of_a_user(function.__module__):
        return
    seen.add(function)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__" and (value := _cell(cell)) is not OPAQUE:
            _refers_to(f"the variable '{name}' around {function.__name__}()", value, found, seen)
    names = _names(function.__code__)
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType) and _of_a_user(value.__name__):
            for inner in names & vars(value).keys():
                _refers_to(f"the global '{value.__name__}.{inner}'", vars(value)[inner], found, seen)
        else:
            _refers_to(f"the global '{function.__module__}.{name}'", value, found, seen)


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return OPAQUE


def _refers_to(name: str, value: Any, found: dict[str, Any], seen: set[Any]) -> None:
    if isinstance(value, type):
        _of_class(value, found, seen)
    elif isinstance(value, types.FunctionType | types.MethodType | functools.partial):
        _of_function(value, found, seen)
    elif not isinstance(value, types.ModuleType):
        found[name] = _content(value)


def _names(code: types.CodeType) -> set[str]:
    inner = (_names(value) for value in code.co_consts if isinstance(value, types.CodeType))
    return set(code.co_names).union(*inner)


# ——— content ———


def _content(value: Any, depth: int = 0) -> Any:
    """A value by what it holds; OPAQUE for what is large, deep, or of a library."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return type(value), repr(value)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _numbers(value)
    if isinstance(value, np.random.Generator | np.random.RandomState | torch.Generator):
        return type(value), pickle.dumps(value)
    if type(value) is random.Random:
        return value.getstate()
    if isinstance(value, itertools.count):
        return repr(value)
    return _parts(value, depth + 1) if depth < DEEPEST else OPAQUE


def _numbers(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.device.type == "meta" or value.numel() > MOST_ELEMENTS:
            return OPAQUE
        return tuple(value.shape), value.dtype, repr(value.detach().cpu().reshape(-1).tolist())
    array = np.asarray(value)
    return OPAQUE if array.size > MOST_ELEMENTS or array.dtype.hasobject else (array.shape, array.tobytes())


def _parts(value: Any, depth: int) -> Any:
    if isinstance(value, list | tuple | deque) and len(value) <= MOST_ELEMENTS:
        return [_content(part, depth) for part in value]
    if isinstance(value, set | frozenset):
        return {*value}
    if isinstance(value, dict):
        return {key: _content(part, depth) for key, part in value.items()}
    if _of_a_user(type(value).__module__) and hasattr(value, "__dict__"):
        return {key: _content(part, depth) for key, part in vars(value).items()}
    return OPAQUE


def _continues(before: Any, after: Any) -> bool:
    """Is a content the same, grown, or there for the first time?"""
    if before in (_content(None), _content(False)) or before is OPAQUE or after is OPAQUE:
        return True
    if type(before) is not type(after):
        return False
    if isinstance(before, list):
        return len(before) <= len(after) and all(map(_continues, before, after))
    if isinstance(before, dict):
        return all(key in after and _continues(part, after[key]) for key, part in before.items())
    return bool(before <= after if isinstance(before, set) else before == after)
