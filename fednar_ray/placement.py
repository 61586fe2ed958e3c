"""Where a prepared run trains: cohort width, placement and actors, resolved and at work."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from fednar_ray.cohorts import CPU, GPU, cohort_width
from fednar_ray.evaluation import Scorer
from fednar_ray.execution.capacity import ActorPlan, ClusterResources, choose_placement, plan_dedicated, plan_pooled
from fednar_ray.execution.failures import Tolerance
from fednar_ray.execution.ray_pool import RayPool
from fednar_ray.execution.ray_session import RaySession
from fednar_ray.execution.serial import SerialPool
from fednar_ray.local_training import CohortTrainer
from fednar_ray.preparation import Prepared
from fednar_ray.tasks import TASKS

CPU_DEVICE = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What ``auto`` came to."""

    placement: str  # serial, pooled or dedicated
    width: int  # C
    actors: ActorPlan | None  # None: the driver itself trains

    def tags(self) -> dict[str, str]:
        """For the run's record."""
        return {
            "fednar.placement": self.placement,
            "fednar.actors": str(self.actors.count if self.actors else 0),
            "fednar.cohort_width": str(self.width),
        }


def resolve(prepared: Prepared, session: RaySession) -> Resolved:
    """Placement, width and actors for the session's cluster. Raises CapacityError where they do not fit.

    A local Ray is started in between: after a look whether this machine holds the run, and before Ray's own count.
    """
    settings = prepared.experiment.execution
    if settings.placement == "serial":
        return Resolved(placement="serial", width=_width(prepared, gpu=False), actors=None)
    if session.local:
        _on_cluster(prepared, session.resources())
        session.connect()
    return _on_cluster(prepared, session.resources())


def _on_cluster(prepared: Prepared, cluster: ClusterResources) -> Resolved:
    settings, clients = prepared.experiment.execution, prepared.federation.clients
    gpu = cluster.gpus > 0 and settings.gpus_per_actor != 0
    width = 1 if settings.placement == "dedicated" else _width(prepared, gpu)
    placement = choose_placement(settings, width, clients, cluster, prepared.model_bytes)
    if placement == "dedicated":
        actors = plan_dedicated(settings, clients, cluster, prepared.model_bytes)
    else:
        actors = plan_pooled(settings, _cohorts(prepared, width), cluster, prepared.model_bytes)
    return Resolved(placement=placement, width=width, actors=actors)


def _width(prepared: Prepared, gpu: bool) -> int:
    wanted = prepared.experiment.execution.cohort_width
    if prepared.traits.alone_because is not None:
        return 1
    if wanted != "auto":
        return wanted
    batch_size = min(prepared.experiment.federation.batch_size, int(prepared.federation.shards.sizes.max()))
    return cohort_width(prepared.traits, prepared.clients_per_round, batch_size, GPU if gpu else CPU)


def _cohorts(prepared: Prepared, width: int) -> int:
    """How many cohorts a round has."""
    return -(-prepared.clients_per_round // width)


class SerialBench:
    """The driver's own trainer, which runs of the same data and model may share."""

    def __init__(self, prepared: Prepared) -> None:
        self._trainer = CohortTrainer(prepared.training_plan(), prepared.federation.shards, CPU_DEVICE)

    def pool(self, prepared: Prepared) -> SerialPool:
        """For one run; no other may be under way."""
        self._trainer.adopt(prepared.training_plan())
        federation = prepared.federation
        task = TASKS[federation.task]
        scorer = Scorer(prepared.model, federation.shards, federation.splits(), CPU_DEVICE, task)
        return SerialPool(self._trainer, scorer, Tolerance.of(prepared.experiment.execution))


@contextmanager
def place(
    prepared: Prepared, resolved: Resolved, session: RaySession, bench: SerialBench | None = None
) -> Iterator[SerialPool | RayPool]:
    """A pool at work; a serial one on ``bench``, where there is one."""
    federation, plan, settings = prepared.federation, prepared.training_plan(), prepared.experiment.execution
    if resolved.actors is None:
        yield (bench or SerialBench(prepared)).pool(prepared)
        return
    if resolved.placement == "dedicated":
        pool = RayPool.dedicated(session, resolved.actors, settings, plan, federation)
    else:
        warm_up = _like_a_cohort(prepared, resolved.width)
        pool = RayPool.pooled(session, resolved.actors, settings, plan, federation, warm_up)
    with closing(pool):
        yield pool


def _like_a_cohort(prepared: Prepared, width: int) -> tuple[int, ...]:
    """As many clients as a round's first cohort has, those with most examples."""
    count = -(-prepared.clients_per_round // _cohorts(prepared, width))
    return tuple(np.argsort(-prepared.federation.shards.sizes, kind="stable")[:count].tolist())
