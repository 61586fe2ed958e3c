"""Orders the calls of one round: those that wait, those whose results have arrived, and the result that is due."""

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fednar_ray.core.messages import GroupTask, ScoringTask, TermTask
from fednar_ray.secure.messages import UnmaskTask

WorkItem = TypeVar("WorkItem", GroupTask, GroupTask | TermTask, ScoringTask, UnmaskTask)
Key = tuple[int, ...]
"""A position in the dispatch order. The halves of (3,) are (3, 0) and (3, 1)."""


@dataclass(slots=True, order=True)
class Call(Generic[WorkItem]):
    """One work item that an actor is to process.

    Attributes:
        key: The position in the dispatch order.
        work: What to process.
        slot: The only slot that may take the call, or the preferred one in a pool of interchangeable actors.
            None if any may take it.
        attempts: How many times the call has failed through its own fault.
        avoid: Slots where it failed.
        alone: If true, no other call may wait behind it, so that the loss of its actor is certainly its own fault.
    """

    key: Key
    work: WorkItem = field(compare=False)
    slot: int | None = field(default=None, compare=False)
    attempts: int = field(default=0, compare=False)
    avoid: frozenset[int] = field(default=frozenset(), compare=False)
    alone: bool = field(default=False, compare=False)


class CallQueue(Generic[WorkItem]):
    """Returns results in the order of the work items, regardless of the order in which they arrive."""

    def __init__(self, items: Sequence[WorkItem], slots: Sequence[int | None]) -> None:
        self._waiting: list[Call[WorkItem]] = [
            Call((i,), item, slot) for i, (item, slot) in enumerate(zip(items, slots, strict=True))
        ]
        self._order: list[Key] = [call.key for call in self._waiting]
        self._arrived: dict[Key, Any] = {}
        self._next = 0  # the index in the order of the result that is due

    @property
    def is_finished(self) -> bool:
        """Whether all results have been handed out."""
        return self._next == len(self._order)

    @property
    def arrived_count(self) -> int:
        """How many results have arrived and wait for their turn."""
        return len(self._arrived)

    @property
    def waiting(self) -> Sequence[Call[WorkItem]]:
        """The calls that are not sent yet, in dispatch order."""
        return self._waiting

    def pop_due(self) -> Iterator[Any]:
        """Yields the results that are due, in dispatch order."""
        while not self.is_finished and self._order[self._next] in self._arrived:
            self._next += 1
            yield self._arrived.pop(self._order[self._next - 1])

    def is_due(self, call: Call[WorkItem]) -> bool:
        """Returns whether all other results wait for this call."""
        return call.key == self._order[self._next]

    def mark_sent(self, call: Call[WorkItem]) -> None:
        """Removes a call from the waiting list."""
        self._waiting.remove(call)

    def arrive(self, call: Call[WorkItem], result: Any) -> None:
        """Stores the result of a call until it is due."""
        self._arrived[call.key] = result

    def requeue(self, call: Call[WorkItem]) -> None:
        """Puts a call that was sent back into the waiting list, at its old position."""
        insort(self._waiting, call)

    def split(self: "CallQueue[GroupTask | TermTask]", call: Call[GroupTask | TermTask], attempts: int) -> None:
        """Replaces a call by its parts, each with so many failed ``attempts``: a term's groups, or a group's halves."""
        tasks = call.work.groups if isinstance(call.work, TermTask) else call.work.halves()
        parts: list[Call[GroupTask | TermTask]] = [
            Call((*call.key, i), task, call.slot, attempts, call.avoid, call.alone) for i, task in enumerate(tasks)
        ]
        position = self._order.index(call.key)
        self._order[position : position + 1] = [part.key for part in parts]
        for part in parts:
            insort(self._waiting, part)
