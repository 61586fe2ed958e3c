"""Sends the work items of one round to a pool's actors, and handles those that fail."""

import logging
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import ray

from fednar_ray.core.errors import RunFailed
from fednar_ray.core.file_rows import identify_machine
from fednar_ray.core.messages import Broadcast, ClientsLost, EvalParams, GroupTask, ScoringTask, TermTask
from fednar_ray.execution.failure_policy import Drop, Failure, FailureKind, FailurePolicy, Retry, RoundFailures, Split
from fednar_ray.execution.queue import Call, CallQueue
from fednar_ray.execution.slots import Slot
from fednar_ray.secure.messages import MaskedBroadcast, UnmaskRequest, UnmaskTask

log = logging.getLogger("fednar_ray")

WITHIN_CALL_BYTES = 96_000  # Ray carries up to 100 KB within a call, which then need not wait for the object store


class Stream(Protocol):
    """The calls of one round in a pool of actors."""

    queue: CallQueue[Any]

    def send(self, slot: Slot, work: Any) -> Any:
        """Calls the slot's actor, and returns the reference of its result."""

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
        tasks: The groups, in dispatch order; with ``train`` also several groups of one term.
        slots: For each task the slot that must or should take it, or None.
        policy: Decides what follows a failed call.
    """

    def __init__(
        self,
        method: Literal["train", "measure", "train_masked"],
        broadcast: Broadcast | MaskedBroadcast,
        tasks: Sequence[GroupTask | TermTask],
        slots: Sequence[int | None],
        policy: FailurePolicy,
    ) -> None:
        self.queue: CallQueue[GroupTask | TermTask] = CallQueue(tasks, slots)
        self._method, self._broadcast = method, put_if_large(broadcast)
        self._machine, self._sent = identify_machine(), set[int]()  # the clients that calls have been sent for
        self._failures = RoundFailures(policy, broadcast.round_index, sum(len(task.client_ids) for task in tasks))

    def send(self, slot: Slot, work: GroupTask | TermTask) -> Any:
        """Calls the slot's actor, and returns the reference of its result.

        Only the first call for a client may write to the driver's file, since an actor that was given up may still do.
        """
        assert slot.info is not None
        opens_files = slot.info.machine is not None and slot.info.machine == self._machine
        if not opens_files or not self._sent.isdisjoint(work.client_ids):
            work = work.without_files()
        self._sent.update(work.client_ids)
        method = "train_term" if isinstance(work, TermTask) else self._method
        return getattr(slot.actor, method).remote(self._broadcast, work)

    def handle_failure(self, call: Call[GroupTask | TermTask], kind: FailureKind, reason: str) -> None:
        """Carries out the policy's decision. Raises RoundAborted if too few clients remain.

        A term's groups are first trained one by one, since only then is it known which of them failed.
        """
        if isinstance(call.work, TermTask):
            self._failures.log_term(call.work.client_ids, reason)
            self.queue.split(call, attempts=0)
            return
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

    def send(self, slot: Slot, work: ScoringTask) -> Any:
        """Calls the slot's actor, and returns the reference of its result."""
        return slot.actor.score.remote(self._eval_params, work)

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

    def send(self, slot: Slot, work: UnmaskTask) -> Any:
        """Calls the slot's actor, and returns the reference of its result."""
        return slot.actor.reveal.remote(self._request, work)

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
