"""Client groups on Ray actors: ``pooled`` (any actor takes any client group) and ``dedicated`` (an actor a client).

Actors are disposable: whatever happens to one, its calls go elsewhere and another takes its place.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from fednar_ray.config import ExecutionSettings
from fednar_ray.core.errors import RunFailed
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
from fednar_ray.data.federation import Federation
from fednar_ray.execution.actor_info import ActorInfo
from fednar_ray.execution.capacity import ActorPlan
from fednar_ray.execution.failure_policy import Decision, FailureKind, FailurePolicy, FailureTally, kind_of, reason_of
from fednar_ray.execution.queue import Call, CallQueue, Task
from fednar_ray.execution.session import RaySession
from fednar_ray.federated.client_trainer import TrainingPlan

log = logging.getLogger("fednar_ray")

OUTSTANDING_PER_ACTOR = 2  # one trains, one waits: an actor never idles between client groups
WITHIN_CALL_BYTES = 96_000
STARTS = 3  # that may fail one after the other

Prepare = Callable[[int, Any], Any]
"""(slot, actor) → the call that makes the actor ready."""


@dataclass(slots=True)
class _Slot:
    """An actor's place in a pool, and who fills it."""

    actor: Any
    starting: Any  # the call that makes it ready; None: it is
    failed_starts: int = 0
    starting_since: float = field(default_factory=time.monotonic)
    calls: deque[tuple[Any, Call[Any]]] = field(default_factory=deque)  # under way, the oldest first
    since: float = 0.0  # the oldest began then, or earlier

    @property
    def has_room(self) -> bool:
        return self.starting is None and len(self.calls) < OUTSTANDING_PER_ACTOR

    def has_room_for(self, call: Call[Any]) -> bool:
        return self.has_room and not (self.calls and (call.alone or self.calls[0][1].alone))


class ActorPool:
    """Actors that train one run's client groups, and score. They start and warm up while the driver goes on."""

    def __init__(
        self, session: RaySession, plan: ActorPlan, settings: ExecutionSettings, prepare: Prepare, *, dedicated: bool
    ) -> None:
        self._session, self._plan, self._prepare, self._dedicated = session, plan, prepare, dedicated
        self._tolerance, self._settings = FailurePolicy.from_settings(settings), settings
        self._slots = [_Slot(actor, prepare(i, actor)) for i, actor in enumerate(session.lease(plan))]
        self._bare_since = time.monotonic()  # since when no actor was ready
        self._holders: dict[
            tuple[int, ...], tuple[int, Any]
        ] = {}  # measured client group → slot and actor that hold it

    @classmethod
    def pooled(
        cls,
        session: RaySession,
        actors: ActorPlan,
        settings: ExecutionSettings,
        plan: TrainingPlan,
        federation: Federation,
        warm_up: Sequence[int],
    ) -> "ActorPool":
        """Each actor hosts any client; shards lie once in each node's shared memory."""
        session.connect()
        shared = [ray.put(value) for value in (plan, *federation.loaded())]
        last = tuple(warm_up), federation.split_offsets()
        return cls(session, actors, settings, lambda _, actor: actor.prepare.remote(*shared, *last), dedicated=False)

    @classmethod
    def dedicated(
        cls,
        session: RaySession,
        actors: ActorPlan,
        settings: ExecutionSettings,
        plan: TrainingPlan,
        federation: Federation,
    ) -> "ActorPool":
        """Exactly one actor a client, which gets its own shard and no other, or reads it from its file."""
        session.connect()
        shared, splits = ray.put(plan), ray.put(federation.shared_splits())

        def prepare(client_id: int, actor: Any) -> Any:
            return actor.prepare.remote(shared, federation.held_by(client_id), splits, (client_id,))

        return cls(session, actors, settings, prepare, dedicated=True)

    def wait_until_ready(self) -> None:
        """Wait until all actors have started and warmed up, or one of a pool that may grow; or until it is too late."""
        enough = any if self._plan.growing and not self._dedicated else all
        while not enough(slot.starting is None for slot in self._slots) and self._starts_in_time():
            self._wait()

    def actor_infos(self) -> list[ActorInfo]:
        """Where the actors live, by slot; waits until they are ready. Those that do not start in time are left out."""
        self.wait_until_ready()
        ready = [slot.actor for slot in self._slots if slot.starting is None]
        places: list[ActorInfo] = ray.get([actor.info.remote() for actor in ready])
        return places

    def train(self, broadcast: Broadcast, tasks: Sequence[GroupTask]) -> Iterator[GroupUpdate | ClientsLost]:
        """The updates of ``tasks`` in their order; tasks are sent in that order to whichever actor is free."""
        return self._groups(broadcast, tasks, lambda actor: actor.train)

    def measure(self, broadcast: Broadcast, tasks: Sequence[GroupTask]) -> Iterator[ClientMetrics | ClientsLost]:
        """The figures of ``tasks``, in their order; the actors hold the rest for ``train``."""
        self._holders.clear()
        return self._groups(broadcast, tasks, lambda actor: actor.measure, hold=True)

    def score(self, eval_params: EvalParams, tasks: Sequence[ScoringTask]) -> Iterator[Scores | MetricSums]:
        """The scores of ``tasks``, in their order; a client's own examples are scored where they lie."""
        slots = [task.client_id if self._dedicated else None for task in tasks]
        shared, queue = _shared(eval_params), CallQueue(tasks, slots)

        def judge(call: Call[ScoringTask], kind: FailureKind, reason: str) -> None:
            if call.attempts > self._tolerance.retries:
                raise RunFailed(f"round {eval_params.round_index}: {call.task.split} cannot be scored: {reason}")
            log.warning("round %d, scoring %s: %s; tried again", eval_params.round_index, call.task.split, reason)
            queue.again(call)

        return self._drain(_Stream(queue, lambda actor, task: actor.score.remote(shared, task), judge))

    def _groups(
        self, broadcast: Broadcast, tasks: Sequence[GroupTask], method: Callable[[Any], Any], *, hold: bool = False
    ) -> Iterator[Any]:
        shared, queue = _shared(broadcast), CallQueue(tasks, [self._home(task) for task in tasks])
        ledger = FailureTally(self._tolerance, broadcast.round_index, sum(len(task.client_ids) for task in tasks))

        def judge(call: Call[GroupTask], kind: FailureKind, reason: str) -> None:
            match ledger.judge(call.task.client_ids, kind, reason, call.attempts):
                case Decision.RETRY:
                    queue.again(call)
                case Decision.SPLIT:
                    queue.split(call, ledger.attempts_of_a_half(kind))
                case _:
                    queue.arrive(call, ClientsLost(client_ids=call.task.client_ids, reason=reason))

        return self._drain(_Stream(queue, lambda actor, task: method(actor).remote(shared, task), judge, hold))

    def _home(self, task: GroupTask) -> int | None:
        """The slot where a client group must, or had better, train."""
        if self._dedicated:
            return task.client_ids[0]
        slot, actor = self._holders.get(task.client_ids, (None, None))
        return slot if slot is not None and self._slots[slot].actor is actor else None

    def _drain(self, stream: "_Stream[Any]") -> Iterator[Any]:
        """Results in the order of the tasks.

        At most two results an actor are outstanding, so the driver's memory does not grow with the round.
        """
        while True:
            yield from stream.queue.due()
            if not stream.queue.unfinished:
                return
            self._send_what_fits(stream)
            self._wait(stream)

    def _send_what_fits(self, stream: "_Stream[Any]") -> None:
        queue, place = stream.queue, 0
        while place < len(queue.waiting()) and any(slot.has_room for slot in self._slots):
            call = queue.waiting()[place]
            outstanding = queue.held + sum(len(slot.calls) for slot in self._slots)
            if outstanding >= OUTSTANDING_PER_ACTOR * len(self._slots) and not queue.is_due(call):
                return
            slot = self._slot_for(call)
            if slot is None:
                place += 1
                continue
            queue.sent(call)
            slot.since = slot.since if slot.calls else time.monotonic()
            slot.calls.append((stream.send(slot.actor, call.task), call))

    def _slot_for(self, call: Call[Any]) -> _Slot | None:
        """The least loaded slot that may take the call, elsewhere than where it failed if there is an elsewhere."""
        if call.slot is not None and (self._dedicated or self._slots[call.slot].starting is None):
            wanted = self._slots[call.slot]
            return wanted if wanted.has_room_for(call) else None
        ready = [(i, slot) for i, slot in enumerate(self._slots) if slot.starting is None]
        elsewhere = [slot for i, slot in ready if i not in call.avoid]
        fit = [slot for slot in elsewhere or [slot for _, slot in ready] if slot.has_room_for(call)]
        return min(fit, key=lambda slot: len(slot.calls)) if fit else None

    def _wait(self, stream: "_Stream[Any] | None" = None) -> None:
        """Until something happens: a result, a start, a loss, or a time that is over."""
        owners = {ref: i for i, slot in enumerate(self._slots) for ref, _ in slot.calls}
        owners |= {slot.starting: i for i, slot in enumerate(self._slots) if slot.starting is not None}
        ready, _ = ray.wait(list(owners), num_returns=1, timeout=self._seconds_left(stream))
        if not ready:
            self._give_up_what_is_late(stream)
        elif ready[0] is self._slots[owners[ready[0]]].starting:
            self._started(owners[ready[0]])
        else:
            assert stream is not None
            self._returned(owners[ready[0]], ready[0], stream)

    def _returned(self, index: int, ref: Any, stream: "_Stream[Any]") -> None:
        """A call is over, one way or the other."""
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, RunFailed):
                raise cause from None
            self._failed(index, ref, kind_of(cause), reason_of(cause), stream)
        except RayError as error:
            kind = FailureKind.OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else FailureKind.LOST
            # a node that was taken away is nobody's fault
            own = len(self._slots[index].calls) == 1 and not getattr(error, "preempted", False)
            self._lose(index, kind, f"{kind.value} ({type(error).__name__})", stream, charged=own)
        else:
            call = self._take(index, ref)
            stream.queue.arrive(call, result)
            if stream.hold:
                self._holders[call.task.client_ids] = index, self._slots[index].actor

    def _failed(self, index: int, ref: Any, kind: FailureKind, reason: str, stream: "_Stream[Any]") -> None:
        """A client raised; its actor lives, unless its GPU is of no more use to it."""
        if kind is FailureKind.LOST:
            self._lose(index, kind, reason, stream)
            return
        call = self._take(index, ref)
        call.attempts, call.avoid = call.attempts + 1, call.avoid | {index}
        stream.judge(call, kind, reason)

    def _take(self, index: int, ref: Any) -> Call[Any]:
        """The call of ``ref`` leaves its slot; the one behind it began no later than now."""
        slot = self._slots[index]
        place = next(i for i, (other, _) in enumerate(slot.calls) if other is ref)
        call = slot.calls[place][1]
        del slot.calls[place]
        slot.since = time.monotonic()
        return call

    def _lose(
        self, index: int, kind: FailureKind, reason: str, stream: "_Stream[Any] | None", *, charged: bool = True
    ) -> None:
        """Another actor takes the slot, and its calls go again, each alone on an actor.

        The oldest is to blame, since it was under way, unless its result was lost with the actor and the next had
        begun: ``charged`` says that this is ruled out.
        """
        calls = [call for _, call in self._slots[index].calls]
        self._refill(index)
        for call in calls:
            assert stream is not None
            call.alone = True
            if charged and call is calls[0]:
                call.attempts += 1
                stream.judge(call, kind, reason)
            else:
                stream.queue.again(call)

    def _refill(self, index: int) -> None:
        """A new actor, which starts as soon as there is room for it in the cluster."""
        ray.kill(self._slots[index].actor)
        (actor,) = self._session.new_actors(self._plan, [index])
        fresh = _Slot(actor, self._prepare(index, actor), self._slots[index].failed_starts)
        if all(slot.starting is not None for i, slot in enumerate(self._slots) if i != index):
            self._bare_since = time.monotonic()
        self._slots[index] = fresh

    def _started(self, index: int) -> None:
        """An actor is ready, or failed to start: an error of ours or of the device ends the run, a loss does not."""
        slot = self._slots[index]
        try:
            ray.get(slot.starting)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except RayError as error:
            slot.failed_starts += 1
            if slot.failed_starts >= STARTS:
                raise RunFailed(f"an actor was lost {STARTS} times while it started: {error}") from error
            self._refill(index)
        else:
            slot.starting, slot.failed_starts = None, 0

    def _seconds_left(self, stream: "_Stream[Any] | None") -> float | None:
        """Until a call is late, a client's actor could not start for too long, or nobody has been there for so long."""
        now, limit = time.monotonic(), self._settings.client_timeout_seconds
        if all(slot.starting is not None for slot in self._slots):
            return max(0.0, self._bare_since + self._settings.capacity_timeout_seconds - now)
        ends = [since + self._settings.capacity_timeout_seconds for since in self._waited_for(stream)]
        if limit is not None:
            ends.append(min((slot.since for slot in self._slots if slot.calls), default=now) + limit)
        return max(0.0, min(ends) - now) if ends else None

    def _starts_in_time(self) -> bool:
        """May an actor that is starting still be waited for?"""
        limit = time.monotonic() - self._settings.capacity_timeout_seconds
        return any(slot.starting is not None and slot.starting_since > limit for slot in self._slots)

    def _waited_for(self, stream: "_Stream[Any] | None") -> list[float]:
        """Since when those actors are starting that nobody can stand in for, or whose places are asked for."""
        if stream is None:
            return [slot.starting_since for slot in self._slots if slot.starting is not None]
        return [self._slots[call.slot].starting_since for call in self._absent(stream) if call.slot is not None]

    def _absent(self, stream: "_Stream[Any]") -> list[Call[Any]]:
        """Calls that only one actor can take, which is not there."""
        waiting = stream.queue.waiting() if self._dedicated else ()
        return [call for call in waiting if call.slot is not None and self._slots[call.slot].starting is not None]

    def _give_up_what_is_late(self, stream: "_Stream[Any] | None") -> None:
        now, limit = time.monotonic(), self._settings.client_timeout_seconds
        patience = self._settings.capacity_timeout_seconds
        if all(slot.starting is not None for slot in self._slots):
            if now - self._bare_since >= patience:
                raise RunFailed(f"no actor could start for {now - self._bare_since:.0f} s: {self._session.shortage()}")
            return
        for call in self._absent(stream) if stream is not None else ():
            assert stream is not None
            assert call.slot is not None
            if now - self._slots[call.slot].starting_since >= patience:
                stream.queue.sent(call)
                call.attempts = self._tolerance.retries + 1
                stream.judge(call, FailureKind.LOST, f"{self._called(call.slot)} has had no actor for {patience:g} s")
        for index, slot in enumerate(self._slots):
            if limit is not None and slot.calls and now - slot.since >= limit:
                self._lose(index, FailureKind.TIMED_OUT, FailureKind.TIMED_OUT.value, stream)

    def _called(self, slot: int) -> str:
        return f"silo {self._plan.pins[slot].silo}" if self._plan.pins else f"client {slot}"

    def close(self) -> None:
        """Give the actors back to the session; end those that are starting, or were left with a call."""
        for slot in self._slots:
            if slot.starting is not None or slot.calls:
                ray.kill(slot.actor)
            else:
                self._session.give_back(self._plan, [slot.actor])
        self._slots = []


@dataclass(frozen=True, slots=True)
class _Stream(Generic[Task]):
    """What becomes of one round's tasks."""

    queue: CallQueue[Task]
    send: Callable[[Any, Task], Any]
    judge: Callable[
        [Call[Task], FailureKind, str], None
    ]  # of a failed call: it waits again, or in halves; or it is lost
    hold: bool = False  # actors hold what they measured


def _shared(message: Broadcast | EvalParams) -> Any:
    """What the calls of a round share: by reference where it is large.

    Ray carries up to 100 KB within a call, which then need not wait for the object store.
    """
    return message if message.nbytes <= WITHIN_CALL_BYTES else ray.put(message)
