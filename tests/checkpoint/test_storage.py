"""Files in directories, object stores and fsspec's file systems are written as a whole or not at all."""

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer
from pyarrow import fs

from fednar_ray.checkpoint import CheckpointStore, open_storage
from fednar_ray.checkpoint.remote import RemoteStorage
from fednar_ray.core.errors import BadInput, CheckpointError, StorageUnavailable
from tests.checkpoint.test_store import assert_same, build_snapshot

KINDS = ("local", "file", "memory", "s3", "bucket")
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Starts a local S3 server and yields the query that directs a URI to it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "someone")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "something")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = ThreadedMotoServer("127.0.0.1", 0)
        server.start()
        _, port = server.get_host_and_port()
        yield f"endpoint_override=127.0.0.1:{port}&scheme=http"
        server.stop()


@pytest.fixture
def location(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Returns an empty location of each kind."""
    name = uuid4().hex
    if kind in ("s3", "bucket"):
        query = request.getfixturevalue("s3")
        host = query.split("=")[1].split("&")[0]
        fs.S3FileSystem(endpoint_override=host, scheme="http", allow_bucket_creation=True).create_dir(name)
        return f"s3://{name}/runs/one?{query}" if kind == "s3" else f"s3://{name}?{query}"
    folder = tmp_path / "some folder" / "checkpoints"
    return {"local": str(folder), "file": folder.as_uri(), "memory": f"memory://{name}/deep"}[kind]


@every_kind
def test_files_are_written_replaced_listed_and_deleted(location):
    storage = open_storage(location)
    assert storage.list_names() == []
    contents = {"b": b"\0\xff\n", "a": b"", "rows/10": os.urandom(100_000), "rows/9": b"nine"}
    for name, content in contents.items():
        storage.write(name, b"something longer than what replaces it" * 10)
        storage.write(name, content)
    assert storage.list_names() == ["a", "b", "rows/10", "rows/9"]
    assert storage.list_names("rows/1") == ["rows/10"]
    assert {name: storage.read(name) for name in contents} == contents
    storage.delete("rows/9")
    storage.delete("rows/9")
    storage.delete("never/there")
    assert open_storage(location).list_names() == ["a", "b", "rows/10"]
    for missing in ("rows/9", "never/there"):
        with pytest.raises(FileNotFoundError):
            storage.read(missing)


@every_kind
def test_a_checkpoint_is_read_back_unchanged_from_every_kind_of_storage(location):
    store = CheckpointStore(open_storage(location), keep=1)
    store.save(build_snapshot(10, {3: 1, 4: 9}))
    second = build_snapshot(20, {3: 1, 4: 15, 5: 12})
    store.save(second)
    assert_same(CheckpointStore(open_storage(location), keep=1).load(), second)
    # manifest, arrays, three rows, and two segments of ten lines: nothing of the first remains
    assert len(open_storage(location).list_names()) == 1 + 1 + 3 + 2


def test_opening_and_reading_create_nothing(tmp_path):
    storage = open_storage(str(tmp_path / "new"))
    assert (storage.list_names(), storage.location) == ([], str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_relative_path_refers_to_the_directory_in_which_it_was_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("checkpoints")
    monkeypatch.chdir("/")
    storage.write("a", b"1")
    assert (tmp_path / "checkpoints" / "a").read_bytes() == b"1"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_local_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    storage = open_storage(str(tmp_path))
    storage.write("a", b"old")

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        storage.write("a", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_files_of_a_killed_writer_are_not_listed_and_are_removed_by_the_next_write(tmp_path):
    (tmp_path / "rows").mkdir()
    left = [tmp_path / ".round-00000010.json.0badcafe.tmp", tmp_path / "rows" / ".1-2.safetensors.deadbeef.tmp"]
    mine = tmp_path / ".notes.tmp"
    for path in (*left, mine):
        path.write_bytes(b"torn")
    reader = open_storage(str(tmp_path))
    assert reader.list_names() == [".notes.tmp"]
    assert all(path.exists() for path in left)  # a reader does not delete files that a live writer may rename
    open_storage(str(tmp_path)).write("a", b"")
    assert not any(path.exists() for path in left)
    assert mine.exists()


def test_an_unreadable_directory_is_not_treated_as_empty(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="symbolic links"):
        open_storage(str(loop)).list_names()
    with pytest.raises(CheckpointError, match=r"loop cannot be listed: .*symbolic links"):
        CheckpointStore(open_storage(str(loop)), keep=1).load()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nope://somewhere/else", "nope://somewhere/else: Protocol not known: nope; give a path, or a URI like s3://"),
        ("s3://shelf/x?color=red", "Unexpected query parameter in S3 URI: 'color'; give"),
        ("s3://", "s3:// has no bucket; write it as scheme://bucket/directory"),
        ("s3://[shelf", "Cannot parse URI"),
        ("://", "Cannot parse URI"),
    ],
)
def test_an_invalid_location_is_refused_with_a_valid_example(uri, message):
    with pytest.raises(StorageUnavailable, match=message):
        open_storage(uri)


def test_a_location_with_a_key_in_its_address_is_refused_without_repeating_it():
    with pytest.raises(BadInput, match="the location of the checkpoints: the address contains a password") as refused:
        open_storage("s3://me:hunter2@shelf/x?color=red")
    assert "hunter2" not in str(refused.value)


def test_a_missing_bucket_is_refused(s3):
    with pytest.raises(StorageUnavailable, match=r"^s3://nowhere/x\?.*the bucket nowhere does not exist; create it"):
        open_storage(f"s3://nowhere/x?{s3}")


def test_a_file_is_refused_as_a_directory(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(StorageUnavailable, match="taken is a file; set checkpoint"):
        open_storage(str(tmp_path / "taken"))


class FaultyFileSystem(MemoryFileSystem):
    """A file system of fsspec that first fails with each of ``faults``."""

    cachable = False

    def __init__(self, faults: list[Exception]) -> None:
        super().__init__()
        self.faults = faults

    def open(self, path: str, *arguments: object, **options: object) -> object:
        if self.faults:
            raise self.faults.pop()
        return super().open(path, *arguments, **options)

    def find(self, path: str, *arguments: object, **options: object) -> object:
        if self.faults:
            raise self.faults.pop()
        return super().find(path, *arguments, **options)


def build_faulty_storage(*faults: Exception) -> tuple[RemoteStorage, list[Exception]]:
    """Returns a remote storage with one file, and the list of failures that are still to come."""
    filesystem = FaultyFileSystem([])
    storage = RemoteStorage(
        fs.PyFileSystem(fs.FSSpecHandler(filesystem)), f"/{uuid4().hex}", "memory://faulty", pauses=(0, 0)
    )
    storage.write("a", b"old")
    filesystem.faults += faults
    return storage, filesystem.faults


class CustomError(Exception):
    """An exception class of a package for fsspec."""


@pytest.mark.parametrize("fault", [OSError("connection reset"), TimeoutError(), CustomError("503 slow down")])
def test_an_operation_is_repeated_after_a_transient_failure(fault):
    storage, _ = build_faulty_storage(fault, fault)
    storage.write("a", b"new")
    assert storage.read("a") == b"new"
    storage, _ = build_faulty_storage(fault, fault)
    assert storage.read("a") == b"old"
    storage, _ = build_faulty_storage(fault, fault)
    assert storage.list_names() == ["a"]


@pytest.mark.parametrize("fault", [OSError("connection reset"), CustomError("503 slow down")])
def test_a_remote_storage_that_keeps_failing_raises_an_oserror(fault):
    storage, _ = build_faulty_storage(fault, fault, fault)
    with pytest.raises(OSError, match=str(fault)):
        storage.write("a", b"new")
    assert storage.read("a") == b"old"


def test_a_storage_that_does_not_answer_is_refused_when_it_is_opened():
    storage, _ = build_faulty_storage(CustomError("no route to host"))
    with pytest.raises(StorageUnavailable, match=r"memory://faulty does not answer: no route to host; check the addr"):
        storage.check()


@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "quota"), PermissionError(errno.EACCES, "no")]
)
def test_an_operation_is_not_repeated_after_a_permanent_failure(fault):
    storage, left = build_faulty_storage(fault, fault, fault)
    with pytest.raises(OSError, match=fault.strerror):
        storage.write("a", b"new")
    assert len(left) == 2


def test_a_remote_checkpoint_survives_failures_in_between():
    storage, faults = build_faulty_storage()
    store = CheckpointStore(storage, keep=2)
    store.save(build_snapshot(10, {1: 2}))
    faults += [OSError("connection reset")] * 2
    second = build_snapshot(20, {1: 12})
    store.save(second)
    assert_same(store.load(), second)
    assert np.array_equal(store.load().read_row(1), second.read_row(1))
