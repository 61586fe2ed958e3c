"""How many actors fit, decided before any is started: pure functions of a request and a cluster."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

from fednar_ray.config import ExecutionSettings
from fednar_ray.core.errors import CapacityError
from fednar_ray.execution.gpu_memory import MOST, count_actors_per_gpu

log = logging.getLogger("fednar_ray")

ACTOR_BYTES = 500_000_000  # a process that has imported torch: 330 to 530 MB were measured
VECTORS_PER_ACTOR = 6  # x, x_round, g, v, Δ and the module, each as large as the model


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterResources:
    """What a cluster has in all."""

    cpus: float
    gpus: float
    memory_bytes: float
    gpu_memory_bytes: float | None = None  # of the smallest GPU; None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What an actor takes besides its CPUs."""

    model_bytes: int  # 4·d
    gpu_bytes: float = 0.0  # of its GPU's memory

    @property
    def memory_bytes(self) -> float:
        """Of its node's."""
        return ACTOR_BYTES + VECTORS_PER_ACTOR * self.model_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """The silo that an actor belongs to: it starts on a node with these custom resources, and takes so much of them."""

    silo: str
    resources: Mapping[str, float]
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPlan:
    """How many actors, and each one's share."""

    count: int
    cpus: float
    gpus: float
    strategy: str = "default"  # default, pack or spread
    growing: bool = False  # those that do not fit yet start when nodes join
    pins: tuple[Pin, ...] = ()  # one an actor; none: they go anywhere


def count_fitting_actors(cluster: ClusterResources, cpus: float, gpus: float, needs: Footprint) -> int:
    """How many actors with these shares the cluster holds at once."""
    by_memory = floor(cluster.memory_bytes / needs.memory_bytes)
    by_cpu = floor(cluster.cpus / cpus + 1e-9)
    if not gpus:
        by_gpu = by_cpu
    elif gpus > 1:
        by_gpu = floor(cluster.gpus / gpus)
    else:
        by_gpu = floor(cluster.gpus) * floor(1 / gpus + 1e-9)
    return min(by_memory, by_cpu, by_gpu)


def has_room(node: Mapping[str, float], takes: Mapping[str, float]) -> bool:
    """Has a node as much of everything?"""
    return all(node.get(name, 0.0) >= amount - 1e-9 for name, amount in takes.items())


def reserve(takes: Mapping[str, float], free: Sequence[dict[str, float]], places: Iterable[int] | None = None) -> bool:
    """Take it from the first node with room for it, of those at ``places``; False where there is none."""
    for place in range(len(free)) if places is None else places:
        if has_room(free[place], takes):
            free[place] |= {name: free[place].get(name, 0.0) - amount for name, amount in takes.items()}
            return True
    return False


def choose_placement(
    settings: ExecutionSettings, width: int, clients: int, cluster: ClusterResources, needs: Footprint
) -> str:
    """``auto``: dedicated where there are silos, or where groups are single clients and each can have its slot at
    once; else pooled.
    """
    if settings.placement != "auto":
        return settings.placement
    if settings.silos is not None:
        return "dedicated"
    share, limit = _gpu_share(settings, clients, cluster, needs), _by_gpu_memory(settings, cluster, needs)
    fits = count_fitting_actors(cluster, settings.cpus_per_actor, share, needs) >= clients
    return "dedicated" if width == 1 and fits and (limit is None or clients <= limit) else "pooled"


def plan_dedicated(settings: ExecutionSettings, clients: int, cluster: ClusterResources, needs: Footprint) -> ActorPlan:
    """An actor a client. Raises CapacityError, with what would fit, where the cluster cannot hold them."""
    plan = _plan(settings, clients, _gpu_share(settings, clients, cluster, needs))
    return _checked(plan, settings, cluster, needs, "execution.placement=pooled lets each actor host many clients")


def plan_pooled(settings: ExecutionSettings, groups: int, cluster: ClusterResources, needs: Footprint) -> ActorPlan:
    """As many actors as asked for; ``auto``: where there are GPUs as many on each as its memory holds, one where that
    is not known, else one for each ``cpus_per_actor``; and no more than a round has client groups.

    Raises CapacityError, with what would fit.
    """
    if settings.actors != "auto":
        plan = _plan(settings, settings.actors, _gpu_share(settings, settings.actors, cluster, needs))
        return _checked(plan, settings, cluster, needs, "execution.actors=auto takes what fits")
    share = _gpu_share(settings, _useful_on_gpus(settings, groups, cluster, needs), cluster, needs)
    fits = count_fitting_actors(cluster, settings.cpus_per_actor, share, needs)
    plan = _plan(settings, max(1, min(fits, groups)), share)
    hint = (
        "lower execution.gpus_per_actor" if share > cluster.gpus else "free memory, or lower execution.cpus_per_actor"
    )
    return _checked(plan, settings, cluster, needs, hint)


def _plan(settings: ExecutionSettings, count: int, gpus: float) -> ActorPlan:
    strategy, growing = settings.strategy, settings.autoscale
    return ActorPlan(count=count, cpus=settings.cpus_per_actor, gpus=gpus, strategy=strategy, growing=growing)


def _useful_on_gpus(settings: ExecutionSettings, groups: int, cluster: ClusterResources, needs: Footprint) -> int:
    """How many actors the GPUs are to hold, as far as there are client groups and CPUs for them."""
    gpus, each = max(1, floor(cluster.gpus)), count_actors_per_gpu(needs.gpu_bytes, cluster.gpu_memory_bytes) or 1
    by_cpu = floor(cluster.cpus / settings.cpus_per_actor / gpus)
    return gpus * max(1, min(each, MOST, by_cpu, ceil(groups / gpus)))


def _gpu_share(settings: ExecutionSettings, actors: int, cluster: ClusterResources, needs: Footprint) -> float:
    """A GPU each where there are enough, else an equal share that packs: 3 actors on 2 GPUs take halves.

    Where more GPUs may come, the share that memory allows, whatever there is now.
    """
    if settings.gpus_per_actor != "auto":
        return settings.gpus_per_actor
    gpus = floor(cluster.gpus)
    if not gpus:
        return 0.0
    if settings.autoscale:
        return 1 / min(count_actors_per_gpu(needs.gpu_bytes, cluster.gpu_memory_bytes) or 1, MOST)
    return 1 / ceil(actors / gpus)


def _by_gpu_memory(settings: ExecutionSettings, cluster: ClusterResources, needs: Footprint) -> int | None:
    """How many actors the memory of all GPUs holds; None: that is not known, or none of our business."""
    each = count_actors_per_gpu(needs.gpu_bytes, cluster.gpu_memory_bytes)
    return None if each is None or settings.gpus_per_actor != "auto" else each * floor(cluster.gpus)


def _checked(
    plan: ActorPlan, settings: ExecutionSettings, cluster: ClusterResources, needs: Footprint, hint: str
) -> ActorPlan:
    fits, limit = count_fitting_actors(cluster, plan.cpus, plan.gpus, needs), _by_gpu_memory(settings, cluster, needs)
    if plan.gpus and limit is not None and plan.count > limit and not plan.growing:
        memory = (cluster.gpu_memory_bytes or 0) / 1e9
        raise CapacityError(
            f"{plan.count} actors of {needs.gpu_bytes / 1e9:.1f} GB each do not fit on {cluster.gpus:g} GPUs of "
            f"{memory:.1f} GB; {limit} would fit. {hint}; execution.gpus_per_actor sets their share by hand"
        )
    if plan.count <= fits:
        return plan
    if plan.growing:
        log.warning("%d of %d actors fit now; the others start as nodes join", fits, plan.count)
        return plan
    each = f"{plan.cpus:g} CPU" + (f", {plan.gpus:g} GPU" if plan.gpus else "")
    raise CapacityError(
        f"{plan.count} actors of {each} and {needs.memory_bytes / 1e9:.1f} GB each do not fit: the cluster has "
        f"{cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs and {cluster.memory_bytes / 1e9:.1f} GB; {fits} would fit. "
        f"{hint}; execution.autoscale=true waits for nodes that a cluster adds"
    )
