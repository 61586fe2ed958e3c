"""Files of JSON lines that grow at their end, and that a crash leaves readable."""

import errno
import json
import logging
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from fednar_ray.core.errors import RunFailed
from fednar_ray.tracking.file_writes import open_without_links, raise_as_run_failed

log = logging.getLogger("fednar_ray")

LineCheck = Callable[[str, int], bool]
"""Takes a line and the number of lines before it. Returns whether the line is valid."""


def is_json(line: str, index: int) -> bool:
    """Returns whether a line is JSON of any kind."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class JsonLines:
    """A file of JSON lines, open for appending. Opening it cuts off what a crash left of the last line.

    The file ends, for its readers, at the first line that ``is_valid`` rejects. Only one thread may append; any thread
    may read.

    Args:
        path: The file. It is created if it does not exist, unless ``append`` is False.
        is_valid: The check that a line must pass.
        append: False opens the file for reading only, and does not repair it if it is damaged.

    Raises:
        RunFailed: The file cannot be opened, or is a link. Appending and reading raise it as well.
    """

    def __init__(self, path: Path, is_valid: LineCheck = is_json, *, append: bool = True) -> None:
        self._path = path
        with raise_as_run_failed(path):
            self._file = FileIO(path, "a" if append else "r", opener=open_without_links)
            content = path.read_bytes()
            self._ends = _find_line_ends(content, is_valid)  # byte positions
            if append and len(content) > self._size:
                log.warning("%s: the last %d bytes are not a valid line; cut off", path, len(content) - self._size)
                self._file.truncate(self._size)

    @property
    def _size(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, line: str) -> None:
        """Writes one line, which must be JSON, to the operating system.

        Raises:
            RunFailed: The disk is full, or the file has been deleted. The lines before stay whole.
        """
        rest = memoryview(line.encode() + b"\n")
        end = self._size + len(rest)
        with raise_as_run_failed(self._path):
            if not os.fstat(self._file.fileno()).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "it was deleted while the run was writing it")
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                self._file.truncate(self._size)  # no half line
                raise
        self._ends.append(end)

    def read(self, first: int, stop: int) -> tuple[str, ...]:
        """Returns lines ``first`` to ``stop`` (exclusive) as they were written. Works after ``close`` as well."""
        start, end = (self._ends[index - 1] if index else 0 for index in (first, stop))
        try:
            with self._path.open("rb") as file:
                file.seek(start)
                return tuple(line.decode() for line in file.read(end - start).splitlines())
        except OSError as error:
            raise RunFailed(f"{self._path} cannot be read: {error.strerror}") from error

    def truncate(self, count: int) -> None:
        """Keeps only the first ``count`` lines."""
        del self._ends[count:]
        with raise_as_run_failed(self._path):
            self._file.truncate(self._size)

    def close(self) -> None:
        """Closes the file. Nothing can be appended afterwards."""
        self._file.close()


def read_lines(path: Path, is_valid: LineCheck = is_json) -> tuple[str, ...]:
    """Returns the valid lines of a file, which another process may be writing; none if there is no file."""
    content = path.read_bytes() if path.is_file() else b""
    return tuple(line.decode() for line in content[: max(_find_line_ends(content, is_valid), default=0)].splitlines())


def _find_line_ends(content: bytes, is_valid: LineCheck) -> list[int]:
    """Returns the byte position where each line ends, up to the first line that is not valid."""
    ends: list[int] = []
    end = 0
    for line in content.splitlines(keepends=True):
        end += len(line)
        if not line.endswith(b"\n") or not _is_text_and_valid(line, len(ends), is_valid):
            break
        ends.append(end)
    return ends


def _is_text_and_valid(line: bytes, index: int, is_valid: LineCheck) -> bool:
    try:
        return is_valid(line.decode(), index)
    except UnicodeDecodeError:
        return False
