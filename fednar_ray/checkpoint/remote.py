"""Stores checkpoint files behind a URI, with a file system of pyarrow or fsspec."""

import errno
import posixpath
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import fsspec
from pyarrow import ArrowInvalid, fs

from fednar_ray.checkpoint.local import LocalStorage
from fednar_ray.checkpoint.storage import Storage
from fednar_ray.core.errors import StorageUnavailable, first_line

RETRY_SECONDS = (0.5, 2.0, 8.0)
FULL = (errno.ENOSPC, errno.EDQUOT)
BUCKETED = ("s3", "gcs")  # pyarrow's names of object stores whose paths start with a bucket
Result = TypeVar("Result")


class RemoteStorage:
    """A storage in a directory of a file system that is reached over a network.

    A failed operation is repeated after each of ``pauses`` (seconds), unless repeating cannot help. Object stores
    show a file only when it is complete. On other file systems an interrupted write may leave a torn file, which
    readers must recognize by its checksum.
    """

    def __init__(
        self, filesystem: fs.FileSystem, directory: str, location: str, pauses: Sequence[float] = RETRY_SECONDS
    ) -> None:
        self.location = location
        self._filesystem = filesystem
        self._directory = directory.rstrip("/")
        self._pauses = tuple(pauses)

    def write(self, name: str, data: bytes) -> None:
        """Creates or replaces a file, and repeats failed attempts."""
        self._retry(lambda: self._put(self._build_path(name), data))

    def read(self, name: str) -> bytes:
        """Returns the content of a file. Raises FileNotFoundError if there is none."""
        return self._retry(lambda: self._get(self._build_path(name)))

    def list_names(self, prefix: str = "") -> list[str]:
        """Returns the sorted names of the files that start with ``prefix``."""
        return [name for name in self._retry(self._list) if name.startswith(prefix)]

    def delete(self, name: str) -> None:
        """Removes a file, if it exists."""
        with suppress(FileNotFoundError):
            self._retry(lambda: self._filesystem.delete_file(self._build_path(name)))

    def check(self) -> None:
        """Raises StorageUnavailable if the location does not answer, or its bucket does not exist."""
        bucket = self._directory.split("/")[0]
        bucketed = self._filesystem.type_name in BUCKETED
        if bucketed and not bucket:
            raise StorageUnavailable(f"{self.location} has no bucket; write it as scheme://bucket/directory")
        try:
            missing = bucketed and self._filesystem.get_file_info(bucket).type == fs.FileType.NotFound
            self._list()
        except Exception as error:
            raise StorageUnavailable(
                f"{self.location} does not answer: {first_line(error)}; check the address and the credentials"
            ) from error
        if missing:
            raise StorageUnavailable(f"{self.location}: the bucket {bucket} does not exist; create it, or use another")

    def _build_path(self, name: str) -> str:
        return posixpath.join(self._directory, name)

    def _put(self, path: str, data: bytes) -> None:
        try:
            stream = self._filesystem.open_output_stream(path)
        except FileNotFoundError:
            self._filesystem.create_dir(posixpath.dirname(path), recursive=True)
            stream = self._filesystem.open_output_stream(path)
        with stream:
            stream.write(data)

    def _get(self, path: str) -> bytes:
        with self._filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())

    def _list(self) -> list[str]:
        selector = fs.FileSelector(self._directory, recursive=True, allow_not_found=True)
        infos = self._filesystem.get_file_info(selector)
        return sorted(posixpath.relpath(i.path, self._directory or "/") for i in infos if i.type == fs.FileType.File)

    def _retry(self, operation: Callable[[], Result]) -> Result:
        for pause in self._pauses:
            try:
                return operation()
            except (FileNotFoundError, PermissionError):
                raise
            except Exception as error:
                if getattr(error, "errno", None) in FULL:
                    raise
            time.sleep(pause)
        try:
            return operation()
        except OSError:
            raise
        except Exception as error:  # file systems of fsspec raise other exceptions, too
            raise OSError(first_line(error)) from error


def open_remote(uri: str) -> Storage:
    """Opens the storage behind a URI. Raises StorageUnavailable as ``open_storage`` does."""
    try:
        filesystem, directory = _find_filesystem(uri)
    except Exception as error:
        raise StorageUnavailable(
            f"{uri}: {first_line(error)}; give a path, or a URI like s3://bucket/directory of a kind that pyarrow "
            "or an installed package of fsspec knows"
        ) from error
    if isinstance(filesystem, fs.LocalFileSystem):
        return LocalStorage(Path(directory))
    storage = RemoteStorage(filesystem, directory, uri)
    storage.check()
    return storage


def _find_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    try:
        filesystem, directory = fs.FileSystem.from_uri(uri)
    except ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
        other, directory = fsspec.core.url_to_fs(uri)
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(other))
    return filesystem, directory
