"""Cohorts one after the other in the driver's own process: the oracle that the other placements must equal."""

from collections.abc import Iterator, Sequence

from fednar_ray.evaluation import Scorer
from fednar_ray.execution.places import ActorPlace
from fednar_ray.local_training import CohortTrainer
from fednar_ray.messages import Broadcast, CohortTask, CohortUpdate, Readout, Scores, ScoringTask


class SerialPool:
    """A pool of none: the driver trains and scores, on its CPU."""

    def __init__(self, trainer: CohortTrainer, scorer: Scorer) -> None:
        self._trainer, self._scorer = trainer, scorer

    def train(self, broadcast: Broadcast, tasks: Sequence[CohortTask]) -> Iterator[CohortUpdate]:
        """The updates of ``tasks``, in their order."""
        return (self._trainer.train(broadcast, task) for task in tasks)

    def score(self, readout: Readout, tasks: Sequence[ScoringTask]) -> Iterator[Scores]:
        """The scores of ``tasks``, in their order."""
        return (self._scorer.score(readout, task) for task in tasks)

    def places(self) -> list[ActorPlace]:
        """No actor lives anywhere."""
        return []

    def close(self) -> None:
        """Nothing is held."""
