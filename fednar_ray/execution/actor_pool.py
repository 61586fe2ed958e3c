"""Trains client groups on Ray actors.

In a pooled placement any actor takes any client group. In a dedicated placement there is one actor per client.
Actors are disposable: when one is lost, its calls go to others and a new actor takes its slot.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError

from fednar_ray.config import ExecutionSettings
from fednar_ray.core.client_names import ClientNames, describe_client
from fednar_ray.core.counting import format_count
from fednar_ray.core.errors import RunFailed
from fednar_ray.core.file_rows import identify_machine
from fednar_ray.core.messages import (
    Broadcast,
    ClientMetrics,
    ClientsLost,
    EvalParams,
    GroupTask,
    GroupUpdate,
    Scores,
    ScoringTask,
    TermTask,
)
from fednar_ray.core.metric_sums import MetricSums
from fednar_ray.core.stages import announce
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.execution.actor_info import ActorInfo
from fednar_ray.execution.capacity import ActorPlan
from fednar_ray.execution.deadlines import Deadline, NoActor, SlowCall, SlowStart, TimeLimits, compute_wait_seconds
from fednar_ray.execution.dispatch import find_absent_slots, find_next_dispatch, join_terms
from fednar_ray.execution.failure_policy import FailureKind, FailurePolicy, classify_error, describe_error
from fednar_ray.execution.node_loss import NodeLosses
from fednar_ray.execution.ray_errors import classify_actor_loss, is_preempted, unwrap_task_error
from fednar_ray.execution.session import RaySession
from fednar_ray.execution.slots import ActorSlots, Prepare, Slot
from fednar_ray.execution.streams import GroupStream, ScoringStream, Stream
from fednar_ray.federated.training_plan import TrainingPlan


class ActorPool:
    """Actors that train and score for one run. They start and warm up while the driver continues.

    The pool carries out decisions. ``FailurePolicy`` decides about failures, ``find_next_dispatch`` where a call goes,
    and ``TimeLimits`` what is overdue.
    """

    def __init__(
        self,
        session: RaySession,
        plan: ActorPlan,
        settings: ExecutionSettings,
        prepare: Prepare,
        client_names: ClientNames,
        *,
        dedicated: bool,
        private: bool = False,
    ) -> None:
        self._session, self._plan, self._dedicated = session, plan, dedicated
        self._policy = FailurePolicy.from_settings(settings, client_names, private=private)
        self._limits = TimeLimits.from_settings(settings)
        self._slots = ActorSlots(session, plan, prepare)
        self._losses = NodeLosses(pinned=bool(plan.pins))
        self._holders: dict[tuple[int, ...], Slot] = {}  # measured client group → slot whose actor holds its result

    @classmethod
    def pooled(
        cls,
        session: RaySession,
        actors: ActorPlan,
        settings: ExecutionSettings,
        plan: TrainingPlan,
        federation: FederatedData,
        warm_up: Sequence[int],
        *,
        private: bool = False,
    ) -> "ActorPool":
        """Returns a pool whose actors host any client. The shards lie once in each node's shared memory."""
        session.connect()
        shared = [ray.put(value) for value in (plan.without_values(), *federation.load())]
        rest = tuple(warm_up), federation.split_offsets()

        def prepare(_: int, actor: Any) -> Any:
            return actor.prepare.remote(*shared, *rest)

        return cls(session, actors, settings, prepare, federation.client_names, dedicated=False, private=private)

    @classmethod
    def dedicated(
        cls,
        session: RaySession,
        actors: ActorPlan,
        settings: ExecutionSettings,
        plan: TrainingPlan,
        federation: FederatedData,
        *,
        private: bool = False,
    ) -> Self:
        """Returns a pool of one actor per client. Each gets only its client's shard, or reads it from its file."""
        session.connect()
        shared, splits = ray.put(plan.without_values()), ray.put(federation.shared_splits())

        def prepare(client_id: int, actor: Any) -> Any:
            return actor.prepare.remote(shared, federation.get_client_data(client_id), splits, (client_id,))

        return cls(session, actors, settings, prepare, federation.client_names, dedicated=True, private=private)

    def wait_until_ready(self, *, first: bool = False) -> None:
        """Waits until all actors have warmed up, or the time limit for starts is over.

        Of a pooled placement that may grow, one actor is enough.

        Args:
            first: Whether one actor is enough in any placement.
        """
        enough = any if first or (self._plan.growing and not self._dedicated) else all
        announce(f"waiting for {format_count(len(self._slots), 'Ray actor')}")
        while not enough(slot.is_ready for slot in self._slots) and self._find_startable():
            self._wait()

    def list_actors(self) -> list[ActorInfo]:
        """Returns where the actors live, by slot, once they are ready; those that do not start in time are left out."""
        self.wait_until_ready()
        return [slot.info for slot in self._slots if slot.info is not None]

    def train(self, broadcast: Broadcast, tasks: Sequence[GroupTask]) -> Iterator[GroupUpdate | ClientsLost]:
        """Yields the updates of ``tasks``, in their order; one update for groups of a term that one actor trains."""
        alone = self._dedicated or self._limits.call_seconds is not None or not self._sends_no_states(tasks)
        work = tasks if alone else join_terms(tasks, len(self._slots))
        slots = [None if isinstance(item, TermTask) else self._find_own_slot(item) for item in work]
        return self._run(GroupStream("train", broadcast, work, slots, self._policy))

    def measure(self, broadcast: Broadcast, tasks: Sequence[GroupTask]) -> Iterator[ClientMetrics | ClientsLost]:
        """Yields the metrics of ``tasks``, in their order. The actors hold the trained models for ``train``."""
        self._holders.clear()
        slots = [self._find_own_slot(task) for task in tasks]
        return self._run(GroupStream("measure", broadcast, tasks, slots, self._policy), hold=True)

    def score(self, eval_params: EvalParams, tasks: Sequence[ScoringTask]) -> Iterator[Scores | MetricSums]:
        """Yields the scores of ``tasks``, in their order. A client's own examples are scored by the actor with them."""
        slots = [task.client_id if self._dedicated else None for task in tasks]
        return self._run(ScoringStream(eval_params, tasks, slots, self._policy))

    def take_seconds_ahead(self) -> float:
        """Returns 0, since actors train no client ahead."""
        return 0.0

    def close(self) -> None:
        """Returns idle actors to the session and ends the others."""
        self._losses.report()
        self._slots.close()

    def _find_own_slot(self, task: GroupTask) -> int | None:
        """Returns the slot of a dedicated client, or the one whose actor already holds the group's result."""
        if self._dedicated:
            return task.client_ids[0]
        holder = self._holders.get(task.client_ids)
        return holder.index if holder is not None and self._slots[holder.index] is holder else None

    def _sends_no_states(self, tasks: Sequence[GroupTask]) -> bool:
        """Returns whether calls and answers hold no client states, of which those of a term may be too many at once."""
        machine = identify_machine()
        shares = machine is not None and all(slot.info and slot.info.machine == machine for slot in self._slots)
        return all(task.states is None or (shares and task.places is not None) for task in tasks)

    def _run(self, stream: Stream, *, hold: bool = False) -> Iterator[Any]:
        """Sends the calls of a stream and yields their results in dispatch order."""
        self._losses.report()
        while True:
            yield from stream.queue.pop_due()
            if stream.queue.is_finished:
                return
            while (found := find_next_dispatch(stream.queue, self._slots, dedicated=self._dedicated)) is not None:
                call, slot = found
                stream.queue.mark_sent(call)
                slot.add(stream.send(slot, call.work), call)
            self._wait(stream, hold=hold)

    def _wait(self, stream: Stream | None = None, *, hold: bool = False) -> None:
        """Waits for one event and handles it: a result, a started or lost actor, or the end of a time limit."""
        outstanding, deadlines = self._slots.find_outstanding(), self._find_deadlines(stream)
        seconds = compute_wait_seconds(deadlines, time.monotonic())
        ready, _ = ray.wait(list(outstanding), num_returns=1, timeout=seconds)
        if not ready:
            self._handle_overdue(deadlines, stream)
            return
        slot = outstanding[ready[0]]
        if ready[0] is slot.starting:
            self._slots.finish_start(slot)
        else:
            assert stream is not None
            self._collect(slot, ready[0], stream, hold=hold)

    def _collect(self, slot: Slot, ref: Any, stream: Stream, *, hold: bool) -> None:
        """Stores the result of a call, or handles its failure."""
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            self._handle_client_error(slot, ref, unwrap_task_error(error), stream)
        except RayError as error:
            kind = classify_actor_loss(error)
            if slot.info is not None:
                self._losses.add_actor(slot.info.node_id)
            is_own_fault = len(slot.calls) == 1 and not is_preempted(error)
            self._replace(slot, kind, f"{kind.value} ({type(error).__name__})", stream, blame_oldest=is_own_fault)
        else:
            call = slot.remove(ref)
            stream.queue.arrive(call, result)
            if hold:
                self._holders[call.work.client_ids] = slot

    def _handle_client_error(self, slot: Slot, ref: Any, error: Exception, stream: Stream) -> None:
        """Handles an exception in a client's training. The actor survives it, unless it lost its GPU.

        Raises:
            RunFailed: The error is one that no other client or actor can avoid.
        """
        if isinstance(error, RunFailed):
            raise error from None
        kind, reason = classify_error(error), describe_error(error)
        if kind is FailureKind.ACTOR_LOST:
            self._replace(slot, kind, reason, stream)
            return
        call = slot.remove(ref)
        call.attempts, call.avoid = call.attempts + 1, call.avoid | {slot.index}
        stream.handle_failure(call, kind, reason)

    def _replace(
        self, slot: Slot, kind: FailureKind, reason: str, stream: Stream, *, blame_oldest: bool = True
    ) -> None:
        """Replaces an actor. Its calls wait again, and each is then sent alone to an actor.

        The oldest call was running, so it is at fault. That is not certain if its result was lost together with the
        actor, since the next call may have been running. ``blame_oldest`` tells whether that can be ruled out.
        """
        calls = [call for _, call in slot.calls]
        self._slots.replace(slot)
        for call in calls:
            call.alone = True
            if blame_oldest and call is calls[0]:
                call.attempts += 1
                stream.handle_failure(call, kind, reason)
            else:
                stream.queue.requeue(call)

    def _find_deadlines(self, stream: Stream | None) -> list[Deadline]:
        if stream is None:
            awaited = self._find_startable()
        else:  # a dedicated actor is the only one that can take its calls
            awaited = find_absent_slots(stream.queue, self._slots) if self._dedicated else []
        return self._limits.find_deadlines(self._slots, awaited, self._slots.none_ready_since)

    def _find_startable(self) -> list[Slot]:
        """Returns the slots whose actors are starting and still have time to."""
        now = time.monotonic()
        return [slot for slot in self._slots.find_starting() if not self._limits.is_start_overdue(slot, now)]

    def _handle_overdue(self, deadlines: Sequence[Deadline], stream: Stream | None) -> None:
        """Acts on every deadline that has passed."""
        now = time.monotonic()
        for overdue in (deadline.overdue for deadline in deadlines if deadline.time <= now):
            match overdue:
                case NoActor():
                    seconds = now - self._slots.none_ready_since
                    raise RunFailed(f"no actor could start for {seconds:.0f} s: {self._session.describe_shortage()}")
                case SlowStart(slot) if stream is not None:
                    self._drop_calls_of(slot, stream)
                case SlowCall(slot) if stream is not None:
                    self._replace(slot, FailureKind.TIMED_OUT, FailureKind.TIMED_OUT.value, stream)

    def _drop_calls_of(self, slot: Slot, stream: Stream) -> None:
        """Fails the waiting calls of a dedicated actor that is absent, without retries."""
        pins, names = self._plan.pins, self._policy.client_names
        name = f"silo {pins[slot.index].silo}" if pins else describe_client(slot.index, names)
        for call in [call for call in stream.queue.waiting if call.slot == slot.index]:
            stream.queue.mark_sent(call)
            call.attempts = self._policy.retries + 1
            reason = f"{name} has had no actor for {self._limits.start_seconds:g} s"
            stream.handle_failure(call, FailureKind.ACTOR_LOST, reason)
