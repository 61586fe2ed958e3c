"""Plans how many actors to start. All functions depend only on the settings and the cluster's resources."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

from fednar_ray.config import ExecutionSettings
from fednar_ray.core.errors import CapacityError
from fednar_ray.execution.gpu_memory import MAX_ACTORS_PER_GPU, count_actors_per_gpu

log = logging.getLogger("fednar_ray")

ACTOR_BYTES = 500_000_000  # a process that has imported torch; 330 to 530 MB were measured
VECTORS_PER_ACTOR = 6  # x, x_round, g, v, Δ and the module, each as large as the model


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterResources:
    """What a cluster has in total.

    Attributes:
        cpus: CPUs.
        gpus: GPUs.
        memory_bytes: Host memory in bytes.
        gpu_memory_bytes: The memory of the smallest GPU in bytes. None if unknown.
    """

    cpus: float
    gpus: float
    memory_bytes: float
    gpu_memory_bytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The memory that one actor needs.

    Attributes:
        model_bytes: The size of the parameters in bytes, 4·d.
        gpu_bytes: GPU memory in bytes.
    """

    model_bytes: int
    gpu_bytes: float = 0.0

    @property
    def memory_bytes(self) -> float:
        """Host memory in bytes."""
        return ACTOR_BYTES + VECTORS_PER_ACTOR * self.model_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Binds an actor to a silo.

    Attributes:
        silo: The name of the silo.
        resources: Custom resources of Ray that the actor takes, so that it starts on a node that has them.
        gpus: The GPUs that the actor takes.
    """

    silo: str
    resources: Mapping[str, float]
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPlan:
    """How many actors a run gets, and what each takes.

    Attributes:
        count: The number of actors.
        cpus: The CPUs of each actor.
        gpus: The GPUs of each actor, unless ``pins`` say otherwise.
        strategy: Where the actors start: default, pack or spread.
        growing: Whether actors that do not fit yet may start when nodes join.
        pins: One per actor for silos; empty if the actors may start anywhere.
        owner: The run that the actors are for, as Ray's dashboard names them.
    """

    count: int
    cpus: float
    gpus: float
    strategy: str = "default"
    growing: bool = False
    pins: tuple[Pin, ...] = ()
    owner: str = ""


def count_fitting_actors(cluster: ClusterResources, cpus: float, gpus: float, footprint: Footprint) -> int:
    """Counts the actors with ``cpus`` and ``gpus`` each that fit on a cluster at the same time."""
    by_memory = floor(cluster.memory_bytes / footprint.memory_bytes)
    by_cpu = floor(cluster.cpus / cpus + 1e-9)
    if not gpus:
        by_gpu = by_cpu
    elif gpus > 1:
        by_gpu = floor(cluster.gpus / gpus)
    else:
        by_gpu = floor(cluster.gpus) * floor(1 / gpus + 1e-9)
    return min(by_memory, by_cpu, by_gpu)


def has_room(node: Mapping[str, float], demand: Mapping[str, float]) -> bool:
    """Returns whether a node has enough of every resource."""
    return all(node.get(name, 0.0) >= amount - 1e-9 for name, amount in demand.items())


def reserve(
    demand: Mapping[str, float], free: Sequence[dict[str, float]], candidates: Iterable[int] | None = None
) -> bool:
    """Takes resources from the first node that has room for them.

    Args:
        demand: The amount of each resource.
        free: What each node has left; the chosen node is changed in place.
        candidates: The indices of the nodes to try, in this order. None: all.

    Returns:
        Whether a node had room.
    """
    for index in range(len(free)) if candidates is None else candidates:
        if has_room(free[index], demand):
            free[index] |= {name: free[index].get(name, 0.0) - amount for name, amount in demand.items()}
            return True
    return False


def choose_placement(
    settings: ExecutionSettings, group_size: int, clients: int, cluster: ClusterResources, footprint: Footprint
) -> str:
    """Chooses the placement: that of the settings, or for ``auto`` "dedicated" or "pooled".

    ``auto`` means dedicated for silos, and also if clients train one by one and an actor for each of them fits.
    Otherwise it means pooled.

    Args:
        settings: The ``execution`` section.
        group_size: The clients that train as one matrix.
        clients: The clients of the federation.
        cluster: What the cluster has.
        footprint: What one actor needs.
    """
    if settings.placement != "auto":
        return settings.placement
    if settings.silos is not None:
        return "dedicated"
    share = _choose_gpu_share(settings, clients, cluster, footprint)
    limit = _count_by_gpu_memory(settings, cluster, footprint)
    fits = count_fitting_actors(cluster, settings.cpus_per_actor, share, footprint) >= clients
    return "dedicated" if group_size == 1 and fits and (limit is None or clients <= limit) else "pooled"


def plan_dedicated(
    settings: ExecutionSettings, clients: int, cluster: ClusterResources, footprint: Footprint
) -> ActorPlan:
    """Plans one actor per client.

    Raises:
        CapacityError: The cluster cannot hold them. The message says how many would fit.
    """
    plan = _build_plan(settings, clients, _choose_gpu_share(settings, clients, cluster, footprint))
    hint = "execution.placement=pooled lets each actor train many clients"
    _check_fits(plan, settings, cluster, footprint, hint)
    return plan


def plan_pooled(settings: ExecutionSettings, groups: int, cluster: ClusterResources, footprint: Footprint) -> ActorPlan:
    """Plans ``execution.actors`` actors that train any client.

    With ``auto`` and GPUs, each GPU gets as many actors as its memory holds, or one if its memory is unknown. With
    ``auto`` and no GPUs there is one actor per ``cpus_per_actor`` CPUs. ``auto`` never plans more actors than groups.

    Args:
        settings: The ``execution`` section.
        groups: The number of client groups of a round.
        cluster: What the cluster has.
        footprint: What one actor needs.

    Raises:
        CapacityError: The cluster cannot hold them. The message says how many would fit.
    """
    if settings.actors != "auto":
        plan = _build_plan(settings, settings.actors, _choose_gpu_share(settings, settings.actors, cluster, footprint))
        _check_fits(plan, settings, cluster, footprint, "execution.actors=auto takes as many as fit")
        return plan
    wanted = _count_useful_on_gpus(settings, groups, cluster, footprint)
    share = _choose_gpu_share(settings, wanted, cluster, footprint)
    fits = count_fitting_actors(cluster, settings.cpus_per_actor, share, footprint)
    plan = _build_plan(settings, max(1, min(fits, groups)), share)
    lower = (
        "lower execution.gpus_per_actor" if share > cluster.gpus else "free memory or lower execution.cpus_per_actor"
    )
    _check_fits(plan, settings, cluster, footprint, lower)
    return plan


def _build_plan(settings: ExecutionSettings, count: int, gpus: float) -> ActorPlan:
    strategy, growing = settings.strategy, settings.autoscale
    return ActorPlan(count=count, cpus=settings.cpus_per_actor, gpus=gpus, strategy=strategy, growing=growing)


def _count_useful_on_gpus(
    settings: ExecutionSettings, groups: int, cluster: ClusterResources, footprint: Footprint
) -> int:
    """Returns how many actors share the GPUs: those that their memory holds and that groups and CPUs keep busy."""
    gpus = max(1, floor(cluster.gpus))
    per_gpu = count_actors_per_gpu(footprint.gpu_bytes, cluster.gpu_memory_bytes) or 1
    by_cpu = floor(cluster.cpus / settings.cpus_per_actor / gpus)
    return gpus * max(1, min(per_gpu, MAX_ACTORS_PER_GPU, by_cpu, ceil(groups / gpus)))


def _choose_gpu_share(
    settings: ExecutionSettings, actors: int, cluster: ClusterResources, footprint: Footprint
) -> float:
    """Returns the GPUs of one actor.

    Each actor gets a whole GPU if there are enough. Otherwise all get an equal share of which a whole number fits on a
    GPU: 3 actors on 2 GPUs take halves. If more GPUs may join, the share follows from the memory of a GPU alone.
    """
    if settings.gpus_per_actor != "auto":
        return settings.gpus_per_actor
    gpus = floor(cluster.gpus)
    if not gpus:
        return 0.0
    if settings.autoscale:
        return 1 / min(count_actors_per_gpu(footprint.gpu_bytes, cluster.gpu_memory_bytes) or 1, MAX_ACTORS_PER_GPU)
    return 1 / ceil(actors / gpus)


def _count_by_gpu_memory(settings: ExecutionSettings, cluster: ClusterResources, footprint: Footprint) -> int | None:
    """Returns how many actors the memory of all GPUs holds; None if it is unknown or the user sets the shares."""
    per_gpu = count_actors_per_gpu(footprint.gpu_bytes, cluster.gpu_memory_bytes)
    return None if per_gpu is None or settings.gpus_per_actor != "auto" else per_gpu * floor(cluster.gpus)


def _check_fits(
    plan: ActorPlan, settings: ExecutionSettings, cluster: ClusterResources, footprint: Footprint, hint: str
) -> None:
    """Raises CapacityError if a plan does not fit, unless it may wait for nodes that join."""
    limit = _count_by_gpu_memory(settings, cluster, footprint)
    if plan.gpus and limit is not None and plan.count > limit and not plan.growing:
        memory = (cluster.gpu_memory_bytes or 0) / 1e9
        raise CapacityError(
            f"{plan.count} actors of {footprint.gpu_bytes / 1e9:.1f} GB each do not fit on {cluster.gpus:g} GPUs of "
            f"{memory:.1f} GB; {limit} would fit. {hint}; execution.gpus_per_actor sets their share by hand"
        )
    fits = count_fitting_actors(cluster, plan.cpus, plan.gpus, footprint)
    if plan.count <= fits:
        return
    if plan.growing:
        log.warning("only %d of %d actors fit now; the others start when nodes join", fits, plan.count)
        return
    each = f"{plan.cpus:g} CPU" + (f", {plan.gpus:g} GPU" if plan.gpus else "")
    raise CapacityError(
        f"{plan.count} actors of {each} and {footprint.memory_bytes / 1e9:.1f} GB each do not fit: the cluster has "
        f"{cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs and {cluster.memory_bytes / 1e9:.1f} GB; {fits} would fit. "
        f"{hint}; execution.autoscale=true waits for nodes that a cluster adds"
    )
