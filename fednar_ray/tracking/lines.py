"""Files of a run directory that a crash leaves whole: appended line by line, or replaced at once."""

import errno
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from fednar_ray.core.errors import BadInput, RunFailed
from fednar_ray.tracking.run_directory import RunDirectory

log = logging.getLogger("fednar_ray")


class BeingWritten(BadInput):
    """A run directory is held by another process."""


Whole = Callable[[str, int], bool]
"""Whether a line is one of its kind, given how many lines are before it."""


def is_json(line: str, index: int) -> bool:
    """Whether a line is JSON of any kind."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class Lines:
    """A file of JSON lines that grows at its end. Opening it cuts off what a crash left of a last line.

    The file ends for its readers at the first line that is not ``whole``.  One thread appends; any may read.
    ``grows`` False only reads: the file is left as it is, whatever is in it.  Opening, appending and reading raise
    RunFailed where the file cannot be used, or is a link.
    """

    def __init__(self, path: Path, whole: Whole = is_json, *, grows: bool = True) -> None:
        self._path = path
        with writing(path):
            self._file = FileIO(path, "a" if grows else "r", opener=_not_through_a_link)
            content = path.read_bytes()
            self._ends = _line_ends(content, whole)  # byte positions
            if grows and len(content) > self._size:
                log.warning("%s: its end, %d bytes, is no whole line: cut off", path, len(content) - self._size)
                self._file.truncate(self._size)

    @property
    def _size(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, line: str) -> None:
        """Write one line, which is JSON, to the operating system.

        Raises RunFailed where there is no room for it, or the file has been deleted.
        """
        rest = memoryview(line.encode() + b"\n")
        end = self._size + len(rest)
        with writing(self._path):
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
        """Lines ``first`` to ``stop``, verbatim; also after the file was closed."""
        start, end = (self._ends[index - 1] if index else 0 for index in (first, stop))
        try:
            with self._path.open("rb") as file:
                file.seek(start)
                return tuple(line.decode() for line in file.read(end - start).splitlines())
        except OSError as error:
            raise RunFailed(f"{self._path} cannot be read: {error.strerror}") from error

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` lines."""
        del self._ends[count:]
        with writing(self._path):
            self._file.truncate(self._size)

    def close(self) -> None:
        """Append no more."""
        self._file.close()


def _not_through_a_link(path: str, flags: int) -> int:
    """Opens a file, unless it is a link: a directory that came from elsewhere must not have others' files written."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def whole_lines(path: Path, whole: Whole = is_json) -> tuple[str, ...]:
    """The lines of such a file, which may be being written; none where there is no file."""
    content = path.read_bytes() if path.is_file() else b""
    return tuple(line.decode() for line in content[: max(_line_ends(content, whole), default=0)].splitlines())


def _line_ends(content: bytes, whole: Whole) -> list[int]:
    """Where each line ends, up to the first that is not whole."""
    ends: list[int] = []
    end = 0
    for line in content.splitlines(keepends=True):
        end += len(line)
        if not line.endswith(b"\n") or not _is_whole(line, len(ends), whole):
            break
        ends.append(end)
    return ends


def _is_whole(line: bytes, index: int, whole: Whole) -> bool:
    try:
        return whole(line.decode(), index)
    except UnicodeDecodeError:
        return False


def make_directory(directory: Path) -> None:
    """Raises RunFailed where that cannot be."""
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)


def replace(path: Path, text: str) -> None:
    """Write a file in one step: whoever reads it finds the old text or the new. Raises RunFailed on a full disk."""
    new = path.with_name(path.name + ".new")
    with writing(path):
        new.unlink(missing_ok=True)  # of a crash; a link is removed, and not followed
        with open(new, "x", encoding="utf-8") as file:
            file.write(text)
        os.replace(new, path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises RunFailed, which names ``path``, where the operating system cannot write."""
    try:
        yield
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
        kept = "" if error.errno in (errno.ENOENT, errno.ELOOP) else "; what was written before is whole"
        raise RunFailed(f"{path} cannot be written: {reason}{kept}") from error


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Hold a run directory against other processes; it is free again when this one dies.

    Raises BeingWritten where it is held.
    """
    lock = RunDirectory(directory).lock
    with writing(lock):
        file = FileIO(lock, "a", opener=_not_through_a_link)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BeingWritten(f"{directory} is being written by a process that is running") from None
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
