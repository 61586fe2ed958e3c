"""Stores checkpoint files in a local directory."""

import os
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

from fednar_ray.core.errors import StorageUnavailable

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


class LocalStorage:
    """A storage in a directory, which is created by the first write. Only one process may write at a time.

    A file is written under a temporary name, synced to the disk, and renamed; then the directory is synced too.
    Temporary files of a writer that was killed are never listed, and are removed before the first write.

    Raises:
        StorageUnavailable: The path is a file.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        if self._directory.exists() and not self._directory.is_dir():
            raise StorageUnavailable(f"{self._directory} is a file; set checkpoint.storage to a directory")
        self._swept = False
        self._sweeping = threading.Lock()

    @property
    def location(self) -> str:
        """The absolute path of the directory, for messages."""
        return str(self._directory)

    def write(self, name: str, data: bytes) -> None:
        """Creates or replaces a file."""
        self._remove_temporary_files()
        path = self._directory / name
        _create_directory(path.parent)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)

    def read(self, name: str) -> bytes:
        """Returns the content of a file. Raises FileNotFoundError if there is none."""
        return (self._directory / name).read_bytes()

    def list_names(self, prefix: str = "") -> list[str]:
        """Returns the sorted names of the files that start with ``prefix``."""
        names = (
            os.path.normpath(f"{folder}/{name}") for folder, name in self._list_files() if not TEMPORARY.fullmatch(name)
        )
        return sorted(name for name in names if name.startswith(prefix))

    def delete(self, name: str) -> None:
        """Removes a file, if it exists."""
        (self._directory / name).unlink(missing_ok=True)

    def _list_files(self) -> Iterator[tuple[str, str]]:
        """Yields each file, temporary or not, as its folder relative to the directory and its name in that folder."""
        for folder, _, names in os.walk(self._directory, onerror=_raise_unless_absent):
            relative = os.path.relpath(folder, self._directory)
            yield from ((relative, name) for name in names)

    def _remove_temporary_files(self) -> None:
        """Removes the temporary files of earlier writers. Only the first call does anything."""
        with self._sweeping:  # held to the end, so that no temporary file is this writer's
            if not self._swept:
                for folder, name in self._list_files():
                    if TEMPORARY.fullmatch(name):
                        (self._directory / folder / name).unlink(missing_ok=True)
            self._swept = True


def _raise_unless_absent(error: OSError) -> None:
    """Raises the error of a directory that cannot be listed, which must not be mistaken for an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _create_directory(path: Path) -> None:
    """Creates a directory and those above it, and syncs each of them, so that they survive a power failure."""
    if not path.is_dir():
        _create_directory(path.parent)
        path.mkdir(exist_ok=True)
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
