"""What a client remembers on its own disk, so that no restart and no repeated request makes it reveal too much."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

from filelock import FileLock

from fednar_ray.core.errors import SiloRefused
from fednar_ray.secure.keys import SiloKeys
from fednar_ray.secure.messages import Attempt

KEYS, RECORDS, LOCK = "keys", "records.jsonl", "lock"


class SiloRecords:
    """A directory with the keys of one client in one run, and with what the client has committed itself to.

    Each commitment is on the disk before the method returns, so the client may act on it. A commitment can be repeated,
    but never changed: also not by a process that was started anew, or that runs beside the first one.

    Args:
        directory: Of one client in one run. It is created, and only its owner can enter it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._file = directory, directory / RECORDS
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = FileLock(directory / LOCK)
        self._known: dict[str, str] = {}
        self._read_bytes = 0
        with self._lock:
            self.keys = SiloKeys.load_or_create(directory / KEYS)

    def commit_peers(self, keys: Mapping[int, bytes]) -> None:
        """Remembers the public keys of other clients. Raises SiloRefused if one has changed since."""
        for client_id, key in keys.items():
            self._commit(f"key of {client_id}", key.hex(), f"the public key of client {client_id} has changed")

    def commit_update(self, attempt: Attempt, vector_digest: str) -> None:
        """Commits the client to the one masked vector of an attempt.

        Raises:
            SiloRefused: It has sent another one. The difference of the two would reveal that of the updates.
        """
        text = f"another masked update was sent in this attempt at round {attempt.round_index}"
        self._commit(f"update {_name(attempt)}", f"{vector_digest} {_digest(attempt)}", text)

    def commit_reveal(self, attempt: Attempt, arrived: tuple[int, ...], vanished: tuple[int, ...]) -> None:
        """Commits the client to one attempt at a round, and to one kind of share for each member.

        Raises:
            SiloRefused: It has sent no update in this attempt, has revealed the other kind of share of a member, or has
                revealed shares in another attempt at this round: the difference of two sums would be that of updates.
        """
        with self._lock:
            self._read()
        update = self._known.get(f"update {_name(attempt)}")
        if update is None or not update.endswith(_digest(attempt)):
            raise SiloRefused(f"no update was sent in this attempt at round {attempt.round_index}")
        text = f"other shares were revealed at round {attempt.round_index}"
        value = json.dumps([attempt.number, sorted(arrived), sorted(vanished)])
        self._commit(f"reveal {attempt.round_index}", value, text)

    def forget(self) -> None:
        """Deletes the directory with the keys: nobody can compute the masks of the run any more."""
        rmtree(self._directory, ignore_errors=True)
        with suppress(OSError):  # other clients of the run have theirs beside it
            self._directory.parent.rmdir()

    def _commit(self, key: str, value: str, refusal: str) -> None:
        with self._lock:
            self._read()
            if key not in self._known:
                self._append(key, value)
            elif self._known[key] != value:
                raise SiloRefused(refusal)

    def _read(self) -> None:
        """Reads the lines that this or another process has appended since. A line that is not whole was not acted on.

        The lock must be held.
        """
        if not self._file.exists():
            return
        with self._file.open("rb+") as reader:
            reader.seek(self._read_bytes)
            lines = reader.read().splitlines(keepends=True)
            for line in lines:
                if not line.endswith(b"\n"):
                    reader.truncate(self._read_bytes)
                    break
                key, value = json.loads(line)
                self._known[key] = value
                self._read_bytes += len(line)

    def _append(self, key: str, value: str) -> None:
        """Appends a line, and waits until it is on the disk. The lock must be held."""
        line = json.dumps([key, value]).encode() + b"\n"
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as writer:
            writer.write(line)
            writer.flush()
            os.fsync(writer.fileno())
        self._known[key] = value
        self._read_bytes += len(line)


def _name(attempt: Attempt) -> str:
    return f"{attempt.round_index}.{attempt.number}"


def _digest(attempt: Attempt) -> str:
    """Returns a digest of who takes part in an attempt."""
    keys = {str(client_id): key.hex() for client_id, key in sorted(attempt.keys.items())}
    text = json.dumps([attempt.run, sorted(attempt.members), keys, attempt.threshold])
    return hashlib.sha256(text.encode()).hexdigest()
