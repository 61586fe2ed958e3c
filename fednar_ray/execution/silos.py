"""Plans the actors of silos: clients that train on the nodes that have their data."""

import logging
from collections.abc import Mapping, Sequence
from math import ceil, floor

from fednar_ray.config import ExecutionSettings, SiloSettings
from fednar_ray.core.errors import CapacityError
from fednar_ray.execution.capacity import ActorPlan, Footprint, Pin, has_room, reserve

log = logging.getLogger("fednar_ray")

Node = Mapping[str, float]
"""What a node has in total, by resource."""

Candidates = Mapping[str, Sequence[int]]
"""By the name of a silo, the indices of the nodes that could take its actor if it were alone."""


def plan_silos(
    settings: ExecutionSettings, names: Sequence[str], nodes: Sequence[Node], footprint: Footprint
) -> ActorPlan:
    """Plans one actor per silo, with a share of a GPU if the silo's nodes have one.

    Args:
        settings: The ``execution`` section.
        names: The silos that take part, in the order of their clients.
        nodes: What each node of the cluster has in total.
        footprint: What one actor needs.

    Raises:
        CapacityError: Some silos fit on no node; the message names each. With ``execution.autoscale`` this is only
            logged, because nodes may join.
    """
    silos = {name: (settings.silos or {})[name] for name in names}
    candidates = {
        name: [i for i, node in enumerate(nodes) if _can_hold(node, silo, settings)] for name, silo in silos.items()
    }
    pins = tuple(
        Pin(silo=name, resources=silo.resources, gpus=_choose_gpu_share(settings, name, candidates, nodes))
        for name, silo in silos.items()
    )
    problems = [_describe_missing(name, silo, settings) for name, silo in silos.items() if not candidates[name]]
    problems = problems or _find_crowded(pins, settings, candidates, nodes, footprint)
    if problems and not settings.autoscale:
        raise CapacityError("\n".join((*problems, f"{_describe(nodes)}; execution.autoscale=true waits for more")))
    for problem in problems:
        log.warning("%s; waiting for a node that has it", problem)
    gpus = 0.0  # each pin has its own share
    return ActorPlan(count=len(pins), cpus=settings.cpus_per_actor, gpus=gpus, growing=settings.autoscale, pins=pins)


def _can_hold(node: Node, silo: SiloSettings, settings: ExecutionSettings) -> bool:
    gpus = 0.0 if settings.gpus_per_actor == "auto" else settings.gpus_per_actor
    return has_room(node, {**silo.resources, "CPU": settings.cpus_per_actor, "GPU": gpus})


def _choose_gpu_share(settings: ExecutionSettings, name: str, candidates: Candidates, nodes: Sequence[Node]) -> float:
    """Returns a share that each candidate node can give to the silo and to all others that may start there."""
    if settings.gpus_per_actor != "auto":
        return settings.gpus_per_actor
    shares = []
    for node in candidates[name]:
        gpus, silos = floor(nodes[node].get("GPU", 0.0)), sum(node in others for others in candidates.values())
        shares.append(1 / ceil(silos / gpus) if gpus else 0.0)
    return min(shares, default=0.0)


def _describe_missing(name: str, silo: SiloSettings, settings: ExecutionSettings) -> str:
    parts = [f"{amount:g} {resource}" for resource, amount in silo.resources.items()]
    parts.append(f"{settings.cpus_per_actor:g} CPU")
    if settings.gpus_per_actor not in ("auto", 0):
        parts.append(f"{settings.gpus_per_actor:g} GPU")
    return f"execution.silos.{name}: no node has {' and '.join(parts)}"


def _find_crowded(
    pins: Sequence[Pin],
    settings: ExecutionSettings,
    candidates: Candidates,
    nodes: Sequence[Node],
    footprint: Footprint,
) -> list[str]:
    """Describes the silos that find no room beside the others. Silos with the least choice are placed first."""
    free, problems = [dict(node) for node in nodes], []
    for pin in sorted(pins, key=lambda pin: len(candidates[pin.silo])):
        demand = {**pin.resources, "CPU": settings.cpus_per_actor, "GPU": pin.gpus, "memory": footprint.memory_bytes}
        if not reserve(demand, free, candidates[pin.silo]):
            memory = f"{footprint.memory_bytes / 1e9:.1f} GB"
            problems.append(f"execution.silos.{pin.silo}: no room beside the other silos for its actor ({memory})")
    return problems


def _describe(nodes: Sequence[Node]) -> str:
    """Lists the nodes, each with its CPUs, GPUs and custom resources."""
    omitted = ("memory", "object_store_memory")
    texts = (
        " and ".join(
            f"{amount:g} {name}"
            for name, amount in sorted(node.items())
            if amount and name not in omitted and not name.startswith(("node:", "accelerator_type:"))
        )
        for node in nodes
    )
    return "the nodes have " + "; ".join(sorted(text or "nothing" for text in texts))
