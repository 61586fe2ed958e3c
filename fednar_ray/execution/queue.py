"""The calls of one round: which wait, which have arrived, and which result is due.  Knows no Ray."""

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fednar_ray.core.messages import GroupTask, ScoringTask

Task = TypeVar("Task", GroupTask, ScoringTask)
Key = tuple[int, ...]
"""A place in the order of dispatch; the halves of (3,) are (3, 0) and (3, 1)."""


@dataclass(slots=True, order=True)
class Call(Generic[Task]):
    """One task on its way."""

    key: Key
    task: Task = field(compare=False)
    slot: int | None = field(default=None, compare=False)  # the one slot that may take it; None: any
    attempts: int = field(default=0, compare=False)  # that failed, and were its own fault
    avoid: frozenset[int] = field(default=frozenset(), compare=False)  # slots where they failed
    alone: bool = field(default=False, compare=False)  # no other may wait behind it: its actor's death is its fault


class CallQueue(Generic[Task]):
    """Results leave in the order of the tasks, whatever the order of arrival."""

    def __init__(self, tasks: Sequence[Task], slots: Sequence[int | None]) -> None:
        self._waiting: list[Call[Task]] = [
            Call((i,), task, slot) for i, (task, slot) in enumerate(zip(tasks, slots, strict=True))
        ]
        self._order: list[Key] = [call.key for call in self._waiting]
        self._arrived: dict[Key, Any] = {}
        self._due = 0

    @property
    def unfinished(self) -> bool:
        """Is a result still to leave?"""
        return self._due < len(self._order)

    @property
    def held(self) -> int:
        """Results that wait for their turn."""
        return len(self._arrived)

    def due(self) -> Iterator[Any]:
        """The results whose turn it is."""
        while self.unfinished and self._order[self._due] in self._arrived:
            self._due += 1
            yield self._arrived.pop(self._order[self._due - 1])

    def is_due(self, call: Call[Task]) -> bool:
        """Does everything else wait for this call?"""
        return call.key == self._order[self._due]

    def waiting(self) -> Sequence[Call[Task]]:
        """Calls to send, the first in dispatch order first."""
        return self._waiting

    def sent(self, call: Call[Task]) -> None:
        """The call is under way."""
        self._waiting.remove(call)

    def arrive(self, call: Call[Task], result: Any) -> None:
        """The call's result is here."""
        self._arrived[call.key] = result

    def again(self, call: Call[Task]) -> None:
        """The call waits again, in its old place."""
        insort(self._waiting, call)

    def split(self: "CallQueue[GroupTask]", call: Call[GroupTask], attempts: int) -> None:
        """Two halves take the call's place."""
        halves = [
            Call((*call.key, i), half, call.slot, attempts, call.avoid, call.alone)
            for i, half in enumerate(call.task.halves())
        ]
        place = self._order.index(call.key)
        self._order[place : place + 1] = [half.key for half in halves]
        for half in halves:
            insort(self._waiting, half)
