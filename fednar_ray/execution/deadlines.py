"""Decides how long a pool waits for results and for actors, from the state of its slots."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fednar_ray.config import ExecutionSettings
from fednar_ray.execution.slots import Slot


@dataclass(frozen=True, slots=True)
class NoActor:
    """No actor has been ready for too long."""


@dataclass(frozen=True, slots=True)
class SlowStart:
    """The actor of a slot, which no other can replace, has been starting for too long."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class SlowCall:
    """The oldest call of a slot has been running for too long."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Deadline:
    """When something is overdue, in seconds on the monotonic clock."""

    time: float
    overdue: NoActor | SlowStart | SlowCall


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """The time limits of a pool, in seconds.

    Attributes:
        call_seconds: For one call of a client group (``execution.client_timeout_seconds``). None: no limit.
        start_seconds: For an actor to start (``execution.capacity_timeout_seconds``).
    """

    call_seconds: float | None
    start_seconds: float

    @classmethod
    def from_settings(cls, settings: ExecutionSettings) -> "TimeLimits":
        """Returns the limits that the ``execution`` section asks for."""
        return cls(call_seconds=settings.client_timeout_seconds, start_seconds=settings.capacity_timeout_seconds)

    def find_deadlines(self, slots: Sequence[Slot], awaited: Iterable[Slot], none_ready_since: float) -> list[Deadline]:
        """Returns the deadlines that apply now.

        Args:
            slots: All slots of the pool.
            awaited: Those whose actors are starting and must become ready, since no other actor can do their work.
            none_ready_since: The time since which no actor has been ready. It is ignored if one is ready.
        """
        if not any(slot.is_ready for slot in slots):
            return [Deadline(none_ready_since + self.start_seconds, NoActor())]
        deadlines = [Deadline(slot.starting_since + self.start_seconds, SlowStart(slot)) for slot in awaited]
        if self.call_seconds is not None:
            busy = (slot for slot in slots if slot.calls)
            deadlines += [Deadline(slot.busy_since + self.call_seconds, SlowCall(slot)) for slot in busy]
        return deadlines

    def is_start_overdue(self, slot: Slot, now: float) -> bool:
        """Returns whether the actor of a slot has been starting for too long."""
        return not slot.is_ready and now >= slot.starting_since + self.start_seconds


def compute_wait_seconds(deadlines: Sequence[Deadline], now: float) -> float | None:
    """Returns the seconds until the first deadline, at least 0; None if there is none."""
    return max(0.0, min(deadline.time for deadline in deadlines) - now) if deadlines else None
