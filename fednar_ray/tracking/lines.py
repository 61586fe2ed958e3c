"""Files of a run directory that a crash leaves whole: appended line by line, or replaced at once."""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from fednar_ray.errors import BadInput, RunFailed

log = logging.getLogger("fednar_ray")


class Lines:
    """A file of JSON lines that grows at its end. Opening it cuts off what a crash left of a last line.

    One thread appends; any may read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _writing(path):
            self._file = FileIO(path, "a")
            content = path.read_bytes()
            self._ends = _line_ends(content)  # byte positions
            if len(content) > self._size:
                log.warning("%s: its end, %d bytes, is no whole line: cut off", path, len(content) - self._size)
                self._file.truncate(self._size)

    @property
    def _size(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, line: str) -> None:
        """Write one line, which is JSON, to the operating system. Raises RunFailed where there is no room for it."""
        rest = memoryview(line.encode() + b"\n")
        end = self._size + len(rest)
        with _writing(self._path):
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                self._file.truncate(self._size)  # no half line
                raise
        self._ends.append(end)

    def read(self, first: int, stop: int) -> tuple[str, ...]:
        """Lines ``first`` to ``stop``, verbatim; also after the file was closed."""
        start, end = (self._ends[index - 1] if index else 0 for index in (first, stop))
        with self._path.open("rb") as file:
            file.seek(start)
            return tuple(line.decode() for line in file.read(end - start).splitlines())

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` lines."""
        del self._ends[count:]
        with _writing(self._path):
            self._file.truncate(self._size)

    def close(self) -> None:
        """Append no more."""
        self._file.close()


def whole_lines(path: Path) -> tuple[str, ...]:
    """The lines of such a file, which may be being written; none where there is no file."""
    content = path.read_bytes() if path.exists() else b""
    return tuple(line.decode() for line in content[: max(_line_ends(content), default=0)].splitlines())


def _line_ends(content: bytes) -> list[int]:
    """Where each line ends, up to the first that is not whole."""
    ends, end = [], 0
    for line in content.splitlines(keepends=True):
        end += len(line)
        if not line.endswith(b"\n") or not _is_json(line):
            break
        ends.append(end)
    return ends


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def make_directory(directory: Path) -> None:
    """Raises RunFailed where that cannot be."""
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True)


def replace(path: Path, text: str) -> None:
    """Write a file in one step: whoever reads it finds the old text or the new. Raises RunFailed on a full disk."""
    new = path.with_name(path.name + ".new")
    with _writing(path):
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFailed(f"{path} cannot be written: {error.strerror}; what was written before is whole") from error


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Hold a run directory against other processes; it is free again when this one dies.

    Raises BadInput where it is held.
    """
    with _writing(directory / "lock"):
        file = FileIO(directory / "lock", "a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{directory} is being written by a process that is running") from None
        except OSError as error:  # a file system without locks
            log.warning("%s is not locked against a second process: %s", directory, error.strerror)
        yield


@contextmanager
def held_alone(path: Path) -> Iterator[None]:
    """Hold a lock file against other processes of this user, once none of them does, and remove it in the end.

    Raises OSError where it is another user's, or where the file system has no locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(descriptor).st_uid != os.getuid():
                raise PermissionError(f"{path} is another user's")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(path, descriptor):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a file that was opened is still there: who held it before has removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
