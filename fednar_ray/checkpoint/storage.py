"""Where files lie: a directory, or an object store.  Files appear whole or not at all."""

import os
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fednar_ray.core.credentials import check_address
from fednar_ray.core.errors import StorageUnavailable

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


class Storage(Protocol):
    """Named files. Names are relative to the location, separated by ``/``; every failure is an OSError."""

    @property
    def location(self) -> str:
        """The absolute path or the URI, for messages."""

    def write(self, name: str, data: bytes) -> None:
        """Create or replace a file; readers see the old one, or the new one whole."""

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError where there is none."""

    def names(self, prefix: str = "") -> list[str]:
        """The files whose names start with ``prefix``, at any depth, sorted; none where nothing is there yet."""

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""


def open_storage(location: str) -> Storage:
    """A path as a directory; a URI as what pyarrow makes of it, or else fsspec.

    Nothing is created.  Raises StorageUnavailable where the location cannot hold files, or does not answer, and
    BadInput where its address carries a password or a key.
    """
    check_address("the place of the checkpoints", location)
    if "://" in location:
        from fednar_ray.checkpoint.remote import open_remote  # pyarrow takes its time to import

        return open_remote(location)
    return LocalStorage(Path(location))


def storage_location_below(location: str, name: str) -> str:
    """Returns the location of ``name`` below a path or a URI; the query of a URI stays at its end.

    Example:
        >>> storage_location_below("s3://bucket/runs?region=eu", "digits-7f3a09c1")
        's3://bucket/runs/digits-7f3a09c1?region=eu'
    """
    if "://" not in location:
        return os.path.join(location, name)
    address, question, query = location.partition("?")
    return f"{address.rstrip('/')}/{name}{question}{query}"


class LocalStorage:
    """A directory, made when first written to; one writer at a time.

    A file is written under another name, synced to the disk, and renamed; the directory is then synced too.
    What a killed writer left unrenamed is never listed, and removed before the first write.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        if self._directory.exists() and not self._directory.is_dir():
            raise StorageUnavailable(f"{self._directory} is a file; name a directory, or one that can be made")
        self._swept = False
        self._sweeping = threading.Lock()

    @property
    def location(self) -> str:
        """The absolute path."""
        return str(self._directory)

    def write(self, name: str, data: bytes) -> None:
        """As Storage."""
        self._sweep()
        path = self._directory / name
        _make_directory(path.parent)
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
        """As Storage."""
        return (self._directory / name).read_bytes()

    def names(self, prefix: str = "") -> list[str]:
        """As Storage."""
        names = (
            os.path.normpath(f"{folder}/{name}") for folder, name in self._files() if not TEMPORARY.fullmatch(name)
        )
        return sorted(name for name in names if name.startswith(prefix))

    def delete(self, name: str) -> None:
        """As Storage."""
        (self._directory / name).unlink(missing_ok=True)

    def _files(self) -> Iterator[tuple[str, str]]:
        """Each file, temporary or not, as the folder relative to the directory, and its name there."""
        for folder, _, names in os.walk(self._directory, onerror=_raise_unless_absent):
            relative = os.path.relpath(folder, self._directory)
            yield from ((relative, name) for name in names)

    def _sweep(self) -> None:
        """Remove the temporary files of earlier writers, once."""
        with self._sweeping:  # held to the end, so that no file of this writer is there yet
            if not self._swept:
                for folder, name in self._files():
                    if TEMPORARY.fullmatch(name):
                        (self._directory / folder / name).unlink(missing_ok=True)
            self._swept = True


def _raise_unless_absent(error: OSError) -> None:
    """A directory that cannot be listed must not pass for an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _make_directory(path: Path) -> None:
    """Make a directory and those above it, so that they outlive a power cut."""
    if not path.is_dir():
        _make_directory(path.parent)
        path.mkdir(exist_ok=True)
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
