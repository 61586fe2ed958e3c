"""Where clients train, as the round loop sees it."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from fednar_ray.core.messages import (
    Broadcast,
    ClientMetrics,
    ClientsLost,
    EvalParams,
    GroupTask,
    GroupUpdate,
    Scores,
    ScoringTask,
)
from fednar_ray.core.metric_sums import MetricSums


class ClientPool(Protocol):
    """Trains client groups and evaluates examples, in this process or on actors.

    Results are in the order of the tasks. If a group fails, they contain the results of its halves instead, or the
    clients that were lost.
    """

    def train(self, broadcast: Broadcast, tasks: Sequence[GroupTask]) -> Iterator[GroupUpdate | ClientsLost]:
        """Yields the update of each task, or one of several tasks of a term."""

    def measure(self, broadcast: Broadcast, tasks: Sequence[GroupTask]) -> Iterator[ClientMetrics | ClientsLost]:
        """Trains each task and yields its metrics. The updates are held for ``train`` while there is memory."""

    def score(self, eval_params: EvalParams, tasks: Sequence[ScoringTask]) -> Iterator[Scores | MetricSums]:
        """Yields the scores of each task, or their sums."""

    def take_seconds_ahead(self) -> float:
        """Returns the time that clients took before their round asked for them, since the last call."""

    def close(self) -> None:
        """Releases what the pool holds."""
