"""What a run owes MLflow, on disk: operations as they are asked for, and how much of it has arrived."""

import json
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fednar_ray.errors import RunFailed
from fednar_ray.tracking.lines import Lines, replace

OUTBOX_FILE = "outbox.jsonl"
Operation = Mapping[str, Any]
"""``kind`` and what goes with it, as JSON; the kinds are those of ``Delivery``."""


class Outbox:
    """Operations in ``outbox.jsonl``, in order; ``outbox.sent`` counts those, and the rounds, that have arrived.

    Rounds need no operation: they are owed because they are in ``metrics.jsonl``.
    One thread appends, another acknowledges.
    """

    def __init__(self, directory: Path) -> None:
        self._lines = Lines(directory / OUTBOX_FILE)
        self._sent_path = directory / "outbox.sent"
        sent = _read_sent(self._sent_path)
        self._sent_operations = min(sent["operations"], len(self._lines))
        self.sent_rounds = sent["rounds"]
        unsent = self._lines.read(self._sent_operations, len(self._lines))
        self.pending: deque[tuple[Operation, bool]] = deque((json.loads(line), True) for line in unsent)
        self._closed = False

    def append(self, operation: Operation) -> None:
        """Owe one more operation. Raises RunFailed where it cannot be written; it is still sent by this process."""
        written = False
        try:
            self._lines.append(json.dumps(operation))
            written = True
        finally:
            self.pending.append((operation, written))

    def acknowledge_operation(self) -> None:
        """The first pending operation has arrived, or never will."""
        _, written = self.pending.popleft()
        self._sent_operations += written
        self._store()

    def acknowledge_rounds(self, rounds: int) -> None:
        """So many rounds have arrived."""
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
        return {"operations": int(sent["operations"]), "rounds": int(sent["rounds"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"operations": 0, "rounds": 0}
