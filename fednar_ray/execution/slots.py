"""Keeps the slots of a pool, and starts and replaces the actors in them."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import ray
from ray.exceptions import RayError, RayTaskError

from fednar_ray.core.errors import RunFailed
from fednar_ray.execution.actor_info import ActorInfo
from fednar_ray.execution.capacity import ActorPlan
from fednar_ray.execution.queue import Call
from fednar_ray.execution.ray_errors import unwrap_task_error
from fednar_ray.execution.session import RaySession

CALLS_PER_ACTOR = 2  # one trains and one waits, so that an actor never idles between two client groups
MAX_FAILED_STARTS = 3  # successive, in one slot

Prepare = Callable[[int, Any], Any]
"""Takes a slot's index and its actor, and returns the reference of the call that prepares the actor for the run."""


@dataclass(slots=True)
class Slot:
    """An actor's position in a pool. The replacement of a lost actor takes over its slot.

    Attributes:
        index: Which slot it is. In a dedicated pool this is the client's id.
        actor: The Ray actor.
        starting: The reference of the call that prepares the actor. None once the actor is ready.
        info: Where the actor lives. None until it is ready.
        failed_starts: How many actors in a row were lost while they started here.
        starting_since: When the actor was requested, on the monotonic clock.
        calls: The calls under way with their references, the oldest first.
        busy_since: A time at which the oldest call was already running, on the monotonic clock.
    """

    index: int
    actor: Any
    starting: Any | None
    info: ActorInfo | None = None
    failed_starts: int = 0
    starting_since: float = field(default_factory=time.monotonic)
    calls: deque[tuple[Any, Call[Any]]] = field(default_factory=deque)
    busy_since: float = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether the actor has started and warmed up."""
        return self.starting is None

    @property
    def has_room(self) -> bool:
        """Whether the actor may be sent another call."""
        return self.is_ready and len(self.calls) < CALLS_PER_ACTOR

    def accepts(self, call: Call[Any]) -> bool:
        """Returns whether this call may be sent to the actor now."""
        return self.has_room and not (self.calls and (call.alone or self.calls[0][1].alone))

    def add(self, ref: Any, call: Call[Any]) -> None:
        """Records that a call was sent."""
        if not self.calls:
            self.busy_since = time.monotonic()
        self.calls.append((ref, call))

    def remove(self, ref: Any) -> Call[Any]:
        """Removes the call of a reference and returns it. The call behind it is running from now on at the latest."""
        position = next(i for i, (other, _) in enumerate(self.calls) if other is ref)
        call = self.calls[position][1]
        del self.calls[position]
        self.busy_since = time.monotonic()
        return call


class ActorSlots(Sequence[Slot]):
    """Starts the actors of one pool and replaces those that are lost.

    Actors start and warm up while the driver continues. An actor for which the cluster has no room yet starts as soon
    as there is room.
    """

    def __init__(self, session: RaySession, plan: ActorPlan, prepare: Prepare) -> None:
        self._session, self._plan, self._prepare = session, plan, prepare
        self._slots = [Slot(i, actor, prepare(i, actor)) for i, actor in enumerate(session.lease(plan))]
        self.none_ready_since = time.monotonic()  # meaningful while no actor is ready

    @overload
    def __getitem__(self, index: int) -> Slot: ...

    @overload
    def __getitem__(self, index: slice) -> list[Slot]: ...

    def __getitem__(self, index: int | slice) -> Slot | list[Slot]:
        return self._slots[index]

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def none_ready(self) -> bool:
        """Whether every actor is still starting."""
        return not any(slot.is_ready for slot in self._slots)

    def find_starting(self) -> list[Slot]:
        """Returns the slots whose actors are not ready yet."""
        return [slot for slot in self._slots if not slot.is_ready]

    def find_outstanding(self) -> dict[Any, Slot]:
        """Returns all references that can become ready, each with its slot."""
        refs = {ref: slot for slot in self._slots for ref, _ in slot.calls}
        return refs | {slot.starting: slot for slot in self.find_starting()}

    def replace(self, slot: Slot) -> None:
        """Ends the actor of a slot and requests a new one."""
        ray.kill(slot.actor)
        if not any(other.is_ready for other in self._slots if other is not slot):
            self.none_ready_since = time.monotonic()
        (actor,) = self._session.start_actors(self._plan, [slot.index])
        self._slots[slot.index] = Slot(
            slot.index, actor, self._prepare(slot.index, actor), failed_starts=slot.failed_starts
        )

    def finish_start(self, slot: Slot) -> None:
        """Marks an actor as ready, or replaces it if it was lost while it started.

        Raises:
            RunFailed: Too many actors in a row were lost in this slot while they started.
            Exception: Whatever preparing the actor raised, such as DeviceError.
        """
        try:
            slot.info = ray.get(slot.starting)
        except RayTaskError as error:
            raise unwrap_task_error(error) from None
        except RayError as error:
            slot.failed_starts += 1
            if slot.failed_starts >= MAX_FAILED_STARTS:
                raise RunFailed(f"an actor was lost {MAX_FAILED_STARTS} times while it started: {error}") from error
            self.replace(slot)
        else:
            slot.starting, slot.failed_starts = None, 0

    def close(self) -> None:
        """Returns idle actors to the session, and ends those that are starting or have a call under way."""
        for slot in self._slots:
            if slot.is_ready and not slot.calls:
                self._session.give_back(self._plan, [slot.actor])
            else:
                ray.kill(slot.actor)
        self._slots = []
