"""Sends the work items of one round to a pool's actors, and handles those that fail."""

import logging
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import ray

from fednar_ray.core.errors import RunFailed
from fednar_ray.core.messages import Broadcast, ClientsLost, EvalParams, GroupTask, ScoringTask
from fednar_ray.execution.failure_policy import Drop, Failure, FailureKind, FailurePolicy, Retry, RoundFailures, Split
from fednar_ray.execution.queue import Call, CallQueue
from fednar_ray.secure.messages import MaskedBroadcast, UnmaskRequest, UnmaskTask

log = logging.getLogger("fednar_ray")

WITHIN_CALL_BYTES = 96_000  # Ray carries up to 100 KB within a call, which then need not wait for the object store


class Stream(Protocol):
    """The calls of one round in a pool of actors."""

    queue: CallQueue[Any]

    def send(self, actor: Any, work: Any) -> Any:
        """Calls the actor, and returns the reference of its result."""

    def handle_failure(self, call: Call[Any], kind: FailureKind, reason: str) -> None:
        """Requeues a failed call, splits it, or replaces its result by the lost clients.

        Raises:
            RunFailed: The run cannot continue without the result.
        """


class GroupStream:
    """Client groups that are trained, or measured before they are trained.

    Args:
        method: The method of the actors that is called.
        broadcast: What all groups of the round receive.
        tasks: The groups, in dispatch order.
        slots: For each task the slot that must or should take it, or None.
        policy: Decides what follows a failed call.
    """

    def __init__(
        self,
        method: Literal["train", "measure", "train_masked"],
        broadcast: Broadcast | MaskedBroadcast,
        tasks: Sequence[GroupTask],
        slots: Sequence[int | None],
        policy: FailurePolicy,
    ) -> None:
        self.queue: CallQueue[GroupTask] = CallQueue(tasks, slots)
        self._method, self._broadcast = method, put_if_large(broadcast)
        self._failures = RoundFailures(policy, broadcast.round_index, sum(len(task.client_ids) for task in tasks))

    def send(self, actor: Any, work: GroupTask) -> Any:
        """Calls the actor, and returns the reference of its result."""
        return getattr(actor, self._method).remote(self._broadcast, work)

    def handle_failure(self, call: Call[GroupTask], kind: FailureKind, reason: str) -> None:
        """Carries out the policy's decision. Raises RoundAborted if too few clients remain."""
        failure = Failure(client_ids=call.work.client_ids, kind=kind, reason=reason, attempts=call.attempts)
        match self._failures.handle(failure):
            case Retry():
                self.queue.requeue(call)
            case Split(attempts):
                self.queue.split(call, attempts)
            case Drop():
                self.queue.arrive(call, ClientsLost(client_ids=call.work.client_ids, reason=reason))


class ScoringStream:
    """Blocks of examples that are scored. A block that cannot be scored ends the run."""

    def __init__(
        self, eval_params: EvalParams, tasks: Sequence[ScoringTask], slots: Sequence[int | None], policy: FailurePolicy
    ) -> None:
        self.queue: CallQueue[ScoringTask] = CallQueue(tasks, slots)
        self._eval_params, self._round_index, self._policy = put_if_large(eval_params), eval_params.round_index, policy

    def send(self, actor: Any, work: ScoringTask) -> Any:
        """Calls the actor, and returns the reference of its result."""
        return actor.score.remote(self._eval_params, work)

    def handle_failure(self, call: Call[ScoringTask], kind: FailureKind, reason: str) -> None:
        """Requeues the call. Raises RunFailed after the last retry."""
        if call.attempts > self._policy.retries:
            raise RunFailed(f"round {self._round_index}: {call.work.split} cannot be scored: {reason}")
        log.warning("round %d, scoring %s: %s; retrying", self._round_index, call.work.split, reason)
        self.queue.requeue(call)


class RevealStream:
    """Clients that reveal shares. Those that are lost are waited for only if too few others can answer.

    Args:
        request: What all of them receive.
        tasks: The clients.
        slots: The slot of each.
        policy: How often a call is retried.
    """

    def __init__(
        self, request: UnmaskRequest, tasks: Sequence[UnmaskTask], slots: Sequence[int], policy: FailurePolicy
    ) -> None:
        self.queue: CallQueue[UnmaskTask] = CallQueue(tasks, slots)
        self._request, self._policy, self._remaining = request, policy, len(tasks)

    def send(self, actor: Any, work: UnmaskTask) -> Any:
        """Calls the actor, and returns the reference of its result."""
        return actor.reveal.remote(self._request, work)

    def handle_failure(self, call: Call[UnmaskTask], kind: FailureKind, reason: str) -> None:
        """Leaves the client out, unless its answer is needed: then the call is retried."""
        is_needed = self._remaining <= self._request.attempt.threshold
        if is_needed and call.attempts <= self._policy.retries:
            self.queue.requeue(call)
            return
        self._remaining -= 1
        self.queue.arrive(call, ClientsLost(client_ids=call.work.client_ids, reason=reason))


def put_if_large(message: Broadcast | MaskedBroadcast | EvalParams) -> Any:
    """Returns a small message itself, or puts a large one into the object store and returns its reference."""
    return message if message.nbytes <= WITHIN_CALL_BYTES else ray.put(message)
