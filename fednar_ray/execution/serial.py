"""Trains client groups one after another in this process. All other placements give the same results."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from fednar_ray.core.errors import RunFailed, check_device_works, is_of_memory
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
from fednar_ray.execution.failure_policy import (
    Drop,
    Failure,
    FailurePolicy,
    Retry,
    RoundFailures,
    Split,
    classify_error,
    describe_error,
)
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.scoring import Scorer
from fednar_ray.secure.messages import MaskedBroadcast, MaskedUpdate, Withheld

Received = TypeVar("Received", Broadcast, MaskedBroadcast)
Trained = TypeVar("Trained", GroupUpdate, ClientMetrics, MaskedUpdate | Withheld)


class SerialPool:
    """Trains and scores in this process, without Ray: that of the driver, of a trial, or of a pack of trials.

    A process that cannot use its GPU any more must end. So its methods raise DeviceError then, and retry nothing.

    Attributes:
        has_neighbors: Whether the process trains other runs as well. If it runs out of memory then, that error is
            raised, since a run of its own might not.
    """

    def __init__(
        self, trainer: GroupTrainer, scorer: Scorer, policy: FailurePolicy, warm_up: tuple[int, ...] = ()
    ) -> None:
        self.trainer = trainer
        self._scorer, self._policy, self._warm_up = scorer, policy, warm_up
        self.has_neighbors = False

    def wait_until_ready(self, *, first: bool = False) -> None:
        """Warms up, so that the first round takes no longer than the others. Does nothing if ``first`` is true."""
        if not first:
            self.trainer.warm_up(self._warm_up)

    def list_actors(self) -> list[ActorInfo]:
        """Returns an empty list, since there are no actors."""
        return []

    def train(self, broadcast: Broadcast, tasks: Sequence[GroupTask]) -> Iterator[GroupUpdate | ClientsLost]:
        """Yields the updates of ``tasks``, in their order."""
        return self._run(self.trainer.train, broadcast, tasks)

    def measure(self, broadcast: Broadcast, tasks: Sequence[GroupTask]) -> Iterator[ClientMetrics | ClientsLost]:
        """Yields the metrics of ``tasks``, in their order."""
        return self._run(self.trainer.measure, broadcast, tasks)

    def score(self, eval_params: EvalParams, tasks: Sequence[ScoringTask]) -> Iterator[Scores | MetricSums]:
        """Yields the scores of ``tasks``, in their order.

        Raises:
            RunFailed: The model cannot score a block of examples.
        """
        for task in tasks:
            try:
                with exits_as_errors():
                    scores = self._scorer.score(eval_params, task)
            except Exception as error:
                self._check_process(error)
                text = f"round {eval_params.round_index}: {task.split} cannot be scored: {describe_error(error)}"
                raise RunFailed(text) from error
            yield scores

    def take_seconds_ahead(self) -> float:
        """Returns the time that clients took before their round asked for them, since the last call."""
        return self.trainer.held.take_seconds_ahead()

    def close(self) -> None:
        """Does nothing, since the pool holds nothing that must be released."""

    def _run(
        self, method: Callable[[Received, GroupTask], Trained], broadcast: Received, tasks: Sequence[GroupTask]
    ) -> Iterator[Trained | ClientsLost]:
        failures = RoundFailures(self._policy, broadcast.round_index, sum(len(task.client_ids) for task in tasks))
        for task in tasks:
            yield from self._run_with_retries(partial(method, broadcast), task, failures, attempts=0)

    def _run_with_retries(
        self, train: Callable[[GroupTask], Trained], task: GroupTask, failures: RoundFailures, *, attempts: int
    ) -> Iterator[Trained | ClientsLost]:
        """Yields the result of a client group, or of its halves if it fails, or the client that was lost."""
        while True:
            try:
                with exits_as_errors():
                    result = train(task)
            except RunFailed:
                raise
            except Exception as error:  # noqa: BLE001 - a client's model may raise anything
                self._check_process(error)
                attempts += 1
                kind, reason = classify_error(error), describe_error(error)
            else:
                yield result
                return
            match failures.handle(Failure(client_ids=task.client_ids, kind=kind, reason=reason, attempts=attempts)):
                case Retry():
                    continue
                case Split(inherited):
                    for half in task.halves():
                        yield from self._run_with_retries(train, half, failures, attempts=inherited)
                case Drop():
                    yield ClientsLost(client_ids=task.client_ids, reason=reason)
            return

    def _check_process(self, error: Exception) -> None:
        """Raises what no retry can mend: the GPU has failed, or memory is too small for all runs of this process."""
        check_device_works(error)
        if self.has_neighbors and is_of_memory(error):
            raise error
