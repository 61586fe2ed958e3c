"""Traces a function of tensors to a flat list of torch operators, because dispatch dominates a step of small models.

The trace computes the same bits, without the operators that only functorch's bookkeeping needs.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fednar_ray.federated.recorder import GEOMETRY, record

aten = torch.ops.aten

RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.expand.default)
BOUND = frozenset(
    {
        *("add", "bmm", "cat", "expand", "gather", "mm", "mul", "neg", "relu", "scatter_add", "squeeze", "sum"),
        *("transpose", "unsqueeze", "view"),
    }
)
"""Operators that torch binds to Python under their own name, with their own arguments. Such calls cost half."""


VIEWS = frozenset(
    {aten.split_with_sizes.default, operator.getitem, aten.view.default, aten._unsafe_view.default}
    | {aten.transpose.int, aten.t.default, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dims}
    | {aten.expand.default, aten.select.int, aten.slice.Tensor}
)
OWNERS = frozenset({aten.bmm.default, aten.mm.default, aten.add.Tensor, aten.relu.default, aten.convolution.default})
"""Operators whose result is new memory."""
IN_PLACE: Mapping[Any, Any] = {aten.add.Tensor: Tensor.add_, aten.relu.default: torch.relu_}


def trace(function: Callable[..., Any], *arguments: Tensor) -> Callable[..., Any]:
    """Returns a faster function that computes the same as ``function`` for arguments of these shapes.

    Args:
        function: Runs once while it is traced. Its errors, and those of ``record``, are raised.
        arguments: Examples of its arguments. The first is not only an example: the function may be called with no other
            tensor there, as its views are computed here once. Its values may change.
    """
    module = record(function, *arguments)
    nodes = [node for node in module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    if not any(node.target._schema.is_mutable for node in nodes):  # else neither merging nor aliasing is safe
        _merge(nodes)
        module.graph.eliminate_dead_code()
        _fix_views(module, arguments[0])
        module.graph.eliminate_dead_code()
        _overwrite_dead_inputs(module.graph)
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


def _fix_views(module: fx.GraphModule, first: Tensor) -> None:
    """Replaces the views of the first argument by attributes, which need no call."""
    graph = module.graph
    views: dict[fx.Node, Any] = {next(iter(graph.nodes)): first}
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source not in views:
            continue
        if node.target in VIEWS and len(node.all_input_nodes) == 1:
            views[node] = node.target(views[source], *node.args[1:])
        elif node.target is aten.mul.Scalar and node.args[1] == 1 and _is_viewable(node, views[source]):
            views[node] = views[source]
    for number, (node, value) in enumerate(views.items()):
        users = [user for user in node.users if user not in views]
        if isinstance(value, Tensor) and value is not first and users:
            name = f"view_of_first_{number}"
            module.register_buffer(name, value, persistent=False)
            with graph.inserting_before(node):
                attribute = graph.get_attr(name)
            for user in users:
                user.replace_input_with(node, attribute)


def _is_viewable(node: fx.Node, value: Tensor) -> bool:
    """Returns whether every user of a product by 1 also takes its uncopied factor: additions, and views of it."""
    try:
        for user in node.users:
            if user.target is aten.view.default:
                aten.view.default(value, user.args[1])
            elif user.target is not aten.add.Tensor:
                return False
    except RuntimeError:  # it can be viewed so only as a copy
        return False
    return True


def _overwrite_dead_inputs(graph: fx.Graph) -> None:
    """Lets additions and ReLUs write into an input that nothing else reads. Fewer megabytes keep the cache warm."""
    for node in graph.nodes:
        if node.target is aten.threshold_backward.default and _is_free(node.args[0]):
            node.target, node.kwargs = aten.threshold_backward.grad_input, {"grad_input": node.args[0]}
        if node.target not in IN_PLACE or len(node.kwargs) > 0:
            continue
        inputs = [each for each in node.args if isinstance(each, fx.Node)]
        free = next((each for each in inputs if _is_free(each) and _get_geometry(each) == _get_geometry(node)), None)
        if free is not None:
            node.args = (free, *(each for each in node.args if each is not free))
            node.target = IN_PLACE[node.target]


def _is_free(node: fx.Node) -> bool:
    """Returns whether one operator alone reads a tensor, which is no view of another and no argument."""
    return node.op == "call_function" and len(node.users) == 1 and _owns_memory(node)


def _owns_memory(node: fx.Node) -> bool:
    return node.target in OWNERS or node.target in IN_PLACE.values()


def _get_geometry(node: fx.Node) -> tuple[Any, ...]:
    geometry: tuple[Any, ...] = node.meta[GEOMETRY]
    return geometry


def _bind(target: Any) -> Any:
    name = target._schema.name.removeprefix("aten::") if isinstance(target, torch._ops.OpOverload) else ""
    return getattr(torch, name, None) or getattr(Tensor, name) if name in BOUND else target
