"""What a run owes MLflow, on disk: operations as they are asked for, and how much of it has arrived."""

import json
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fednar_ray.core.errors import RunFailed
from fednar_ray.tracking.lines import Lines, replace, writing
from fednar_ray.tracking.run_directory import RunDirectory


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_integer(value: object) -> bool:
    return type(value) is int


def _is_mapping_to(value: object, *kinds: type) -> bool:
    return isinstance(value, dict) and all(type(each) in kinds for each in value.values())


Operation = Mapping[str, Any]
"""``kind`` and what goes with it, as JSON; the kinds are those of ``FIELDS``."""

FIELDS: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "params": {"params": lambda value: _is_mapping_to(value, str)},
    "tags": {"tags": lambda value: _is_mapping_to(value, str)},
    "metrics": {"metrics": lambda value: _is_mapping_to(value, float, int), "step": _is_integer, "time": _is_integer},
    "data": {"name": _is_text, "digest": _is_text, "profile": lambda value: isinstance(value, dict)},
    "file": {"path": _is_text},
    "table": {"path": _is_text},
    "model": {"path": _is_text},
    "resumed": {},
    "end": {"status": lambda value: value in ("FINISHED", "FAILED", "KILLED"), "time": _is_integer},
}
"""Each kind of operation, with its fields and what they must be."""


def operation_of(line: str) -> Operation | None:
    """Returns the operation that a line of the outbox holds; None where it is damaged."""
    fields = json.loads(line)
    if not isinstance(fields, dict) or not isinstance(fields.get("kind"), str) or fields["kind"] not in FIELDS:
        return None
    wanted = FIELDS[fields["kind"]]
    return fields if all(name in fields and fits(fields[name]) for name, fits in wanted.items()) else None


class Outbox:
    """Operations in ``outbox.jsonl``, in order; ``outbox.sent`` counts those, and the rounds, that have arrived.

    Rounds need no operation: they are owed because they are in ``metrics.jsonl``.
    One thread appends, another acknowledges.
    """

    def __init__(self, directory: Path) -> None:
        self._lines = Lines(RunDirectory(directory).outbox)
        self._sent_path = RunDirectory(directory).sent
        sent = _read_sent(self._sent_path)
        self._sent_operations = min(sent["operations"], len(self._lines))
        self.sent_rounds = sent["rounds"]  # that have arrived
        unsent = self._lines.read(self._sent_operations, len(self._lines))
        self.pending: deque[tuple[Operation | None, bool]] = deque((operation_of(line), True) for line in unsent)
        """Those that are not known to have arrived (None: a damaged line), and whether each is in the file."""
        self._closed = False

    @staticmethod
    def forget_what_arrived(directory: Path) -> None:
        """Owe everything in the outbox of a run directory again, for another MLflow run. Raises RunFailed."""
        sent = RunDirectory(directory).sent
        with writing(sent):
            sent.unlink(missing_ok=True)

    def append(self, operation: Operation) -> None:
        """Owe one more operation. Raises RunFailed where it cannot be written; it is still sent by this process."""
        written = False
        try:
            self._lines.append(json.dumps(operation))
            written = True
        finally:
            self.pending.append((operation, written))

    def acknowledge(self, *, operations: int, rounds: int) -> None:
        """The first so many pending operations, and ``rounds`` rounds in all, have arrived or never will."""
        for _ in range(operations):
            _, written = self.pending.popleft()
            self._sent_operations += written
        self.sent_rounds = rounds
        self._store()

    def _store(self) -> None:
        if not self._closed:
            sent = {"operations": self._sent_operations, "rounds": self.sent_rounds}
            with suppress(RunFailed):  # a full disk: what nothing says to have arrived is sent again
                replace(self._sent_path, json.dumps(sent))

    def close(self) -> None:
        """Write no more, whatever arrives."""
        self._closed = True
        self._lines.close()


def _read_sent(path: Path) -> dict[str, int]:
    """What has arrived; where that is not known, nothing: everything may be sent twice."""
    try:
        sent = json.loads(path.read_text(encoding="utf-8"))
        return {name: max(0, int(sent[name])) for name in ("operations", "rounds")}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return {"operations": 0, "rounds": 0}
