"""Records the torch operators of a function as a graph.

``torch.fx``'s ``make_fx`` records the same graph. But it imports torch's compiler, for two seconds of every process
that trains, and takes ten times as long. Nothing else of this package needs the compiler, unless steps are compiled.
"""

import importlib
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx, nn
from torch._compile import _disable_dynamo
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten

GEOMETRY = "geometry"
"""The key in a node's ``meta`` of its tensor's type, shape and strides."""


class CannotRecord(RuntimeError):
    """The operators of a function depend on the values of its arguments, or cannot be told from constants."""


class EagerMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that does not import torch's compiler.

    Other modes are hidden from the compiler at their first operator, which imports it. A subclass of this one is hidden
    when it is entered, if somebody has imported the compiler by then, as a model with compiled parts has.
    """

    _is_hidden: ClassVar[bool]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> Self:
        """Enters the mode, and first hides its kind from a compiler that has been imported."""
        kind = type(self)
        if "torch._dynamo" in sys.modules and "_is_hidden" not in kind.__dict__:
            kind.__torch_dispatch__ = _disable_dynamo(kind.__torch_dispatch__)  # type: ignore[method-assign]
            kind._is_hidden = True
        super().__enter__()  # type: ignore[no-untyped-call]
        return self


def record(function: Callable[..., Any], *arguments: Tensor) -> fx.GraphModule:
    """Runs a function once, and returns the operators that it ran as a program.

    Args:
        function: A function of tensors. Tensors that it reads besides its arguments are constants of the program.
        arguments: Its arguments. The program is one for arguments of the same types, shapes and strides.

    Raises:
        CannotRecord: Such a program would compute something else for other values.
    """
    recorder = _Recorder(arguments)
    with without_compiler(), recorder:
        results = function(*arguments)
    return recorder.build(results)


class _Recorder(EagerMode):
    def __init__(self, arguments: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph, self._root = fx.Graph(), nn.Module()
        self._nodes = WeakTensorKeyDictionary()
        self._constants: dict[object, Tensor] = {}  # by where their memory starts; those that nothing has written to
        for number, argument in enumerate(arguments):
            self._remember(argument, self._graph.placeholder(f"argument_{number}"))

    def build(self, results: Any) -> fx.GraphModule:
        """Returns the program, whose results are those that ``results`` holds."""
        self._graph.output(tree_map(self._find, results))
        self._graph.eliminate_dead_code()
        return fx.GraphModule(self._root, self._graph)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.lift_fresh.default:
            return self._make_constant(args[0])
        inputs = tree_map(self._find, (args, kwargs))
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if torch.Tag.data_dependent_output in func.tags:
            if not all(_get_place(each) in self._constants for each in tensors):
                raise CannotRecord(f"{func} reads values")
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if func is aten.detach.default:
            self._nodes[result] = inputs[0][0]
            return result
        for each in _list_written(func, args, kwargs):
            self._constants.pop(_get_place(each), None)
        node = self._graph.call_function(func, *inputs)
        if isinstance(result, Tensor):
            self._remember(result, node)
        elif isinstance(result, tuple | list):
            for number, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._remember(part, self._graph.call_function(operator.getitem, (node, number)))
        return result

    def _make_constant(self, made: Tensor) -> Tensor:
        """Records a tensor that the function makes of numbers. Each call of the program may write to its own copy."""
        self._check_constant(made)
        node = self._register(made.clone())
        self._constants[_get_place(made)] = made
        self._remember(made, self._graph.call_function(aten.lift_fresh_copy.default, (node,)))
        return made

    def _register(self, value: Tensor) -> fx.Node:
        name = f"constant_{len(list(self._root.buffers()))}"
        self._root.register_buffer(name, value, persistent=False)
        return self._graph.get_attr(name)

    def _remember(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta[GEOMETRY] = tensor.dtype, tensor.shape, tensor.stride()
        self._nodes[tensor] = node

    def _find(self, value: Any) -> Any:
        """Returns the node of a tensor. A tensor that no operator has made is a constant, as those of a module are."""
        if not isinstance(value, Tensor):
            return value
        if value not in self._nodes:
            self._check_constant(value)
            self._constants[_get_place(value)] = value
            self._remember(value, self._register(value))
        return self._nodes[value]

    def _check_constant(self, value: Tensor) -> None:
        """Raises CannotRecord if a tensor shares memory with one that the function has computed or was given."""
        place = _get_place(value)
        if place not in self._constants and any(_get_place(each) == place for each in self._nodes):
            raise CannotRecord("a tensor shares memory with another in a way that no operator shows")


def _list_written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """Yields the tensors among an operator's arguments that it writes to."""
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written = args[number] if number < len(args) else kwargs.get(argument.name)
            yield from (each for each in tree_leaves(written) if isinstance(each, Tensor))


def _get_place(tensor: Tensor) -> object:
    """Returns what tensors of the same memory have in common, and others do not."""
    return tensor.untyped_storage().data_ptr() or object()


class _LaterImport:
    """Stands for a module that is imported when anything is read that was not given."""

    def __init__(self, name: str, **given: Any) -> None:
        self.__dict__.update(given)
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


@contextmanager
def without_compiler() -> Iterator[None]:
    """``torch.func.grad`` imports torch's compiler to turn a part of it off. Without the import that is off anyway."""
    if "torch._dynamo" in sys.modules or isinstance(torch.__dict__.get("_dynamo"), _LaterImport):
        yield
        return
    off = _LaterImport("torch._dynamo.compiled_autograd", _disable=nullcontext)
    absent = _LaterImport("torch._dynamo", compiled_autograd=off)
    torch._dynamo = absent  # type: ignore[assignment]
    try:
        yield
    finally:
        if torch.__dict__.get("_dynamo") is absent:  # nobody has imported it meanwhile
            del torch._dynamo
