"""Ensures that only one process at a time runs a search."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fednar_ray.core.errors import BadInput
from fednar_ray.tracking.file_writes import make_directory
from fednar_ray.tracking.locks import LockHeld, hold_lock_file
from fednar_ray.tracking.run_directory import SearchDirectory


@contextmanager
def hold_search(name: str) -> Iterator[None]:
    """Locks the search ``name`` against other processes, whether or not it exists yet.

    The lock file lies beside the search's directory, ``searches/.NAME.lock``, and names the process that holds it. It
    is removed at the end, and so is ``searches`` if nothing else is in it.

    Raises:
        BadInput: Another process holds the search, or the lock file cannot be used. Nothing was changed.
    """
    path = SearchDirectory.named(name).lock
    with ExitStack() as stack:
        stack.callback(_remove_if_empty, path.parent)
        try:
            _hold(path, stack)
        except LockHeld as holder:
            by = str(holder) or "another process"  # it has not written its name yet
            raise BadInput(f"the search {name!r} is being run by {by}; wait for it, or end it first") from None
        except OSError as error:
            raise BadInput(f"{path} cannot be locked: {error.strerror}") from error
        yield


def _hold(path: Path, stack: ExitStack) -> None:
    while True:
        make_directory(path.parent)
        with suppress(FileNotFoundError):  # another process has just removed the empty directory
            stack.enter_context(hold_lock_file(path, f"process {os.getpid()} on {socket.gethostname()}"))
            return


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):  # other searches are in it
        directory.rmdir()
