"""On which nodes actors start."""

from collections.abc import Mapping
from math import floor
from typing import Any

import ray
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fednar_ray.execution.capacity import ActorPlan


def pack_actors(free: Mapping[str, Mapping[str, float]], cpus: float, gpus: float, count: int) -> list[str | None]:
    """Chooses a node for each actor, and as few nodes as possible.

    Args:
        free: The free CPUs ("CPU") and GPUs ("GPU") of each node, by the node's id.
        cpus: The CPUs of one actor.
        gpus: The GPUs of one actor.
        count: The number of actors.

    Returns:
        One node per actor; None for an actor that no node has room for now.
    """
    room = {node: _count_fitting(resources, cpus, gpus) for node, resources in sorted(free.items())}
    chosen: list[str | None] = []
    while len(chosen) < count:
        missing = count - len(chosen)
        enough = {node: fits for node, fits in room.items() if fits >= missing}
        node = min(enough, key=enough.__getitem__) if enough else max(room, key=room.__getitem__, default=None)
        if node is None or not room[node]:
            return chosen + [None] * missing
        chosen += [node] * min(room.pop(node), missing)
    return chosen


def _count_fitting(free: Mapping[str, float], cpus: float, gpus: float) -> int:
    by_cpu = floor(free.get("CPU", 0.0) / cpus + 1e-9)
    return min(by_cpu, floor(free.get("GPU", 0.0) / gpus + 1e-9)) if gpus else by_cpu


def build_actor_options(plan: ActorPlan, slots: list[int]) -> list[dict[str, Any]]:
    """Returns Ray's options for new actors in these slots of a plan."""
    if plan.pins:
        pins = [plan.pins[slot] for slot in slots]
        return [{"num_cpus": plan.cpus, "num_gpus": p.gpus, "resources": dict(p.resources)} for p in pins]
    shares = {"num_cpus": plan.cpus, "num_gpus": plan.gpus}
    return [shares | strategy for strategy in _build_strategies(plan, len(slots))]


def _build_strategies(plan: ActorPlan, count: int) -> list[dict[str, Any]]:
    if plan.strategy == "default" or get_current_placement_group() is not None:  # a trial's group places its actors
        return [{}] * count
    if plan.strategy == "spread":
        return [{"scheduling_strategy": "SPREAD"}] * count
    nodes = pack_actors(ray._private.state.available_resources_per_node(), plan.cpus, plan.gpus, count)
    return [{} if node is None else {"scheduling_strategy": _prefer(node)} for node in nodes]


def _prefer(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)
