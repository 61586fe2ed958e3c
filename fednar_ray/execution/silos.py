"""Silos: clients that are pinned to the nodes that have their data, and what these nodes are asked before training."""

import logging
from collections.abc import Mapping, Sequence
from math import ceil, floor

from fednar_ray.config import ExecutionSettings, SiloSettings
from fednar_ray.core.errors import CapacityError
from fednar_ray.execution.capacity import ActorPlan, Footprint, Pin, has_room, reserve

log = logging.getLogger("fednar_ray")

Node = Mapping[str, float]


def plan_silos(settings: ExecutionSettings, names: Sequence[str], nodes: Sequence[Node], needs: Footprint) -> ActorPlan:
    """An actor for each named silo, with its share of a GPU where its nodes have one. ``nodes``: what each has in all.

    Raises CapacityError, which names every silo that no node can take; with ``autoscale`` they are waited for.
    """
    silos = {name: (settings.silos or {})[name] for name in names}
    able = {name: [i for i, node in enumerate(nodes) if _has(node, silo, settings)] for name, silo in silos.items()}
    pins = tuple(
        Pin(silo=name, resources=silo.resources, gpus=_gpus(settings, name, able, nodes))
        for name, silo in silos.items()
    )
    problems = [_nowhere(name, silo, settings) for name, silo in silos.items() if not able[name]]
    if not problems:
        problems = _too_many(pins, settings, able, nodes, needs)
    if problems and not settings.autoscale:
        raise CapacityError("\n".join((*problems, f"{_listed(nodes)}; execution.autoscale=true waits for more")))
    for problem in problems:
        log.warning("%s; waited for", problem)
    return ActorPlan(
        count=len(pins), cpus=settings.cpus_per_actor, gpus=0.0, growing=settings.autoscale, pins=pins
    )  # each pin has its own share of a GPU


def _has(node: Node, silo: SiloSettings, settings: ExecutionSettings) -> bool:
    gpus = 0.0 if settings.gpus_per_actor == "auto" else settings.gpus_per_actor
    wanted = {**silo.resources, "CPU": settings.cpus_per_actor, "GPU": gpus}
    return has_room(node, wanted)


def _gpus(settings: ExecutionSettings, name: str, able: Mapping[str, Sequence[int]], nodes: Sequence[Node]) -> float:
    """Of the silo's nodes that with the fewest GPUs decides, shared with whichever other silos it may hold."""
    if settings.gpus_per_actor != "auto":
        return settings.gpus_per_actor
    shares = []
    for node in able[name]:
        gpus, silos = floor(nodes[node].get("GPU", 0.0)), sum(node in others for others in able.values())
        shares.append(1 / ceil(silos / gpus) if gpus else 0.0)
    return min(shares, default=0.0)


def _nowhere(name: str, silo: SiloSettings, settings: ExecutionSettings) -> str:
    parts = [f"{amount:g} {resource}" for resource, amount in silo.resources.items()]
    parts.append(f"{settings.cpus_per_actor:g} CPU")
    if settings.gpus_per_actor not in ("auto", 0):
        parts.append(f"{settings.gpus_per_actor:g} GPU")
    return f"execution.silos.{name}: no node has {' and '.join(parts)}"


def _too_many(
    pins: Sequence[Pin],
    settings: ExecutionSettings,
    able: Mapping[str, Sequence[int]],
    nodes: Sequence[Node],
    needs: Footprint,
) -> list[str]:
    """Silos that find no room beside the others: those with least choice are put first."""
    free, problems = [dict(node) for node in nodes], []
    for pin in sorted(pins, key=lambda pin: len(able[pin.silo])):
        takes = {**pin.resources, "CPU": settings.cpus_per_actor, "GPU": pin.gpus, "memory": needs.memory_bytes}
        if not reserve(takes, free, able[pin.silo]):
            memory = f"{needs.memory_bytes / 1e9:.1f} GB"
            problems.append(f"execution.silos.{pin.silo}: no room beside the other silos for its actor ({memory})")
    return problems


def _listed(nodes: Sequence[Node]) -> str:
    """The nodes, each with its CPUs, GPUs and custom resources."""
    usual = ("memory", "object_store_memory")
    told = (
        " and ".join(
            f"{amount:g} {name}"
            for name, amount in sorted(node.items())
            if amount and name not in usual and not name.startswith(("node:", "accelerator_type:"))
        )
        for node in nodes
    )
    return "the nodes have " + "; ".join(sorted(text or "nothing" for text in told))
