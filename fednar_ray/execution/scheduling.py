"""On which nodes actors are to start."""

from collections.abc import Mapping
from math import floor
from typing import Any

import ray
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fednar_ray.execution.capacity import ActorPlan


def packed(free: Mapping[str, Mapping[str, float]], cpus: float, gpus: float, count: int) -> list[str | None]:
    """A node for each of ``count`` actors with these shares, on as few nodes as can be; None: there is no room now.

    ``free``: by node what is left of its CPU and GPU.
    """
    room = {node: _room(left, cpus, gpus) for node, left in sorted(free.items())}
    chosen: list[str | None] = []
    while len(chosen) < count:
        missing = count - len(chosen)
        enough = {node: fits for node, fits in room.items() if fits >= missing}
        node = min(enough, key=enough.__getitem__) if enough else max(room, key=room.__getitem__, default=None)
        if node is None or not room[node]:
            return chosen + [None] * missing
        chosen += [node] * min(room.pop(node), missing)
    return chosen


def _room(left: Mapping[str, float], cpus: float, gpus: float) -> int:
    by_cpu, by_gpu = floor(left.get("CPU", 0.0) / cpus + 1e-9), left.get("GPU", 0.0)
    return min(by_cpu, floor(by_gpu / gpus + 1e-9)) if gpus else by_cpu


def options_for(plan: ActorPlan, slots: list[int]) -> list[dict[str, Any]]:
    """Ray's options for new actors in these slots of a plan."""
    if plan.pins:
        pins = [plan.pins[slot] for slot in slots]
        return [{"num_cpus": plan.cpus, "num_gpus": p.gpus, "resources": dict(p.resources)} for p in pins]
    shares = {"num_cpus": plan.cpus, "num_gpus": plan.gpus}
    return [shares | strategy for strategy in _strategies(plan, len(slots))]


def _strategies(plan: ActorPlan, count: int) -> list[dict[str, Any]]:
    if plan.strategy == "default" or get_current_placement_group() is not None:  # a trial's actors are within its own
        return [{}] * count
    if plan.strategy == "spread":
        return [{"scheduling_strategy": "SPREAD"}] * count
    nodes = packed(ray._private.state.available_resources_per_node(), plan.cpus, plan.gpus, count)
    return [{} if node is None else {"scheduling_strategy": _preferably(node)} for node in nodes]


def _preferably(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)
