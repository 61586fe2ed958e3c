"""The state that a module keeps outside its parameters and buffers: plain Python attributes, including generators.

Such state is neither averaged nor sent. Every client therefore starts with the attributes that the given model has.
"""

import copy
import functools
import random
import types
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.parameter import UninitializedBuffer

from fednar_ray.core.buffers import have_same_bits
from fednar_ray.core.errors import ModelError, first_line

GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
REGISTERED = ("_parameters", "_buffers", "_modules")
OF_WEIGHTS = ("_flat_weights", "_flat_weight_refs")
"""References from torch's recurrent layers to their own parameters. Forward replaces them."""
CONTAINERS = (dict, OrderedDict, list, tuple, set)
BY_IDENTITY = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)


def describe_module(name: str, module: nn.Module) -> str:
    """Returns how messages name a submodule: by its place in the model and its class."""
    return f"module '{name}' ({type(module).__name__})" if name else f"the model ({type(module).__name__})"


def describe_draws(before: tuple[object, object], after: tuple[object, object]) -> str | None:
    """Returns which global generator ``forward`` drew from or seeded, for a message; None if it used neither.

    Args:
        before: The generators' states before the forward pass, from ``get_global_states``.
        after: Their states after it.
    """
    if before[0] != after[0]:
        return "forward draws from Python's random"
    return "forward draws from numpy.random" if before[1] != after[1] else None


class GivenState:
    """A snapshot of the plain attributes of a module and its submodules, to compare with and to restore."""

    def __init__(self, module: nn.Module) -> None:
        self._owners = list(module.named_modules())
        self._tree = _list_parts(module)
        self._registered = [{key: dict(part) for key, part in _select_registered(m).items()} for _, m in self._owners]
        self._trainable = [(name, p, p.requires_grad) for name, p in module.named_parameters()]
        memo = self._build_memo()
        self._given = copy.deepcopy([_select_plain(m) for _, m in self._owners], memo)
        self._draws = any(isinstance(value, GENERATORS) for value in memo.values())

    def restore(self, address: np.random.SeedSequence) -> None:
        """Restores every attribute, and seeds the generators among the attributes at ``address``."""
        if not self._draws and self.find_change() is None:
            return
        memo = self._build_memo()
        fresh = copy.deepcopy(self._given, memo)
        for (_, module), plain, registered in zip(self._owners, fresh, self._registered, strict=True):
            for key in _select_plain(module).keys() - plain.keys():
                del module.__dict__[key]
            module.__dict__.update(plain)
            for key, part in registered.items():
                _keep_only(module.__dict__[key], part, replace=key != "_buffers")
        for _, parameter, trainable in self._trainable:
            parameter.requires_grad_(trainable)
        _reseed([value for value in memo.values() if isinstance(value, GENERATORS)], address)

    def find_change(self) -> str | None:
        """Returns which attribute differs from the snapshot first, for a message; None if none does."""
        for (name, module), given, registered in zip(self._owners, self._given, self._registered, strict=True):
            now = _select_plain(module)
            for key in (*given, *(now.keys() - given.keys())):
                if key not in now or key not in given or not _is_same(given[key], now[key], {}):
                    return f"{describe_module(name, module)} changes its attribute '{key}' in forward"
            for key, part in _select_registered(module).items():
                if changed := sorted(part.keys() ^ registered[key].keys()):
                    return f"{describe_module(name, module)} adds or removes {', '.join(changed)} in forward"
        frozen = (name for name, parameter, trainable in self._trainable if parameter.requires_grad != trainable)
        return next((f"forward freezes or unfreezes the parameter '{name}'" for name in frozen), None)

    def _build_memo(self) -> dict[int, Any]:
        """Returns a memo for ``copy.deepcopy``, so that attributes keep referring to the parts of the model itself."""
        return {id(part): part for part in self._tree}


def copy_model(model: nn.Module) -> nn.Module:
    """Copies a model. Tensors that a forward pass left in attributes lose their autograd graph.

    Raises:
        ModelError: The model cannot be copied. The message names the attribute.
    """
    memo: dict[int, Any] = {}
    for tensor in chain.from_iterable(_find_uncopyable_tensors(vars(module), set()) for module in model.modules()):
        memo[id(tensor)] = _detach_from_graph(tensor)
    kept = tuple(memo.values())
    try:
        return copy_with_leaf_parameters(model, memo)
    except Exception as error:
        assert kept is not None
        raise ModelError(f"{_explain_copy_failure(model)}: {first_line(error, 200)}") from error


def copy_with_leaf_parameters(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Copies a model so that the parameters are leaves and require gradients as the model's do.

    A plain deep copy of a TorchScript module has parameters that are not leaves.
    """
    with torch.no_grad():
        module = copy.deepcopy(model, memo)
    for parameter, given in zip(module.parameters(), model.parameters(), strict=False):
        if parameter.requires_grad != given.requires_grad:
            parameter.requires_grad_(given.requires_grad)
    return module


def copy_without_values(model: nn.Module) -> nn.Module:
    """Copies a model for a process that gets the trainable parameters with each message: here all of them are zero.

    They have their shapes, but share one number of memory. TorchScript copies its parameters itself, with their values.
    """
    hollow = {
        id(p): nn.Parameter(torch.zeros((), dtype=p.dtype).expand(p.shape))
        for p in model.parameters()
        if p.requires_grad and type(p) is nn.Parameter
    }
    return copy_with_leaf_parameters(model, hollow)


def _reseed(generators: Sequence[Any], address: np.random.SeedSequence) -> None:
    """Seeds each generator with a separate stream at ``address``."""
    for index, generator in enumerate(generators):
        stream = np.random.SeedSequence(address.entropy, spawn_key=(*address.spawn_key, index))
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(stream).state
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(np.random.RandomState(np.random.MT19937(stream)).get_state())
        elif isinstance(generator, torch.Generator):
            generator.manual_seed(int(stream.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        else:
            generator.seed(int.from_bytes(stream.generate_state(4).tobytes(), "little"))


def _list_parts(module: nn.Module) -> list[Any]:
    """Lists the submodules, parameters and buffers."""
    return [*module.modules(), *module.parameters(), *module.buffers()]


def _is_compiled(module: nn.Module) -> bool:
    """Returns whether a module's attributes belong to the compiler."""
    return isinstance(module, torch.jit.ScriptModule) or type(module).__module__.startswith("torch._dynamo")


def _select_plain(module: nn.Module) -> dict[str, Any]:
    """Returns the attributes that are neither parameters, buffers nor submodules."""
    if _is_compiled(module):
        return {}
    left_out = REGISTERED + (OF_WEIGHTS if isinstance(module, nn.RNNBase) else ())
    return {key: value for key, value in module.__dict__.items() if key not in left_out}


def _select_registered(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Returns the registries of parameters, buffers and submodules."""
    if _is_compiled(module):
        return {}
    return {key: module.__dict__[key] for key in REGISTERED}


def _keep_only(now: dict[str, Any], given: dict[str, Any], *, replace: bool) -> None:
    for key in now.keys() - given.keys():
        del now[key]
    for key in given if replace else given.keys() - now.keys():
        now[key] = given[key]


def _find_uncopyable_tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yields the tensors that ``copy.deepcopy`` refuses: those with a history, and the buffers of lazy layers."""
    if isinstance(value, Tensor) and (_is_uninitialized_or_wrapped(value) or not value.is_leaf):
        yield value
    elif isinstance(value, dict | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        for part in value.values() if isinstance(value, dict) else value:
            yield from _find_uncopyable_tensors(part, seen)


def _is_uninitialized_or_wrapped(tensor: Tensor) -> bool:
    return isinstance(tensor, UninitializedBuffer) or is_functorch_wrapped_tensor(tensor)


def _detach_from_graph(tensor: Tensor) -> Tensor:
    if is_functorch_wrapped_tensor(tensor):  # a hook recorded it while a group was traced: its numbers are gone
        return torch.empty(0)
    if isinstance(tensor, UninitializedBuffer):
        return UninitializedBuffer(device=tensor.device, dtype=tensor.dtype)  # type: ignore[call-arg]
    return tensor.detach().clone()


def _explain_copy_failure(model: nn.Module) -> str:
    for name, module in model.named_modules():
        for key, value in _select_plain(module).items():
            try:
                copy.deepcopy(value, {id(part): part for part in _list_parts(model)})
            except Exception:  # noqa: BLE001 - a user's object may raise anything
                what = f"{describe_module(name, module)} has an attribute '{key}' that cannot be copied"
                return f"{what}, and every client trains a copy of the model; create it in forward, or remove it"
    return f"{describe_module('', model)} cannot be copied, and every client trains a copy of it"


# ——— comparison by content ———

Seen = dict[tuple[int, int], tuple[Any, Any]]


def _is_same(a: Any, b: Any, seen: Seen) -> bool:
    """Returns whether two values have the same content. ``a`` is a deep copy of what ``b`` was."""
    if a is b:
        return True
    if type(a) is not type(b) or isinstance(a, BY_IDENTITY):
        return False
    if type(a) in CONTAINERS and not a and not b:
        return True
    if isinstance(a, bool | int | str | bytes | float | complex):
        return bool(a == b) or (a != a and b != b)
    if isinstance(a, Tensor):
        return _is_same_tensor(a, b)
    if isinstance(a, np.ndarray) and not a.dtype.hasobject:
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if (id(a), id(b)) in seen:
        return True
    seen[id(a), id(b)] = a, b  # keeping both objects alive keeps their ids valid
    return _has_same_parts(a, b, seen)


def _is_same_tensor(a: Tensor, b: Tensor) -> bool:
    try:
        return a.device == b.device and have_same_bits(a, b)
    except Exception:  # noqa: BLE001 - tracing and vmap leave tensors behind that cannot be read
        return False


def _has_same_parts(a: Any, b: Any, seen: Seen) -> bool:
    if isinstance(a, dict):
        same = _is_same_sequence(list(a), list(b), seen) and _is_same_sequence(list(a.values()), list(b.values()), seen)
        return same and (type(a) in (dict, types.MappingProxyType) or _has_same_attributes(a, b, seen))
    if type(a) in (list, tuple):
        return _is_same_sequence(a, b, seen)
    if isinstance(a, set | frozenset):
        return bool(a == b)
    if isinstance(a, types.MethodType):
        return a.__func__ is b.__func__ and _is_same(a.__self__, b.__self__, seen)
    if isinstance(a, functools.partial):
        return _is_same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords), seen)
    if type(a).__module__.startswith("torch.fx"):
        return True
    try:  # as copy.deepcopy takes objects apart
        parts = _take_apart(a), _take_apart(b)
    except Exception:  # noqa: BLE001 - a lock or a file has no content to compare
        return True
    return _is_same(*parts, seen)


def _take_apart(value: Any) -> Any:
    return value.__reduce_ex__(4)


def _is_same_sequence(a: Any, b: Any, seen: Seen) -> bool:
    return len(a) == len(b) and all(_is_same(x, y, seen) for x, y in zip(a, b, strict=True))


def _has_same_attributes(a: Any, b: Any, seen: Seen) -> bool:
    return _is_same(getattr(a, "__dict__", None), getattr(b, "__dict__", None), seen)
