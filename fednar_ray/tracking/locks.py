"""Locks between processes: on a run directory, and on lock files that exist only while they are held.

All of them are ``flock`` locks, which the kernel releases when a process ends, also by SIGKILL.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from fednar_ray.core.errors import BadInput
from fednar_ray.tracking.file_writes import open_without_links, raise_as_run_failed
from fednar_ray.tracking.run_directory import RunDirectory

log = logging.getLogger("fednar_ray")


class DirectoryLocked(BadInput):
    """Another process is writing a run directory."""


class LockHeld(Exception):
    """Another process holds a lock file; the text is what the file says about that process, which may be nothing."""


@contextmanager
def lock_run_directory(directory: Path) -> Iterator[None]:
    """Locks a run directory against other processes.

    Raises:
        DirectoryLocked: Another process holds the lock.
        RunFailed: The lock file cannot be written, or is a link.
    """
    path = RunDirectory(directory).lock
    with raise_as_run_failed(path):
        file = FileIO(path, "a", opener=open_without_links)
    with file:
        if not _try_lock(file, path):
            raise DirectoryLocked(f"{directory} is being written by a process that is running")
        yield


def is_held(path: Path) -> bool:
    """Returns whether a process of this machine holds a lock file. Takes no lock, so that nobody finds the file locked.

    Always False on systems without ``/proc/locks``, and for locks of other machines.
    """
    try:
        inode = path.stat().st_ino
        held = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    return any(field.endswith(f":{inode}") for line in held for field in line.split()[5:6])


@contextmanager
def wait_for_lock_file(path: Path) -> Iterator[None]:
    """Creates and locks a file, waiting while another process of this user holds it, and removes it at the end.

    Raises:
        OSError: The file belongs to another user or is a link, or the file system has no locks.
    """

    def lock(file: FileIO) -> None:
        if os.fstat(file.fileno()).st_uid != os.getuid():
            raise PermissionError(f"{path} belongs to another user")
        fcntl.flock(file, fcntl.LOCK_EX)

    with _remove_at_end(path, _open_locked(path, lock)):
        yield


@contextmanager
def hold_lock_file(path: Path, holder: str) -> Iterator[None]:
    """Creates and locks a file without waiting, and removes it at the end.

    On a network file system the lock also holds between machines, if the server supports locks. If it does not,
    a warning says so, and nothing is locked.

    Args:
        path: The lock file. Its directory must exist.
        holder: What the file says about this process.

    Raises:
        LockHeld: Another process holds the lock.
        OSError: The file cannot be opened, or is a link.
    """

    def lock(file: FileIO) -> None:
        if not _try_lock(file, path):
            file.seek(0)
            raise LockHeld(file.read(200).decode(errors="replace"))

    file = _open_locked(path, lock)
    with _remove_at_end(path, file):
        file.truncate(0)
        file.write(holder.encode())
        yield


def _try_lock(file: FileIO, path: Path) -> bool:
    """Locks an open file without waiting. Returns whether no other process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked: %s; make sure that no second process uses it", path, error.strerror)
    return True


def _open_locked(path: Path, lock: Callable[[FileIO], None]) -> FileIO:
    """Opens a file and locks it. A previous holder may remove the file in between; then a new one is opened."""
    while True:
        file = FileIO(path, "a+", opener=lambda name, flags: open_without_links(name, flags, 0o600))
        try:
            lock(file)
            if _is_still_at(path, file):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _is_still_at(path: Path, file: FileIO) -> bool:
    """Returns whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


@contextmanager
def _remove_at_end(path: Path, file: FileIO) -> Iterator[None]:
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before the lock is released: a process that waits finds a new file there
