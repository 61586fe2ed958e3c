"""Lock files: exclusive while they are held, removed afterwards, and never followed through a link."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fednar_ray.tracking.locks import LockHeld, hold_lock_file, wait_for_lock_file
from fednar_ray.tracking.store import Store

THREADS, TURNS = 8, 40


def test_only_one_thread_holds_the_lock_although_each_removes_the_file(tmp_path: Path) -> None:
    lock, inside, most = tmp_path / "a.lock", [], []

    def work(name: int) -> None:
        for _ in range(TURNS):
            with wait_for_lock_file(lock):
                inside.append(name)
                most.append(len(inside))
                inside.remove(name)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert most == [1] * THREADS * TURNS
    assert not list(tmp_path.iterdir())


def test_a_lock_file_is_readable_only_by_its_user(tmp_path: Path) -> None:
    with wait_for_lock_file(tmp_path / "a.lock"):
        assert (tmp_path / "a.lock").stat().st_mode & 0o777 == 0o600


def test_a_lock_file_is_removed_after_an_error_and_a_link_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), wait_for_lock_file(tmp_path / "a.lock"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"), wait_for_lock_file(tmp_path / "a.lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_opening_a_store_leaves_no_lock_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    Store(f"sqlite:///{tmp_path}/m.db").check()
    assert not list(temporary.iterdir())


def test_a_second_holder_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with hold_lock_file(lock, "process 1"), pytest.raises(LockHeld, match="process 1"), hold_lock_file(lock, "two"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_is_a_link_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("untouched")
    (tmp_path / "a.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"), hold_lock_file(tmp_path / "a.lock", "process 1"):
        pass
    assert (tmp_path / "elsewhere").read_text() == "untouched"
