"""One process at a time runs a search: a lock of the operating system, which ends with the process that holds it."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from fednar_ray.core.errors import BadInput
from fednar_ray.tracking.lines import make_directory
from fednar_ray.tracking.run_directory import SearchDirectory

log = logging.getLogger("fednar_ray")


@contextmanager
def hold_search(name: str) -> Iterator[None]:
    """Holds the search ``name`` against other processes, whether or not it exists yet.

    The lock is a file beside the search's directory, ``searches/.NAME.lock``, which names the process that holds it.
    It is an ``flock``: the kernel releases it when the process ends, also by SIGKILL. On a network file system it
    also holds between machines where the server supports locks; where it does not, a warning says so.

    Raises:
        BadInput: Another process holds the search. Nothing was changed.
    """
    path = SearchDirectory.named(name).lock
    file = _locked(path, name)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock is released: whoever waits for it finds another file there
        file.close()
        with suppress(OSError):  # the directory has searches
            path.parent.rmdir()


def _locked(path: Path, name: str) -> FileIO:
    """The lock file, open and locked. The process that held it before may have removed it meanwhile: then once more."""
    while True:
        make_directory(path.parent)
        try:
            file = FileIO(path, "a+")
        except FileNotFoundError:  # another process has just removed the empty directory
            continue
        if not _lock(file, path):
            with file:
                raise BadInput(f"the search {name!r} is being run by {_holder(file)}; wait for it, or end it first")
        if _is_at(file, path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            return file
        file.close()


def _lock(file: FileIO, path: Path) -> bool:
    """Whether nobody else holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked: %s; start no second process on this search", path, error.strerror)
    return True


def _holder(file: FileIO) -> str:
    file.seek(0)
    return file.read(200).decode(errors="replace") or "another process"  # it has not written its name yet


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
