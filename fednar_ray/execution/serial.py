"""Trains client groups one after another in the driver's process. All other placements give the same results."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from fednar_ray.core.errors import RunFailed, SiloRefused
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
from fednar_ray.secure.messages import MaskedBroadcast, MaskedUpdate, Reveal, UnmaskRequest, UnmaskTask, Withheld

if TYPE_CHECKING:  # other runs import no ``cryptography``
    from fednar_ray.federated.masking_trainer import MaskingTrainer

Received = TypeVar("Received", Broadcast, MaskedBroadcast)
Trained = TypeVar("Trained", GroupUpdate, ClientMetrics, MaskedUpdate | Withheld, Reveal)


class SerialPool:
    """Trains and scores in the driver's process, on its CPU, without Ray."""

    def __init__(
        self,
        trainer: GroupTrainer,
        scorer: Scorer,
        policy: FailurePolicy,
        warm_up: tuple[int, ...] = (),
        masking: "MaskingTrainer | None" = None,
    ) -> None:
        self.trainer = trainer
        self._scorer, self._policy, self._warm_up, self._masking = scorer, policy, warm_up, masking

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

    @property
    def run(self) -> str:
        """What the clients who mask their updates call the run."""
        return self._get_masking().plan.run

    def list_public_keys(self, client_ids: Sequence[int]) -> Mapping[int, bytes]:
        """Returns the public keys of the clients."""
        return {client_id: self._get_masking().get_public_key(client_id) for client_id in client_ids}

    def train_masked(
        self, request: MaskedBroadcast, tasks: Sequence[GroupTask]
    ) -> Iterator[MaskedUpdate | Withheld | ClientsLost]:
        """Yields the masked updates of ``tasks``, in their order."""
        return self._run(self._get_masking().train, request, tasks)

    def reveal(self, request: UnmaskRequest, tasks: Sequence[UnmaskTask]) -> Iterator[Reveal | ClientsLost]:
        """Yields the shares of ``tasks``, in their order."""
        for task in tasks:
            try:
                answer: Reveal | ClientsLost = self._get_masking().reveal(request, task)
            except SiloRefused as error:
                answer = ClientsLost(client_ids=task.client_ids, reason=describe_error(error))
            yield answer

    def _get_masking(self) -> "MaskingTrainer":
        assert self._masking is not None, "the clients do not mask their updates"
        return self._masking

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
                text = f"round {eval_params.round_index}: {task.split} cannot be scored: {describe_error(error)}"
                raise RunFailed(text) from error
            yield scores

    def take_seconds_ahead(self) -> float:
        """Returns the time that clients took before their round asked for them, since the last call."""
        return self.trainer.held.take_seconds_ahead()

    def close(self) -> None:
        """Deletes the keys of clients that mask their updates. Nothing else must be released."""
        if self._masking is not None:
            self._masking.forget()

    def _run(
        self, method: Callable[[Received, GroupTask], Trained], broadcast: Received, tasks: Sequence[GroupTask]
    ) -> Iterator[Trained | ClientsLost]:
        failures = RoundFailures(self._policy, broadcast.round_index, sum(len(task.client_ids) for task in tasks))
        for task in tasks:
            yield from _run_with_retries(lambda task: method(broadcast, task), task, failures, attempts=0)


def _run_with_retries(
    train: Callable[[GroupTask], Trained], task: GroupTask, failures: RoundFailures, *, attempts: int
) -> Iterator[Trained | ClientsLost]:
    """Yields the result of a client group, or of its halves if it fails, or the client that was lost."""
    while True:
        try:
            with exits_as_errors():
                result = train(task)
        except RunFailed:
            raise
        except Exception as error:  # noqa: BLE001 - a client's model may raise anything
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
                    yield from _run_with_retries(train, half, failures, attempts=inherited)
            case Drop():
                yield ClientsLost(client_ids=task.client_ids, reason=reason)
        return
