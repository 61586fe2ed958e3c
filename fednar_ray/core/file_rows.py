"""Rows of float32 numbers in another process's open file, which processes of one machine read and write directly."""

import ctypes
import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO, Literal, cast

import numpy as np
import torch
from torch import Tensor

from fednar_ray.core.errors import RunFailed
from fednar_ray.core.flat_params import FloatVector

PUNCH_HOLE = 0x01 | 0x02  # from Linux's falloc.h: free the space, and keep the size of the file


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """A place for one row [d] in a file.

    Attributes:
        path: The file, as every process of the machine can open it.
        directory: Where it lies, for messages.
        identity: What ``identify_file`` says of it.
        offset: Where the row starts, in bytes.
        dimension: d.
    """

    path: str
    directory: str
    identity: tuple[int, int]
    offset: int
    dimension: int

    def read(self) -> FloatVector:
        """Returns a copy of the row. Raises OSError if the file cannot be read."""
        row: FloatVector = torch.empty(self.dimension).numpy()  # aligned as torch's own memory is
        with self.open("rb") as file:
            read_fully(file, row, self.offset)
        return row

    def open(self, mode: Literal["rb", "r+b"]) -> BinaryIO:
        """Opens the file. Raises OSError if it cannot be opened, or if there is another file by now."""
        file = cast(BinaryIO, open(self.path, mode, buffering=0))  # noqa: SIM115 - the caller closes it
        if identify_file(file) != self.identity:
            file.close()
            raise OSError(0, "the file has been closed")
        return file


def read_fully(file: BinaryIO, row: FloatVector, offset: int) -> None:
    """Fills a row from a file, from ``offset`` on. Raises OSError if the file cannot be read, or ends before."""
    data, done = row.view(np.uint8).data, 0
    while done < len(data):
        count = os.preadv(file.fileno(), [data[done:]], offset + done)
        if not count:
            raise OSError(0, "a file ends within a row")
        done += count


def write_fully(file: BinaryIO, row: FloatVector, offset: int) -> None:
    """Writes a row to a file, from ``offset`` on. Raises OSError if the file cannot be written."""
    data, written = np.ascontiguousarray(row, dtype=np.float32).view(np.uint8).data, 0
    while written < len(data):
        written += os.pwrite(file.fileno(), data[written:], offset + written)


def identify_file(file: BinaryIO) -> tuple[int, int]:
    """Returns the device and the number of a file there."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def free_space(file: BinaryIO, offset: int, count: int) -> None:
    """Frees the space of ``count`` bytes of a file, which are zero afterwards, if the file system can."""
    fallocate = getattr(ctypes.CDLL(None), "fallocate", None) if sys.platform == "linux" else None
    if fallocate is not None:
        fallocate(file.fileno(), PUNCH_HOLE, ctypes.c_longlong(offset), ctypes.c_longlong(count))


def name_open_file(file: BinaryIO) -> str | None:
    """Returns a path by which other processes can open this process's file; None where the system has no such path."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}" if sys.platform == "linux" else None


@cache
def identify_machine() -> str | None:
    """Returns a text that is equal in processes that can open each other's files; None where they cannot.

    They belong to the same user, run since the same start of the same machine, and see the same process ids.
    """
    if sys.platform != "linux":
        return None
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')} {os.getuid()}"
    except OSError:
        return None


class RowWriter:
    """Writes rows to their places, some columns at a time.

    Args:
        places: Where the rows [C, d] go, all of one file.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, places: Sequence[FileRow]) -> None:
        self._places = tuple(places)
        self._file = places[0].open("r+b")  # until ``get``, or an error
        self._close = weakref.finalize(self, self._file.close)

    def put(self, block: slice, part: Tensor) -> None:
        """Writes a block of columns. Raises RunFailed if it cannot be written, as when the disk is full."""
        try:
            for place, row in zip(self._places, part.cpu().numpy(), strict=True):
                write_fully(self._file, row, place.offset + 4 * block.start)
        except OSError as error:
            raise build_write_error(self._places[0].directory, error) from error

    def get(self) -> tuple[FileRow, ...]:
        """Returns the places, after all columns have been written."""
        self._close()
        return self._places


def build_write_error(directory: str, error: OSError) -> RunFailed:
    """Builds the error for a client's state that cannot be written."""
    return RunFailed(
        f"a client's state cannot be written to {directory}: {error.strerror}; set TMPDIR to a directory with more "
        "room, or execution.state_memory_bytes to what may stay in memory"
    )
