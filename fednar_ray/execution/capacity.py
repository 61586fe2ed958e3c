"""How many actors fit, decided before any is started: pure functions of a request and a cluster."""

from dataclasses import dataclass
from math import ceil, floor

from fednar_ray.config import ExecutionSettings
from fednar_ray.errors import CapacityError

ACTOR_BYTES = 500_000_000  # a process that has imported torch: 330 to 530 MB were measured
VECTORS_PER_ACTOR = 6  # x, x_round, g, v, Δ and the module, each as large as the model


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterResources:
    """What a cluster has in all."""

    cpus: float
    gpus: float
    memory_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPlan:
    """How many actors, and each one's share."""

    count: int
    cpus: float
    gpus: float


def fitting_actors(cluster: ClusterResources, cpus: float, gpus: float, model_bytes: int) -> int:
    """How many actors with these shares the cluster holds at once."""
    by_memory = floor(cluster.memory_bytes / (ACTOR_BYTES + VECTORS_PER_ACTOR * model_bytes))
    by_cpu = floor(cluster.cpus / cpus + 1e-9)
    if not gpus:
        by_gpu = by_cpu
    elif gpus > 1:
        by_gpu = floor(cluster.gpus / gpus)
    else:
        by_gpu = floor(cluster.gpus) * floor(1 / gpus + 1e-9)
    return min(by_memory, by_cpu, by_gpu)


def choose_placement(
    settings: ExecutionSettings, width: int, clients: int, cluster: ClusterResources, model_bytes: int
) -> str:
    """``auto``: dedicated where cohorts are single clients and each can have its slot at once, else pooled."""
    if settings.placement != "auto":
        return settings.placement
    share = _gpu_share(settings, clients, cluster)
    fits = fitting_actors(cluster, settings.cpus_per_actor, share, model_bytes) >= clients
    return "dedicated" if width == 1 and fits else "pooled"


def plan_dedicated(settings: ExecutionSettings, clients: int, cluster: ClusterResources, model_bytes: int) -> ActorPlan:
    """An actor a client. Raises CapacityError, with what would fit, where the cluster cannot hold them."""
    plan = ActorPlan(count=clients, cpus=settings.cpus_per_actor, gpus=_gpu_share(settings, clients, cluster))
    return _checked(plan, cluster, model_bytes, "execution.placement=pooled lets each actor host many clients")


def plan_pooled(settings: ExecutionSettings, cohorts: int, cluster: ClusterResources, model_bytes: int) -> ActorPlan:
    """As many actors as asked for; ``auto``: one a GPU, else one for each ``cpus_per_actor``, and no more than
    a round has cohorts.  Raises CapacityError, with what would fit.
    """
    if settings.actors != "auto":
        share = _gpu_share(settings, settings.actors, cluster)
        plan = ActorPlan(count=settings.actors, cpus=settings.cpus_per_actor, gpus=share)
        return _checked(plan, cluster, model_bytes, "execution.actors=auto takes what fits")
    share = _gpu_share(settings, max(1, floor(cluster.gpus)), cluster)
    fits = fitting_actors(cluster, settings.cpus_per_actor, share, model_bytes)
    plan = ActorPlan(count=max(1, min(fits, cohorts)), cpus=settings.cpus_per_actor, gpus=share)
    hint = (
        "lower execution.gpus_per_actor" if share > cluster.gpus else "free memory, or lower execution.cpus_per_actor"
    )
    return _checked(plan, cluster, model_bytes, hint)


def _gpu_share(settings: ExecutionSettings, actors: int, cluster: ClusterResources) -> float:
    """A GPU each where there are enough, else an equal share that packs: 3 actors on 2 GPUs take halves."""
    if settings.gpus_per_actor != "auto":
        return settings.gpus_per_actor
    gpus = floor(cluster.gpus)
    return 1 / ceil(actors / gpus) if gpus else 0.0


def _checked(plan: ActorPlan, cluster: ClusterResources, model_bytes: int, hint: str) -> ActorPlan:
    fits = fitting_actors(cluster, plan.cpus, plan.gpus, model_bytes)
    if plan.count <= fits:
        return plan
    each = f"{plan.cpus:g} CPU" + (f", {plan.gpus:g} GPU" if plan.gpus else "")
    needs = (ACTOR_BYTES + VECTORS_PER_ACTOR * model_bytes) / 1e9
    raise CapacityError(
        f"{plan.count} actors of {each} and {needs:.1f} GB each do not fit: the cluster has {cluster.cpus:g} CPUs, "
        f"{cluster.gpus:g} GPUs and {cluster.memory_bytes / 1e9:.1f} GB; {fits} would fit. {hint}"
    )
