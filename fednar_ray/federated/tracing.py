"""Traces a function of tensors to a flat list of torch operators, because dispatch dominates a step of small models.

The trace computes the same bits, without the operators that only functorch's bookkeeping needs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten

RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.expand.default)
BOUND = frozenset(
    {
        *("add", "bmm", "cat", "expand", "gather", "mm", "mul", "neg", "relu", "scatter_add", "squeeze", "sum"),
        *("transpose", "unsqueeze", "view"),
    }
)
"""Operators that torch binds to Python under their own name, with their own arguments. Such calls cost half."""


def trace(function: Callable[..., Any], *arguments: Tensor) -> Callable[..., Any]:
    """Returns a faster function that computes the same as ``function`` for arguments of these shapes.

    Args:
        function: Runs once while it is traced. Its errors, and those of ``make_fx``, are raised.
        arguments: Examples of its arguments.
    """
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):  # else each operator makes its own
        module = make_fx(function)(*arguments)
    nodes = [node for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    if not any(node.target._schema.is_mutable for node in nodes):  # else neither merging nor aliasing is safe
        _merge(nodes)
        module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        node.target = _bind(node.target)
        node.meta.clear()
    module.recompile()
    forward: Callable[..., Any] = module.forward
    return forward


def _merge(nodes: list[fx.Node]) -> None:
    """Replaces operators that repeat an earlier one, or return their input unchanged, by that result."""
    seen: dict[tuple[Any, ...], fx.Node] = {}
    for node in nodes:
        same = _find_unchanged_source(node)
        if same is None and torch.Tag.nondeterministic_seeded not in node.target.tags:  # type: ignore[union-attr]
            same = seen.setdefault((node.target, str(node.args), str(node.kwargs)), node)
        if same is not None and same is not node:
            node.replace_all_uses_with(same)


def _find_unchanged_source(node: fx.Node) -> fx.Node | None:
    """Returns the node whose tensor this node returns unchanged; None if there is none."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.target in RESHAPES and _get_geometry(node) == _get_geometry(source):
        return source
    if node.target is aten.mul.Scalar and node.args[1] == 1 and _get_geometry(node) == _get_geometry(source):
        return source
    if node.target is aten.transpose.int and source.target is aten.transpose.int and node.args[1:] == source.args[1:]:
        before = source.args[0]
        return before if isinstance(before, fx.Node) else None
    return None


def _get_geometry(node: fx.Node) -> tuple[Any, ...]:
    value: Tensor = node.meta["val"]
    return value.dtype, value.shape, value.stride()


def _bind(target: Any) -> Any:
    name = target._schema.name.removeprefix("aten::") if isinstance(target, torch._ops.OpOverload) else ""
    return getattr(torch, name, None) or getattr(Tensor, name) if name in BOUND else target
