"""The states that algorithms keep for each client: one row [d] per client, in memory, or on disk beyond a budget.

Rows on disk can be read and written by other processes of the machine, so that they need not be sent to them.
"""

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

from fednar_ray.core.blocks import LARGE_BYTES
from fednar_ray.core.file_rows import (
    FileRow,
    build_write_error,
    free_space,
    identify_file,
    name_open_file,
    read_fully,
    write_fully,
)
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
            memory that is free now; nothing for rows of ``LARGE_BYTES``, whose file the kernel keeps in free memory.
        directory: Where the file lies. None: the system's directory for temporary files.
    """

    def __init__(self, dimension: int, memory_bytes: int | None = None, directory: Path | None = None) -> None:
        self._row_bytes = 4 * dimension
        if memory_bytes is None:
            memory_bytes = 0 if self._row_bytes >= LARGE_BYTES else psutil.virtual_memory().available // 10
        self._rows_in_memory = memory_bytes // self._row_bytes
        self._in_memory = 0  # current and staged
        self._rows: dict[int, StoredRow] = {}
        self._versions: dict[int, int] = {}
        self._staged: dict[int, StoredRow] = {}
        self._file = _RowFile(self._row_bytes, directory)
        self._lent: dict[FileRow, int] = {}  # with their slots

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, client_id: int) -> FloatVector | None:
        """Returns the client's current row [d]; None while it is zero."""
        row = self._rows.get(client_id)
        return None if row is None else self._read(row)

    def locate(self, client_id: int) -> FloatVector | FileRow | None:
        """Returns the client's current row, or where other processes find it; None while it is zero."""
        row = self._rows.get(client_id)
        place = self._file.locate(row) if isinstance(row, int) else None
        return self.get(client_id) if place is None else place

    def lend(self) -> FileRow | None:
        """Returns a place to which another process may write a row, to be staged; None if the next row is no file's.

        A place that is not staged before ``commit`` or ``discard`` is given up: someone may still write to it. It takes
        no space then. Raises RunFailed if the file cannot be created.
        """
        if self._in_memory < self._rows_in_memory:
            return None
        slot = self._file.take_slot()
        place = self._file.locate(slot)
        if place is None:
            self._file.free(slot)
        else:
            self._lent[place] = slot
        return place

    def stage(self, client_id: int, row: FloatVector | FileRow) -> None:
        """Keeps a copy of the client's next row until ``commit``, or the place that it has been written to.

        Raises:
            RunFailed: The disk is full.
        """
        if isinstance(row, FileRow):
            self._staged[client_id] = self._lent.pop(row)
        elif self._in_memory < self._rows_in_memory:
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
        self._give_up_lent()

    def discard(self) -> None:
        """Discards the rows that were staged since the last ``commit``."""
        for row in self._staged.values():
            self._release(row)
        self._staged = {}
        self._give_up_lent()

    def _give_up_lent(self) -> None:
        for slot in self._lent.values():
            self._file.give_up(slot)
        self._lent = {}

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
        self._row_bytes, self._directory = row_bytes, str(directory or tempfile.gettempdir())
        self._file: BinaryIO | None = None
        self._slots, self._free = 0, list[int]()
        self._pins, self._retired = Counter[int](), set[int]()
        self._lock = threading.Lock()  # views are released by the thread that writes checkpoints

    def take_slot(self) -> int:
        """Returns a slot that is free, or new."""
        with self._lock:
            if self._free:
                return self._free.pop()
            self._slots += 1
            return self._slots - 1

    def write(self, row: FloatVector) -> int:
        """Writes a row into a free slot, and returns the slot. Raises RunFailed if the disk is full."""
        slot = self.take_slot()
        try:
            write_fully(self._open(), row, slot * self._row_bytes)
        except OSError as error:
            raise build_write_error(self._directory, error) from error
        return slot

    def read(self, slot: int) -> FloatVector:
        """Returns a copy of the row in a slot."""
        row = np.empty(self._row_bytes // 4, dtype=np.float32)
        read_fully(self._open(), row, slot * self._row_bytes)
        return row

    def locate(self, slot: int) -> FileRow | None:
        """Returns where other processes find a slot; None if they cannot. Raises RunFailed if there is no file."""
        try:
            path = name_open_file(self._open())
        except OSError as error:
            raise build_write_error(self._directory, error) from error
        if path is None:
            return None
        return FileRow(
            path=path,
            directory=self._directory,
            identity=identify_file(self._open()),
            offset=slot * self._row_bytes,
            dimension=self._row_bytes // 4,
        )

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115 - as long as we
            weakref.finalize(self, self._file.close)
        return self._file

    def give_up(self, slot: int) -> None:
        """Frees a slot's space on the disk. The slot is never used again."""
        free_space(self._open(), slot * self._row_bytes, self._row_bytes)

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
