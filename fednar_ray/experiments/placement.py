"""Where a prepared run trains: client group width, placement and actors, resolved and at work."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from fednar_ray.data.files import FederationOfFiles
from fednar_ray.execution.actor_pool import ActorPool
from fednar_ray.execution.capacity import (
    ActorPlan,
    Footprint,
    choose_placement,
    plan_dedicated,
    plan_pooled,
)
from fednar_ray.execution.failure_policy import FailurePolicy
from fednar_ray.execution.gpu_memory import estimate_gpu_bytes
from fednar_ray.execution.pool import ExecutionPool
from fednar_ray.execution.serial import SerialPool
from fednar_ray.execution.session import RaySession
from fednar_ray.execution.silos import plan_silos
from fednar_ray.experiments.prepare import Prepared, check_model_and_rule
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.evaluation import Scorer
from fednar_ray.federated.vectorization import CPU, GPU, group_size
from fednar_ray.models.tasks import TASKS
from fednar_ray.tracking.tags import ACTORS_TAG, PLACEMENT_TAG, VECTORIZE_TAG

CPU_DEVICE = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionPlan:
    """What ``auto`` came to."""

    placement: str  # serial, pooled or dedicated
    width: int  # C
    actors: ActorPlan | None  # None: the driver itself trains

    def tags(self) -> dict[str, str]:
        """For the run's record."""
        return {
            PLACEMENT_TAG: self.placement,
            ACTORS_TAG: str(self.actors.count if self.actors else 0),
            VECTORIZE_TAG: str(self.width),
        }


def resolve(prepared: Prepared, session: RaySession) -> ExecutionPlan:
    """Placement, width and actors for the session's cluster. Raises BadInput's kinds where they do not fit.

    A local Ray is started in between: after a look whether this machine holds the run, and before Ray's own count.
    """
    check_model_and_rule(prepared)
    settings = prepared.experiment.execution
    if settings.placement == "serial":
        return ExecutionPlan(placement="serial", width=_width(prepared, gpu=False), actors=None)
    if session.local:
        _on_cluster(prepared, session)
        session.connect()
    return _on_cluster(prepared, session)


def _on_cluster(prepared: Prepared, session: RaySession) -> ExecutionPlan:
    settings, clients, cluster = prepared.experiment.execution, prepared.federation.clients, session.resources()
    gpu = cluster.gpus > 0 and settings.gpus_per_actor != 0
    gpu = gpu or (settings.autoscale and settings.gpus_per_actor not in ("auto", 0))  # the first GPU is yet to join
    width = 1 if settings.placement == "dedicated" else _width(prepared, gpu)
    needs = _footprint(prepared, width)
    if gpu and settings.gpus_per_actor == "auto" and not session.local:
        cluster = replace(cluster, gpu_memory_bytes=session.gpu_memory_bytes())
    placement = choose_placement(settings, width, clients, cluster, needs)
    if isinstance(prepared.federation, FederationOfFiles) and settings.silos is not None:
        actors = plan_silos(settings, prepared.federation.client_names, session.nodes(), needs)
    elif placement == "dedicated":
        actors = plan_dedicated(settings, clients, cluster, needs)
    else:
        actors = plan_pooled(settings, _groups(prepared, width), cluster, needs)
    return ExecutionPlan(placement=placement, width=width, actors=actors)


def _footprint(prepared: Prepared, width: int) -> Footprint:
    """What one actor takes, whose client groups are so wide."""
    stateful = prepared.algorithm.client.next_state is not None
    activations = prepared.traits.activation_bytes
    takes = estimate_gpu_bytes(prepared.model_bytes, width, _batch_size(prepared), activations, stateful=stateful)
    return Footprint(model_bytes=prepared.model_bytes, gpu_bytes=takes)


def _batch_size(prepared: Prepared) -> int:
    """B, or the largest client's examples where these are fewer."""
    return min(prepared.experiment.federation.batch_size, int(prepared.federation.shards.sizes.max()))


def _width(prepared: Prepared, gpu: bool) -> int:
    wanted = prepared.experiment.execution.vectorize
    if prepared.traits.alone_because is not None or prepared.experiment.execution.silos is not None:
        return 1
    if wanted != "auto":
        return wanted
    return group_size(prepared.traits, prepared.clients_per_round, _batch_size(prepared), GPU if gpu else CPU)


def _groups(prepared: Prepared, width: int) -> int:
    """How many client groups a round has."""
    return -(-prepared.clients_per_round // width)


class SerialTrainer:
    """The driver's own trainer, which runs of the same data and model may share."""

    def __init__(self, prepared: Prepared) -> None:
        self._shards, self._splits = prepared.federation.loaded()
        self._trainer = GroupTrainer(prepared.training_plan(), self._shards, CPU_DEVICE)

    def pool(self, prepared: Prepared, warm_up: tuple[int, ...] = ()) -> SerialPool:
        """For one run; no other may be under way. ``warm_up``: the clients that the pool warms up with when asked."""
        self._trainer.adopt(prepared.training_plan())
        task, offsets = TASKS[prepared.federation.task], prepared.federation.split_offsets()
        seed, changed = prepared.experiment.seed, prepared.traits.changed_buffers
        scorer = Scorer(prepared.model, self._shards, self._splits, CPU_DEVICE, task, offsets, seed, changed)
        return SerialPool(self._trainer, scorer, FailurePolicy.from_settings(prepared.experiment.execution), warm_up)


@contextmanager
def place(
    prepared: Prepared, resolved: ExecutionPlan, session: RaySession, bench: SerialTrainer | None = None
) -> Iterator[ExecutionPool]:
    """A pool at work; a serial one on ``bench``, where there is one."""
    federation, plan, settings = prepared.federation, prepared.training_plan(), prepared.experiment.execution
    warm_up = _like_a_group(prepared, resolved.width)
    if resolved.actors is None:
        yield (bench or SerialTrainer(prepared)).pool(prepared, warm_up)
        return
    if resolved.placement == "dedicated":
        pool = ActorPool.dedicated(session, resolved.actors, settings, plan, federation)
    else:
        pool = ActorPool.pooled(session, resolved.actors, settings, plan, federation, warm_up)
    with closing(pool):
        yield pool


def _like_a_group(prepared: Prepared, width: int) -> tuple[int, ...]:
    """As many clients as a round's first client group has, those with most examples."""
    count = -(-prepared.clients_per_round // _groups(prepared, width))
    return tuple(np.argsort(-prepared.federation.shards.sizes, kind="stable")[:count].tolist())
