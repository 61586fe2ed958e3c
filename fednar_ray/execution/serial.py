"""Client groups one after the other in the driver's own process: the oracle that the other placements must equal."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from fednar_ray.core.errors import RunFailed
from fednar_ray.core.exits import exits_as_errors
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
from fednar_ray.execution.actor_info import ActorInfo
from fednar_ray.execution.failure_policy import Decision, FailurePolicy, FailureTally, kind_of, reason_of
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.evaluation import Scorer

Answer = TypeVar("Answer", GroupUpdate, ClientMetrics)


class SerialPool:
    """A pool of none: the driver trains and scores, on its CPU."""

    def __init__(
        self, trainer: GroupTrainer, scorer: Scorer, tolerance: FailurePolicy, warm_up: tuple[int, ...] = ()
    ) -> None:
        self._trainer, self._scorer, self._tolerance, self._warm_up = trainer, scorer, tolerance, warm_up

    def wait_until_ready(self) -> None:
        """Warm up, so that the first round takes as long as the others."""
        self._trainer.warm_up(self._warm_up)

    def train(self, broadcast: Broadcast, tasks: Sequence[GroupTask]) -> Iterator[GroupUpdate | ClientsLost]:
        """The updates of ``tasks``, in their order."""
        return self._each(self._trainer.train, broadcast, tasks)

    def measure(self, broadcast: Broadcast, tasks: Sequence[GroupTask]) -> Iterator[ClientMetrics | ClientsLost]:
        """The figures of ``tasks``, in their order."""
        return self._each(self._trainer.measure, broadcast, tasks)

    def _each(
        self, work: Callable[[Broadcast, GroupTask], Answer], broadcast: Broadcast, tasks: Sequence[GroupTask]
    ) -> Iterator[Answer | ClientsLost]:
        ledger = FailureTally(self._tolerance, broadcast.round_index, sum(len(task.client_ids) for task in tasks))
        for task in tasks:
            yield from _tried(lambda task: work(broadcast, task), task, ledger, 0)

    def score(self, eval_params: EvalParams, tasks: Sequence[ScoringTask]) -> Iterator[Scores | MetricSums]:
        """The scores of ``tasks``, in their order."""
        for task in tasks:
            try:
                with exits_as_errors():
                    scores = self._scorer.score(eval_params, task)
            except Exception as error:
                text = f"round {eval_params.round_index}: {task.split} cannot be scored: {reason_of(error)}"
                raise RunFailed(text) from error
            yield scores

    def actor_infos(self) -> list[ActorInfo]:
        """No actor lives anywhere."""
        return []

    def close(self) -> None:
        """Nothing is held."""


def _tried(
    work: Callable[[GroupTask], Answer], task: GroupTask, ledger: FailureTally, attempts: int
) -> Iterator[Answer | ClientsLost]:
    """The client group's answer; of its halves, where it fails; or its loss."""
    while True:
        try:
            with exits_as_errors():
                answer = work(task)
        except RunFailed:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a client's model raises
            kind, reason = kind_of(error), reason_of(error)
        else:
            yield answer
            return
        attempts += 1
        decision = ledger.judge(task.client_ids, kind, reason, attempts)
        if decision is Decision.SPLIT:
            for half in task.halves():
                yield from _tried(work, half, ledger, ledger.attempts_of_a_half(kind))
            return
        if decision is Decision.DROP:
            yield ClientsLost(client_ids=task.client_ids, reason=reason)
            return
