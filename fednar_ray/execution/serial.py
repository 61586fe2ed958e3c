"""Cohorts one after the other in the driver's own process: the oracle that the other placements must equal."""

from collections.abc import Iterator, Sequence

import torch

from fednar_ray.data.federation import Shards
from fednar_ray.execution.places import ActorPlace
from fednar_ray.local_training import CohortTrainer, TrainingPlan
from fednar_ray.messages import Broadcast, CohortTask, CohortUpdate


class SerialPool:
    """A pool of none: the driver trains, on its CPU."""

    def __init__(self, plan: TrainingPlan, shards: Shards) -> None:
        self._trainer = CohortTrainer(plan, shards, torch.device("cpu"))

    def train(self, broadcast: Broadcast, tasks: Sequence[CohortTask]) -> Iterator[CohortUpdate]:
        """The updates of ``tasks``, in their order."""
        return (self._trainer.train(broadcast, task) for task in tasks)

    def places(self) -> list[ActorPlace]:
        """No actor lives anywhere."""
        return []

    def close(self) -> None:
        """Nothing is held."""
