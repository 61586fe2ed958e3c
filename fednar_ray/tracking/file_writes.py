"""Writes to files of a run directory that a crash or a full disk leaves whole, and that never follow a link.

A run directory may come from a stranger, and a link in it could lead to any file of this user.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fednar_ray.core.errors import RunFailed


@contextmanager
def raise_as_run_failed(path: Path) -> Iterator[None]:
    """Turns an OSError within the block into RunFailed, whose message names ``path`` and the reason."""
    try:
        yield
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
        kept = "" if error.errno in (errno.ENOENT, errno.ELOOP) else "; what was written before is whole"
        raise RunFailed(f"{path} cannot be written: {reason}{kept}") from error


def make_directory(directory: Path) -> None:
    """Creates a directory and those above it. Raises RunFailed if that is impossible."""
    with raise_as_run_failed(directory):
        directory.mkdir(parents=True, exist_ok=True)


def replace_file(path: Path, text: str) -> None:
    """Writes a file in one step: a reader finds the old text or the new one. Raises RunFailed if the disk is full."""
    new = path.with_name(path.name + ".new")
    with raise_as_run_failed(path):
        new.unlink(missing_ok=True)  # left by a crash; a link is removed, and not followed
        with open(new, "x", encoding="utf-8") as file:
            file.write(text)
        os.replace(new, path)


def open_without_links(path: str, flags: int, mode: int = 0o666) -> int:
    """Opens a file and returns its descriptor, as the ``opener`` of ``open`` does; a link raises OSError (ELOOP)."""
    return os.open(path, flags | os.O_NOFOLLOW, mode)
