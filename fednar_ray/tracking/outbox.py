"""What a run still has to send to MLflow, on disk: the operations in order, and how many MLflow has confirmed."""

import json
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fednar_ray.core.errors import RunFailed
from fednar_ray.tracking.file_writes import raise_as_run_failed, replace_file
from fednar_ray.tracking.json_lines import JsonLines, read_lines
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.run_views import VIEW_TAG_PREFIX
from fednar_ray.tracking.tags import TRAINING


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_integer(value: object) -> bool:
    return type(value) is int


def _is_mapping_to(value: object, *kinds: type) -> bool:
    return isinstance(value, dict) and all(type(each) in kinds for each in value.values())


Operation = Mapping[str, Any]
"""``kind`` and the fields of this kind, as JSON; ``FIELDS`` lists the kinds."""

FIELDS: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "params": {"params": lambda value: _is_mapping_to(value, str)},
    "tags": {"tags": lambda value: _is_mapping_to(value, str)},
    "metrics": {"metrics": lambda value: _is_mapping_to(value, float, int), "step": _is_integer, "time": _is_integer},
    "data": {
        "name": _is_text,
        "digest": _is_text,
        "profile": lambda value: isinstance(value, dict),
        "context": _is_text,
        "schema": lambda value: value is None or _is_text(value),
    },
    "note": {"text": _is_text, "experiment_text": _is_text},
    "view": {"tag": lambda value: _is_text(value) and value.startswith(VIEW_TAG_PREFIX), "value": _is_text},
    "file": {"path": _is_text},
    "table": {"path": _is_text},
    "model": {"path": _is_text},
    "model of": {"run_id": _is_text},
    "rank": {"run_id": _is_text, "rank": lambda value: _is_text(value) and value.isdecimal()},
    "resumed": {},
    "end": {"status": lambda value: value in ("FINISHED", "FAILED", "KILLED"), "time": _is_integer},
}
"""The kinds of operations, with their fields and the check of each field."""
EARLIER: Mapping[str, Mapping[str, Any]] = {"data": {"context": TRAINING, "schema": None}}
"""The fields that operations of earlier versions lack, with what those versions sent to MLflow."""


def parse_operation(line: str) -> Operation | None:
    """Returns the operation in a line of the outbox; None if it is damaged."""
    fields = json.loads(line)
    if not isinstance(fields, dict) or not isinstance(fields.get("kind"), str) or fields["kind"] not in FIELDS:
        return None
    fields = {**EARLIER.get(fields["kind"], {}), **fields}
    wanted = FIELDS[fields["kind"]]
    return fields if all(name in fields and fits(fields[name]) for name, fits in wanted.items()) else None


class Outbox:
    """The operations in ``outbox.jsonl``, in order. ``outbox.sent`` counts the operations and rounds that have arrived.

    Rounds need no operation: they are owed because they are in ``metrics.jsonl``. One thread may append while another
    one acknowledges.

    Raises:
        RunFailed: The outbox cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        self._lines = JsonLines(RunDirectory(directory).outbox)
        self._sent_path = RunDirectory(directory).sent
        sent = _read_sent(self._sent_path)
        self._sent_operations = min(sent["operations"], len(self._lines))
        self.sent_rounds = sent["rounds"]  # number of rounds that have arrived
        unsent = self._lines.read(self._sent_operations, len(self._lines))
        self.pending: deque[tuple[Operation | None, bool]] = deque((parse_operation(line), True) for line in unsent)
        """The operations that are not confirmed (None: a damaged line), each with whether it is in the file."""
        self._closed = False

    @staticmethod
    def reset_sent(directory: Path) -> None:
        """Makes everything in a run directory owed again, for another MLflow run. Raises RunFailed."""
        sent = RunDirectory(directory).sent
        with raise_as_run_failed(sent):
            sent.unlink(missing_ok=True)

    def append(self, operation: Operation) -> None:
        """Adds an operation. Raises RunFailed if it cannot be written; this process still sends it."""
        written = False
        try:
            self._lines.append(json.dumps(operation))
            written = True
        finally:
            self.pending.append((operation, written))

    def acknowledge(self, *, operations: int, rounds: int) -> None:
        """Records that some operations and rounds are settled: they have arrived, or MLflow refuses them.

        Args:
            operations: How many of the first pending operations are settled.
            rounds: How many rounds are settled in total.
        """
        for _ in range(operations):
            _, written = self.pending.popleft()
            self._sent_operations += written
        self.sent_rounds = rounds
        self._store()

    def _store(self) -> None:
        if not self._closed:
            sent = {"operations": self._sent_operations, "rounds": self.sent_rounds}
            with suppress(RunFailed):  # a full disk: what is not recorded as sent is sent again
                replace_file(self._sent_path, json.dumps(sent))

    def close(self) -> None:
        """Closes the files. Nothing is written afterwards."""
        self._closed = True
        self._lines.close()


def read_tags(directory: Path) -> dict[str, str]:
    """Reads the tags of a run from its directory, the later ones of a name; empty if nothing can be read."""
    tags: dict[str, str] = {}
    try:
        for line in read_lines(RunDirectory(directory).outbox):
            operation = parse_operation(line)
            if operation is not None and operation["kind"] == "tags":
                tags.update(operation["tags"])
    except OSError:
        return {}
    return tags


def _read_sent(path: Path) -> dict[str, int]:
    """Returns how much has arrived; zero if that is unknown, because everything may be sent twice."""
    try:
        sent = json.loads(path.read_text(encoding="utf-8"))
        return {name: max(0, int(sent[name])) for name in ("operations", "rounds")}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return {"operations": 0, "rounds": 0}
