"""A checkpoint is read back exactly or an error is raised: after crashes at any instant, damage, and on full disks."""

import copy
import hashlib
import json
import logging
import math
import os
import pickle
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from fednar_ray.checkpoint import BackgroundWriter, Checkpoint, CheckpointStore, Snapshot, Storage, open_storage
from fednar_ray.checkpoint.manifest import cut_history
from fednar_ray.core.errors import CheckpointError
from tests.support.drawn import draw
from tests.support.forked_workers import get_executable

drawn = draw(60)


def build_row(client_id: int, version: int) -> np.ndarray:
    return np.random.default_rng([client_id, version]).normal(size=5).astype(np.float32)


def build_line(round_index: int) -> str:
    return json.dumps({"round": round_index, "loss": 1 / (round_index + 3), "note": "ä\u2028\n"}, ensure_ascii=False)


def build_snapshot(next_round: int, rows: Mapping[int, int], variant: int = 0, **changes: Any) -> Snapshot:
    """Returns the state after ``next_round`` rounds; ``variant`` distinguishes two states of the same round."""
    rng = np.random.default_rng([next_round, variant])
    values: dict[str, Any] = {
        "next_round": next_round,
        "arrays": {
            "parameters": rng.normal(size=7).astype(np.float32),
            "buffers": np.array([1 / 3, np.nan, -np.inf, -0.0, 5e-324, next_round]),
            "none": np.empty(0),
        },
        "rows": dict(rows),
        "read_row": lambda client_id: build_row(client_id, rows[client_id]),
        "facts": {"run": "7f3a", "variant": variant, "server_lr": 0.1 + 0.2, "seen": [next_round, None, math.inf]},
    }
    if "history" not in changes:
        values["history"] = tuple(build_line(i) for i in range(next_round))
    return Snapshot(**{**values, **changes})


def assert_same(checkpoint: Checkpoint | None, saved: Snapshot) -> None:
    """Asserts that a checkpoint equals the saved snapshot bit by bit."""
    assert checkpoint is not None
    assert checkpoint.next_round == saved.next_round
    assert checkpoint.arrays.keys() == saved.arrays.keys()
    for name, array in saved.arrays.items():
        loaded = checkpoint.arrays[name]
        assert (loaded.dtype, loaded.shape, loaded.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert checkpoint.rows == saved.rows
    for client_id in saved.rows:
        row = checkpoint.read_row(client_id)
        assert (row.dtype, row.tobytes()) == (np.float32, saved.read_row(client_id).tobytes())
    assert is_same_json(checkpoint.facts, saved.facts)
    assert checkpoint.history == saved.history


def is_same_json(left: Any, right: Any) -> bool:
    """Returns whether two values are equal in value and type; NaN equals NaN, and 0.0 does not equal -0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(is_same_json(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(is_same_json, left, right))
    return repr(left) == repr(right)


class Shelf:
    """A storage in memory whose operations are atomic, as in an object store."""

    location = "the shelf"

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.written: list[tuple[str, int]] = []

    def write(self, name: str, data: bytes) -> None:
        self.files[name] = data
        self.written.append((name, len(data)))

    def read(self, name: str) -> bytes:
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def list_names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.files if name.startswith(prefix))

    def delete(self, name: str) -> None:
        self.files.pop(name, None)


def load_manifests(storage: Storage) -> dict[str, dict[str, Any]]:
    return {n: json.loads(storage.read(n)) for n in storage.list_names("round-") if n.endswith(".json")}


def iter_entries(value: Any) -> Iterator[dict[str, Any]]:
    """Yields every file entry of a manifest, at any depth."""
    if isinstance(value, dict):
        if "sha256" in value and "name" in value:
            yield value
        for key, inner in value.items():
            yield from iter_entries(inner) if key != "facts" else ()
    elif isinstance(value, list):
        for inner in value:
            yield from iter_entries(inner)


def list_files(storage: Storage, manifest: str) -> set[str]:
    return {manifest, *(file["name"] for file in iter_entries(load_manifests(storage)[manifest]))}


def assert_nothing_more_than_named(storage: Storage, rounds: Sequence[int]) -> None:
    """Asserts that the complete checkpoints of ``rounds`` exist, and no other file."""
    kept = [f"round-{i:08d}.json" for i in rounds]
    assert sorted(load_manifests(storage)) == kept
    assert set(storage.list_names()) == set().union(*(list_files(storage, name) for name in kept))


def assert_whole(storage: Storage) -> None:
    """Asserts that the files of every manifest exist and match it."""
    for name in load_manifests(storage):
        for file in iter_entries(load_manifests(storage)[name]):
            assert hashlib.sha256(storage.read(file["name"])).hexdigest() == file["sha256"]


# --- Round trip


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@drawn
@given(facts=st.dictionaries(st.text(), json_values, max_size=5))
@example(facts={"sha256": "not mine", "format": 7, "a": [math.nan, -math.inf, -0.0, 2**70, 1e-320, 0.1]})
def test_facts_are_read_back_exactly(facts):
    storage = Shelf()
    CheckpointStore(storage, keep=1).save(build_snapshot(1, {}, facts=facts))
    assert is_same_json(CheckpointStore(storage, keep=1).load().facts, facts)


@drawn
@given(
    array=arrays_of.arrays(
        st.sampled_from([np.float32, np.float64]), arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0)
    ),
    turned=st.booleans(),
)
def test_arrays_are_read_back_bitwise_and_writable(array, turned):
    array = array.T if turned else array
    storage = Shelf()
    CheckpointStore(storage, keep=1).save(build_snapshot(1, {}, arrays={"a": array}))
    loaded = CheckpointStore(storage, keep=1).load().arrays["a"]
    assert (loaded.dtype, loaded.shape, loaded.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert loaded.flags.writeable


def test_loading_without_a_checkpoint_returns_none():
    assert CheckpointStore(Shelf(), keep=1).load() is None
    assert CheckpointStore(Shelf({"README": b"", "rows/1-2-0123456789abcdef.safetensors": b""}), keep=1).load() is None


def test_reading_an_unknown_row_raises_key_error():
    store = CheckpointStore(Shelf(), keep=1)
    store.save(build_snapshot(1, {3: 0}))
    with pytest.raises(KeyError):
        store.load().read_row(4)


# --- The cost of a checkpoint, and which files remain


def list_files_on_disk(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns the inode and the modification time of every file."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {p.relative_to(folder).as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns) for p in paths}


@pytest.mark.parametrize("resumed", [False, True])
def test_only_changed_rows_are_written(tmp_path, resumed):
    clients = 300
    store = CheckpointStore(open_storage(str(tmp_path)), keep=2)
    first = {i: i % 7 for i in range(clients)}
    store.save(build_snapshot(10, first))
    before = list_files_on_disk(tmp_path)
    if resumed:
        store = CheckpointStore(open_storage(str(tmp_path)), keep=2)
        store.load()
    second = build_snapshot(13, {**first, **dict.fromkeys(range(100, 118), 11), clients: 12, clients + 1: 12})
    store.save(second)
    after = list_files_on_disk(tmp_path)
    touched = sorted(name.split("-")[0].split("/")[0] for name in after if before.get(name) != after[name])
    assert touched == ["history"] * 3 + ["round"] * 2 + ["rows"] * 20  # three lines, arrays, manifest
    assert before.items() <= after.items()
    assert_same(store.load(), second)


@given(lines=st.integers(0, 10**6))
def test_a_history_is_cut_into_few_spans_without_gaps(lines):
    cut = list(cut_history(lines))
    assert [start for start, _ in cut] == [0, *(stop for _, stop in cut)][: len(cut)]
    assert sum(stop - start for start, stop in cut) == lines
    assert len(cut) <= 9 * len(str(lines))


def test_the_cost_of_a_history_does_not_grow_with_the_square_of_the_rounds():
    storage = Shelf()
    store = CheckpointStore(storage, keep=1)
    lines = tuple(json.dumps({"round": i, "pad": "x" * 200}) for i in range(10_000))
    for rounds in range(10, 10_001, 10):
        store.save(build_snapshot(rounds, {}, history=lines[:rounds]))
    written = sum(size for name, size in storage.written if name.startswith("history"))
    # a line is at most in a span of 10, of 100, of 1000 and of 10,000; whole each time, it would be written 500 times
    assert written < 4 * sum(len(line) + 1 for line in lines)
    assert max(size for name, size in storage.written if name.endswith(".json")) < 10_000
    assert store.load().history == lines


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_files_of_kept_checkpoints_remain(keep):
    storage = Shelf({"notes.txt": b"mine", "rows/mine": b"", "round-7.json": b"", "other/round-00000001.json": b""})
    mine = set(storage.list_names())
    store = CheckpointStore(storage, keep)
    versions: dict[int, int] = {}
    for next_round in range(1, 8):
        versions |= {next_round % 3: next_round - 1, 9: 0}
        store.save(build_snapshot(next_round, versions))
        for name in mine:
            assert storage.files.pop(name) is not None
        assert_nothing_more_than_named(storage, range(max(1, next_round - keep + 1), next_round + 1))
        storage.files |= dict.fromkeys(mine, b"")


def test_the_file_of_a_client_without_a_row_is_deleted():
    storage = Shelf()
    store = CheckpointStore(storage, keep=1)
    store.save(build_snapshot(1, {1: 0, 2: 0}))
    store.save(build_snapshot(2, {2: 0}))
    assert_nothing_more_than_named(storage, [2])
    assert store.load().rows == {2: 0}


def test_the_next_save_deletes_leftovers_of_a_crash():
    storage = Shelf()
    CheckpointStore(storage, keep=2).save(build_snapshot(1, {1: 0}))
    storage.files |= {
        "rows/1-1-0123456789abcdef.safetensors": b"",
        "round-00000002-0123456789abcdef.safetensors": b"torn",
        "history-00000001-00000002-0123456789abcdef.jsonl": b"",
    }
    CheckpointStore(storage, keep=2).save(build_snapshot(3, {1: 2}))
    assert_nothing_more_than_named(storage, [1, 3])


def test_saving_the_same_round_again_replaces_it():
    storage = Shelf()
    store = CheckpointStore(storage, keep=2)
    store.save(build_snapshot(1, {1: 0}))
    store.save(build_snapshot(2, {1: 1}))
    again = build_snapshot(2, {1: 0, 2: 1}, variant=1, history=(build_line(0), '"another"'))
    store.save(again)
    assert_nothing_more_than_named(storage, [1, 2])
    assert_same(CheckpointStore(storage, keep=2).load(), again)


def test_a_new_run_does_not_depend_on_older_files():
    storage = Shelf()
    other = CheckpointStore(storage, keep=2)
    other.save(build_snapshot(20, {1: 0}))
    fresh = build_snapshot(
        1, {1: 0}, read_row=lambda _: build_row(7, 7)
    )  # the same client and version, but from another run
    for store in (CheckpointStore(Shelf(storage.files), keep=2), other):
        store.save(fresh)
        assert_same(store.load(), fresh)


# --- Crashes


class Killed(BaseException):
    """Stands for SIGKILL: the process does nothing after it."""


class MortalShelf(Shelf):
    """Fails before the change ``last + 1``; every later operation raises too, so nothing is cleaned up."""

    def __init__(self, files: Mapping[str, bytes], last: float) -> None:
        super().__init__(files)
        self._changes, self._last, self._lock = 0, last, threading.Lock()

    def _live(self, change: int) -> None:
        self._changes += change
        if self._changes > self._last:
            raise Killed

    def write(self, name: str, data: bytes) -> None:
        with self._lock:
            self._live(1)
            super().write(name, data)

    def read(self, name: str) -> bytes:
        self._live(0)
        return super().read(name)

    def list_names(self, prefix: str = "") -> list[str]:
        self._live(0)
        return super().list_names(prefix)

    def delete(self, name: str) -> None:
        with self._lock:
            self._live(1)
            super().delete(name)


TEN = build_snapshot(10, {1: 3, 2: 9, 3: 4})
NEXT = {
    "a later round": build_snapshot(20, {1: 3, 2: 15, 4: 19}),
    "the same round": build_snapshot(10, {1: 3, 2: 8, 5: 7}, variant=1),
    "a longer history": build_snapshot(100, {1: 99}),
}


def iter_survivors(files: Mapping[str, bytes], new: Snapshot) -> Iterator[Shelf]:
    """Yields the storage after a kill at every instant of saving ``new``, and finally after a complete save."""
    for last in count():
        storage = MortalShelf(files, last)
        store = CheckpointStore(storage, keep=1)
        store.load()
        try:
            store.save(new)
        except Killed:
            yield Shelf(storage.files)
        else:
            yield Shelf(storage.files)
            return


@pytest.mark.parametrize("case", NEXT)
def test_a_crash_at_any_moment_leaves_the_old_or_the_new_checkpoint_intact(case):
    shelf = Shelf()
    CheckpointStore(shelf, keep=1).save(TEN)
    seen = []
    for storage in iter_survivors(shelf.files, NEXT[case]):
        assert_whole(storage)
        store = CheckpointStore(storage, keep=1)
        loaded = store.load()
        new = is_same_json(loaded.facts, NEXT[case].facts)
        assert_same(loaded, NEXT[case] if new else TEN)
        seen.append(new)
        after = build_snapshot(101, {1: 3, 2: 100, 6: 7})
        store.save(after)
        assert_nothing_more_than_named(storage, [101])
        assert_same(store.load(), after)
    assert seen == sorted(seen)  # once the new checkpoint exists, it remains
    assert (seen[0], seen[-1]) == (False, True)


@drawn
@given(
    keep=st.integers(1, 3),
    course=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9), st.none() | st.integers(0, 14)), max_size=8),
)
def test_a_run_that_crashes_repeatedly_resumes_from_its_newest_checkpoint(keep, course):
    files: dict[str, bytes] = {}
    newest: Snapshot | None = None
    for number, (ahead, client_id, last) in enumerate(course):
        storage = MortalShelf(files, math.inf if last is None else last)
        store = CheckpointStore(storage, keep)
        loaded = store.load()
        if newest is None:
            assert loaded is None
        else:
            assert_same(loaded, newest)
        next_round = ahead + (newest.next_round if newest else 0)
        new = build_snapshot(next_round, {**(newest.rows if newest else {}), client_id: next_round}, number)
        try:
            store.save(new)
            newest = new
        except Killed:
            survived = CheckpointStore(Shelf(storage.files), keep).load()
            newest = new if survived and is_same_json(survived.facts, new.facts) else newest
        files = storage.files
    storage = Shelf(files)
    CheckpointStore(storage, keep=1).save(build_snapshot(100, {}))
    assert_nothing_more_than_named(storage, [100])


def die_at(instant: int) -> None:
    """Ends this process before a given call that changes the disk."""
    passed = count(1)
    lock = threading.Lock()

    def mortal(name: str) -> None:
        call = getattr(os, name)

        def wrapper(*arguments: Any, **options: Any) -> Any:
            with lock:
                if next(passed) == instant:
                    if name == "fsync" and stat.S_ISREG(os.fstat(arguments[0]).st_mode):
                        os.ftruncate(
                            arguments[0], os.fstat(arguments[0]).st_size // 2
                        )  # what was not synced may be lost
                    os._exit(9)
                return call(*arguments, **options)

        setattr(os, name, wrapper)

    for name in ("fsync", "replace", "unlink", "mkdir"):
        mortal(name)


def die_at_every_instant(folder: Path) -> None:
    """Creates a directory in ``folder`` for two cases of NEXT and each instant, by a process that is killed then."""
    CheckpointStore(open_storage(str(folder / "start")), keep=1).save(TEN)
    for case in ("a later round", "the same round"):
        for instant in count(1):
            directory = folder / case / str(instant)
            shutil.copytree(folder / "start", directory)
            child = os.fork()
            if child == 0:
                store = CheckpointStore(open_storage(str(directory)), keep=1)
                store.load()
                die_at(instant)
                store.save(NEXT[case])
                os._exit(0)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
                break


@pytest.mark.usefixtures("processes")
def test_a_process_killed_at_any_moment_leaves_the_old_or_the_new_checkpoint(tmp_path):
    # in its own process, since forking a process with threads is unsafe
    program = "import sys, pathlib, tests.checkpoint.test_store as t; t.die_at_every_instant(pathlib.Path(sys.argv[1]))"
    subprocess.run([get_executable(), "-c", program, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    for case in ("a later round", "the same round"):
        new, seen = NEXT[case], []
        directories = sorted((tmp_path / case).iterdir(), key=lambda path: int(path.name))
        assert len(directories) > 15
        for directory in directories:
            storage = open_storage(str(directory))
            loaded = CheckpointStore(storage, keep=1).load()
            assert_whole(storage)
            seen.append(is_same_json(loaded.facts, new.facts))
            assert_same(loaded, new if seen[-1] else TEN)
        assert seen == sorted(seen)
        assert {*seen} == {False, True}
        for directory in directories[:: len(directories) // 3]:
            storage = open_storage(str(directory))
            store = CheckpointStore(storage, keep=1)
            store.save(build_snapshot(101, {1: 3}))
            assert_same(store.load(), build_snapshot(101, {1: 3}))
            assert_nothing_more_than_named(storage, [101])
            assert list(directory.rglob("*.tmp")) == []


class FailingShelf(Shelf):
    """Raises at one write; with ``late``, the write takes place nevertheless, as if its reply were lost."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.writes_left, self._late = count(10**9, -1), late

    def write(self, name: str, data: bytes) -> None:
        failing = next(self.writes_left) == 0
        if not failing or self._late:
            super().write(name, data)
        if failing:
            raise OSError("connection reset")


def find_failure(store: CheckpointStore, new: Snapshot) -> str | None:
    """Returns the pickled and unpickled error of saving ``new``, or None if it succeeds."""
    try:
        store.save(new)
    except CheckpointError as error:
        return str(pickle.loads(pickle.dumps(error)))  # noqa: S301
    return None


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("case", NEXT)
def test_a_failed_write_raises_checkpoint_error_and_keeps_earlier_checkpoints(case, late):
    for failing in count():
        storage = FailingShelf(late)
        store = CheckpointStore(storage, keep=1)
        store.save(TEN)
        storage.writes_left = count(failing, -1)
        message = find_failure(store, NEXT[case])
        if message is None:
            break
        assert message == (
            f"the checkpoint of round {NEXT[case].next_round} could not be written to the shelf: connection reset; "
            "the checkpoint of round 10 before it is intact"
        )
        loaded = CheckpointStore(storage, keep=1).load()
        new = late and is_same_json(loaded.facts, NEXT[case].facts)
        assert_same(loaded, NEXT[case] if new else TEN)
        assert set(storage.list_names()) == set().union(
            *(list_files(storage, name) for name in load_manifests(storage))
        )
        store.save(NEXT[case])
        assert_nothing_more_than_named(storage, [NEXT[case].next_round])
    assert failing >= 4


# --- Damage

OLDER, NEWER = build_snapshot(10, {1: 3, 2: 9, 3: 4}), build_snapshot(22, {1: 3, 2: 21, 4: 15})
NEWEST = "round-00000022.json"


def save_two_checkpoints() -> dict[str, bytes]:
    """Returns the files of two checkpoints with a common row and history segment, and a file of neither."""
    storage = Shelf({"notes.txt": b"mine"})
    store = CheckpointStore(storage, keep=2)
    store.save(OLDER)
    store.save(NEWER)
    return storage.files


TWO = save_two_checkpoints()
USED_BY_OLDER, USED_BY_NEWER = (list_files(Shelf(TWO), name) for name in ("round-00000010.json", NEWEST))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    storage = open_storage(str(folder))
    for name, data in TWO.items():
        storage.write(name, data)
    return folder


@draw(200)
@given(data=st.data())
def test_any_flipped_bit_or_truncation_is_detected(folder, data):
    name = data.draw(st.sampled_from(sorted(TWO)), "file")
    whole = bytearray(TWO[name])
    if data.draw(st.booleans(), "flipped, not truncated"):
        bit = data.draw(st.integers(0, 8 * len(whole) - 1), "bit")
        whole[bit // 8] ^= 1 << bit % 8
    else:
        del whole[data.draw(st.integers(0, len(whole) - 1), "length") :]
    (folder / name).write_bytes(whole)
    try:
        store = CheckpointStore(open_storage(str(folder)), keep=2)
        if name not in USED_BY_NEWER:
            assert_same(store.load(), NEWER)
        elif name not in USED_BY_OLDER:
            assert_same(store.load(), OLDER)
        else:
            with pytest.raises(CheckpointError, match=f"every checkpoint in {folder} is damaged: .*{name}"):
                store.load()
    finally:
        (folder / name).write_bytes(TWO[name])


@pytest.mark.parametrize("name", sorted(USED_BY_NEWER - USED_BY_OLDER))
def test_damage_is_reported_with_the_file_and_the_problem(name, caplog):
    CheckpointStore(Shelf({**TWO, name: TWO[name][:-1] + bytes([TWO[name][-1] ^ 1])}), keep=2).load()
    CheckpointStore(Shelf({n: data for n, data in TWO.items() if n != name}), keep=2).load()
    found = [f"{name} does not hold what was written: ", f"{name} is missing"]
    if name == NEWEST:
        del found[1]  # without its manifest, a checkpoint does not exist
    assert {(record.name, record.levelno) for record in caplog.records} == {("fednar_ray", logging.WARNING)}
    for message, start in zip(caplog.messages, found, strict=True):
        assert message.startswith(f"checkpoint {NEWEST} in the shelf cannot be used: {start}")


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_does_not_count_as_kept(keep):
    storage = Shelf(TWO)
    del storage.files[next(n for n in USED_BY_NEWER if n.endswith("safetensors") and n not in USED_BY_OLDER)]
    del storage.files["notes.txt"]
    store = CheckpointStore(storage, keep)
    assert_same(store.load(), OLDER)
    store.save(build_snapshot(15, {1: 3}))
    assert_nothing_more_than_named(storage, [10, 15][-keep:])


def test_a_damaged_checkpoint_is_deleted_after_a_later_round():
    storage = Shelf(TWO)
    del storage.files[next(n for n in USED_BY_NEWER if n.endswith("safetensors") and n not in USED_BY_OLDER)]
    del storage.files["notes.txt"]
    store = CheckpointStore(storage, keep=2)
    store.load()
    store.save(build_snapshot(30, {1: 3, 2: 21}))  # version 21 again, of which the file may be damaged
    assert_nothing_more_than_named(storage, [10, 30])
    assert_same(store.load(), build_snapshot(30, {1: 3, 2: 21}))


def test_a_damaged_checkpoint_that_is_written_again_is_intact():
    storage = Shelf(TWO)
    for name in USED_BY_NEWER - USED_BY_OLDER - {NEWEST}:
        storage.files[name] = b"damaged"
    del storage.files["notes.txt"]
    store = CheckpointStore(storage, keep=2)
    assert_same(store.load(), OLDER)
    store.save(NEWER)
    assert storage.files == {name: data for name, data in TWO.items() if name != "notes.txt"}
    assert_same(store.load(), NEWER)


def test_a_row_damaged_after_loading_raises_checkpoint_error():
    storage = Shelf(TWO)
    checkpoint = CheckpointStore(storage, keep=2).load()
    name = next(n for n in USED_BY_NEWER if n.startswith("rows/2-21-"))
    storage.files[name] = TWO[name][:-1] + bytes([TWO[name][-1] ^ 1])
    assert checkpoint.read_row(1).tobytes() == build_row(1, 3).tobytes()
    with pytest.raises(
        CheckpointError, match=f"the shelf was damaged after it was loaded: {name} does not hold what was written"
    ):
        checkpoint.read_row(2)


@drawn
@given(
    garbage=st.dictionaries(
        st.sampled_from(["round-00000099.json", "round-000000022.json", "round-99999999999999999999.json"]),
        st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()) | st.just(TWO[NEWEST]),
        min_size=1,
    )
)
def test_garbage_under_the_names_of_checkpoints_is_skipped(garbage):
    storage = Shelf({**TWO, **garbage})
    assert_same(CheckpointStore(storage, keep=2).load(), NEWER)
    with pytest.raises(CheckpointError, match=r"^every checkpoint in the shelf is damaged: round-"):
        CheckpointStore(Shelf(garbage), keep=2).load()


# --- Files edited by hand, with corrected checksums


def seal(manifest: Any) -> bytes:
    """Returns a manifest as a file, which starts with the SHA-256 of the rest."""
    body = json.dumps({key: value for key, value in manifest.items() if key != "sha256"}).encode()[1:]
    return b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'", ' + body


def iter_places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields every value within a manifest with its path, except those inside the facts."""
    if path:
        yield path, value
    if isinstance(value, dict | list) and path != ("facts",):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from iter_places(inner, (*path, key))


MANIFEST: dict[str, Any] = json.loads(TWO[NEWEST])
PLACES = [(path, value) for path, value in iter_places(MANIFEST) if path != ("sha256",)]
WRONG: dict[type, list[Any]] = {
    int: [-1, 1.5, "1", None, True, [], {}],
    str: ["", "../../etc/passwd", "rows/1-3.safetensors", "Z" * 64, "a" * 63, 5, None, []],
    list: [None, {}, "text", 0, [0], [[]], [{}]],
    dict: [None, [], "text", 0],
}


def replace_at(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Returns the manifest with another value at one path."""
    edited = copy.deepcopy(MANIFEST)
    inner = edited
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return edited


def load_with(manifest: bytes, **files: bytes) -> Checkpoint | None:
    return CheckpointStore(Shelf({**TWO, **files, NEWEST: manifest}), keep=2).load()


def test_an_edited_manifest_with_a_matching_checksum_is_accepted():
    edited = load_with(seal({**MANIFEST, "facts": {"edited": True}}))
    assert (edited.next_round, edited.facts) == (22, {"edited": True})


@draw(200)
@given(data=st.data())
def test_a_manifest_with_wrong_types_is_damaged(data):
    path, value = data.draw(st.sampled_from(PLACES), "place")
    wrong = data.draw(st.sampled_from(WRONG[type(value)]), "value")
    assert_same(load_with(seal(replace_at(path, wrong))), OLDER)


def test_a_manifest_with_an_extra_or_a_missing_key_is_damaged():
    for key in MANIFEST.keys() - {"sha256", "format"}:
        assert_same(load_with(seal({k: v for k, v in MANIFEST.items() if k != key})), OLDER)
    assert_same(load_with(seal({**MANIFEST, "color": "red"})), OLDER)


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        (replace_at(("format",), "checkpoint"), "format: Input should be 'checkpoint 1'"),
        (replace_at(("next_round",), 23), "is the manifest of round 23"),
        (replace_at(("rows", 0, "version"), "3"), "rows.0.version: Input should be a valid integer"),
    ],
)
def test_the_warning_describes_the_problem_of_a_manifest(manifest, problem, caplog):
    assert_same(load_with(seal(manifest)), OLDER)
    assert f"cannot be used: {NEWEST}" in caplog.messages[0]
    assert problem in caplog.messages[0]


def test_a_manifest_of_another_format_raises_and_no_older_checkpoint_is_used():
    storage = Shelf({**TWO, NEWEST: seal(replace_at(("format",), "checkpoint 2"))})
    with pytest.raises(CheckpointError, match=f"^the shelf: {NEWEST} has the format 'checkpoint 2'.*resume with"):
        CheckpointStore(storage, keep=2).load()
    assert NEWEST in storage.files


@pytest.mark.parametrize(
    "body",
    [b"", b"}", b"[" * 100_000, b'"a": 1', b'"a": 1}}', b"\xff}", b'"a": ' + b"9" * 5000 + b"}"],
    ids=["nothing", "empty", "deep", "open", "closed twice", "not text", "long number"],
)
def test_other_json_with_a_matching_checksum_is_damaged(body):
    manifest = b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'", ' + body
    assert_same(load_with(manifest), OLDER)


def build_tensors(dtype: str, shape: list[int], data: bytes, name: str = "row") -> bytes:
    """Returns a safetensors file, built by hand."""
    header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    ("place", "content", "problem"),
    [
        (("arrays",), b"", "holds no arrays"),
        (("arrays",), b"\xff" * 64, "holds no arrays"),
        (("arrays",), build_tensors("F32", [3], b"1234"), "holds no arrays"),
        (("arrays",), build_tensors("BF16", [2], b"1234"), "holds no arrays"),
        (("arrays",), build_tensors("I32", [1], b"1234", "steps"), "steps is int32, not float32 or float64"),
        (("rows", 0, "file"), build_tensors("F64", [1], b"12345678"), "holds no row of float32"),
        (("rows", 0, "file"), build_tensors("F32", [1, 1], b"1234"), "holds no row of float32"),
        (("rows", 0, "file"), build_tensors("F32", [1], b"1234", "column"), "holds no row of float32"),
        (("history", 0, "file"), b"{}\n" * 9, "has 9 lines instead of 10"),
        (("history", 0, "file"), b"\xff\n" * 10, "is not text"),
    ],
)
def test_files_with_a_matching_checksum_but_wrong_content_are_damaged(place, content, problem, caplog):
    old = MANIFEST
    for key in place:
        old = old[key]
    digest = hashlib.sha256(content).hexdigest()
    name = old["name"].replace(old["sha256"][:16], digest[:16])
    manifest = replace_at(place, {"name": name, "size_bytes": len(content), "sha256": digest})
    assert_same(load_with(seal(manifest), **{name: content}), OLDER)
    assert f"cannot be used: {name}" in caplog.messages[0]
    assert problem in caplog.messages[0]


# --- Disks


@pytest.fixture
def small_disk(processes: None, tmp_path: Path) -> Iterator[Path]:
    """Mounts a file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_raises_and_keeps_earlier_checkpoints(small_disk):
    ballast = small_disk / "ballast"
    storage = open_storage(str(small_disk))
    store = CheckpointStore(storage, keep=1)
    store.save(TEN)
    before = {name: storage.read(name) for name in storage.list_names()}
    for free_bytes in range(
        0, 256 * 1024, 4096
    ):  # one page more each time, so that every file in turn exceeds the space
        ballast.write_bytes(b"")
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
        ballast.write_bytes(bytes(free - free_bytes))
        message = find_failure(store, build_snapshot(20, {1: 3, 2: 15, 4: 19}))
        if message is None:
            break
        assert message.startswith(
            f"the checkpoint of round 20 could not be written to {small_disk}: [Errno 28] No space"
        )
        assert message.endswith("; the checkpoint of round 10 before it is intact")
        ballast.unlink()
        assert {name: storage.read(name) for name in storage.list_names()} == before
        assert sum(path.is_file() for path in small_disk.rglob("*")) == len(before)
        assert_same(CheckpointStore(storage, keep=1).load(), TEN)
    assert free_bytes > 4 * 4096
    ballast.unlink()
    assert_nothing_more_than_named(storage, [20])


def test_a_file_in_place_of_a_folder_raises_checkpoint_error(tmp_path):
    (tmp_path / "rows").touch()
    with pytest.raises(
        CheckpointError, match=f"round 10 could not be written to {tmp_path}: .*exists: '{tmp_path}/rows'"
    ):
        CheckpointStore(open_storage(str(tmp_path)), keep=1).save(TEN)
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_old_checkpoints_that_cannot_be_deleted_do_not_fail_the_save(caplog):
    class Undeletable(Shelf):
        def delete(self, name: str) -> None:
            raise PermissionError(f"{name} is locked")

    storage = Undeletable()
    store = CheckpointStore(storage, keep=1)
    store.save(build_snapshot(1, {}))
    store.save(build_snapshot(2, {}))
    assert "superseded checkpoints in the shelf could not be deleted" in caplog.text
    assert_same(store.load(), build_snapshot(2, {}))


# --- The background writer

PATIENCE_SECONDS = 60  # limit for what normally happens at once


class GatedShelf(Shelf):
    """Blocks the arrays of each round until its gate is opened; some writes then fail."""

    def __init__(self, *failing: int) -> None:
        super().__init__()
        self.reached = {i: threading.Event() for i in range(1, 9)}
        self.gates = {i: threading.Event() for i in range(1, 9)}
        self._failing = failing

    def write(self, name: str, data: bytes) -> None:
        if name.endswith("safetensors"):
            next_round = int(name.split("-")[1])
            self.reached[next_round].set()
            assert self.gates[next_round].wait(PATIENCE_SECONDS)
            if next_round in self._failing:
                raise OSError("no more paper")
        super().write(name, data)

    def open_all(self) -> None:
        for gate in self.gates.values():
            gate.set()


class Writing:
    """A background writer on a gated shelf."""

    def __init__(self, *failing: int) -> None:
        self.shelf = GatedShelf(*failing)
        self.writer = BackgroundWriter(CheckpointStore(self.shelf, keep=9))
        self.released: list[int] = []

    def offer(self, next_round: int) -> None:
        self.writer.offer(build_snapshot(next_round, {}, release=lambda: self.released.append(next_round)))

    def under_way(self, next_round: int) -> None:
        assert self.shelf.reached[next_round].wait(PATIENCE_SECONDS)

    def saved(self) -> list[int]:
        return [manifest["next_round"] for manifest in load_manifests(self.shelf).values()]


def test_offer_does_not_wait_and_a_newer_snapshot_replaces_the_waiting_one():
    writing = Writing()
    writing.offer(1)
    writing.under_way(1)
    writing.offer(2)
    writing.offer(3)
    assert writing.released == [2]
    assert writing.saved() == []
    writing.shelf.open_all()
    writing.writer.close()
    assert writing.saved() == [1, 3]
    assert writing.released == [2, 1, 3]


def test_an_error_is_raised_once_by_the_next_offer_and_writing_continues():
    writing = Writing(1)
    writing.offer(1)
    writing.under_way(1)
    writing.offer(2)
    writing.shelf.gates[1].set()
    writing.under_way(2)
    with pytest.raises(CheckpointError, match="round 1 could not be written to the shelf: no more paper"):
        writing.offer(3)
    writing.offer(4)
    writing.shelf.open_all()
    writing.writer.close()
    assert writing.saved() == [2, 4]
    assert sorted(writing.released) == [1, 2, 3, 4]


def test_close_raises_the_error_of_the_running_save():
    writing = Writing(1)
    writing.offer(1)
    writing.shelf.open_all()
    with pytest.raises(CheckpointError, match="no more paper"):
        writing.writer.close()
    writing.writer.close()
    assert writing.released == [1]


def test_close_waits_no_longer_than_its_timeout():
    writing = Writing()
    writing.offer(1)
    writing.under_way(1)
    with pytest.raises(CheckpointError, match=r"the last checkpoint was not written within 0\.01 seconds"):
        writing.writer.close(timeout=0.01)
    writing.shelf.open_all()
    writing.writer.close(timeout=PATIENCE_SECONDS)
    assert writing.saved() == [1]


def test_an_unexpected_error_of_a_save_is_raised():
    writing = Writing()
    writing.shelf.open_all()
    writing.writer.offer(build_snapshot(1, {}, facts={"what": object()}))
    with pytest.raises(TypeError, match="not JSON serializable"):
        writing.writer.close()


def test_an_idle_writer_closes():
    BackgroundWriter(CheckpointStore(Shelf(), keep=1)).close()
