"""The states that algorithms keep for each client: one row [d] per client, in memory, or on disk beyond a budget."""

import os
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil

from fednar_ray.core.errors import RunFailed
from fednar_ray.core.flat_params import FloatVector

StoredRow = FloatVector | int
"""A row in memory, or the slot of a row in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatesView:
    """A snapshot of the states. It can be read until ``release``, even if later states are committed."""

    versions: Mapping[int, int]  # client id → the round that last changed its row
    read: Callable[[int], FloatVector]
    release: Callable[[], None]


class ClientStates:
    """SCAFFOLD's c_i or FedDyn's h_i. The state of a client without a row is zero.

    The rows of a round are staged as they arrive, and become current together. Rows are never written in place, so a
    view keeps its values.

    Args:
        dimension: d.
        memory_bytes: The most memory that rows may take before they are written to a file. None: a tenth of the
            memory that is free now.
        directory: Where the file lies. None: the system's directory for temporary files.
    """

    def __init__(self, dimension: int, memory_bytes: int | None = None, directory: Path | None = None) -> None:
        self._row_bytes = 4 * dimension
        budget = psutil.virtual_memory().available // 10 if memory_bytes is None else memory_bytes
        self._rows_in_memory = budget // self._row_bytes
        self._in_memory = 0  # current and staged
        self._rows: dict[int, StoredRow] = {}
        self._versions: dict[int, int] = {}
        self._staged: dict[int, StoredRow] = {}
        self._file = _RowFile(self._row_bytes, directory)

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, client_id: int) -> FloatVector | None:
        """Returns the client's current row [d]; None while it is zero."""
        row = self._rows.get(client_id)
        return None if row is None else self._read(row)

    def stage(self, client_id: int, row: FloatVector) -> None:
        """Keeps a copy of the client's next row until ``commit``. Raises RunFailed if the disk is full."""
        if self._in_memory < self._rows_in_memory:
            self._in_memory += 1
            self._staged[client_id] = row.copy()
        else:
            self._staged[client_id] = self._file.write(row)

    def commit(self, round_index: int) -> None:
        """Makes the staged rows current, as of ``round_index``. It may be repeated after an interruption."""
        for client_id, row in self._staged.items():
            before = self._rows.get(client_id)
            self._rows[client_id], self._versions[client_id] = row, round_index
            if before is not row:
                self._release(before)
        self._staged = {}

    def discard(self) -> None:
        """Discards the rows that were staged since the last ``commit``."""
        for row in self._staged.values():
            self._release(row)
        self._staged = {}

    def _release(self, row: StoredRow | None) -> None:
        if isinstance(row, int):
            self._file.free(row)
        elif row is not None:
            self._in_memory -= 1

    def restore(self, client_id: int, row: FloatVector, version: int) -> None:
        """Stores a row from a checkpoint."""
        self.stage(client_id, row)
        self.commit(version)

    def view(self) -> StatesView:
        """Returns a snapshot of the current rows, for a checkpoint."""
        rows = dict(self._rows)
        slots = [row for row in rows.values() if isinstance(row, int)]
        self._file.pin(slots)
        return StatesView(
            versions=dict(self._versions),
            read=lambda client_id: self._read(rows[client_id]),
            release=lambda: self._file.unpin(slots),
        )

    def _read(self, row: StoredRow) -> FloatVector:
        return self._file.read(row) if isinstance(row, int) else row


class _RowFile:
    """Stores rows of equal size in an unnamed temporary file, by slot. A slot that a view pins is not reused."""

    def __init__(self, row_bytes: int, directory: Path | None) -> None:
        self._row_bytes, self._directory = row_bytes, directory
        self._file: BinaryIO | None = None
        self._slots, self._free = 0, list[int]()
        self._pins, self._retired = Counter[int](), set[int]()
        self._lock = threading.Lock()  # views are released by the thread that writes checkpoints

    def write(self, row: FloatVector) -> int:
        """Writes a row into a free slot, and returns the slot."""
        with self._lock:
            if self._free:
                slot = self._free.pop()
            else:
                slot, self._slots = self._slots, self._slots + 1
        data, written = np.ascontiguousarray(row, dtype=np.float32).view(np.uint8).data, 0
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115 - as long as we
                weakref.finalize(self, self._file.close)
            while written < self._row_bytes:
                written += os.pwrite(self._file.fileno(), data[written:], slot * self._row_bytes + written)
        except OSError as error:
            where = self._directory or tempfile.gettempdir()
            raise RunFailed(f"a client's state cannot be written to {where}: {error.strerror}") from error
        return slot

    def read(self, slot: int) -> FloatVector:
        """Returns a copy of the row in a slot."""
        assert self._file is not None
        row = np.empty(self._row_bytes // 4, dtype=np.float32)
        data, done = row.view(np.uint8).data, 0
        while done < self._row_bytes:
            done += os.preadv(self._file.fileno(), [data[done:]], slot * self._row_bytes + done)
        return row

    def free(self, slot: int) -> None:
        """Marks a slot as free once no view pins it."""
        with self._lock:
            if self._pins[slot]:
                self._retired.add(slot)
            else:
                self._free.append(slot)

    def pin(self, slots: list[int]) -> None:
        """Keeps these slots unchanged until ``unpin``."""
        with self._lock:
            self._pins.update(slots)

    def unpin(self, slots: list[int]) -> None:
        """Allows these slots to be reused once no other view pins them."""
        with self._lock:
            for slot in slots:
                self._pins[slot] -= 1
                if not self._pins[slot]:
                    del self._pins[slot]
                    if slot in self._retired:
                        self._retired.remove(slot)
                        self._free.append(slot)
