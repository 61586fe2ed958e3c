"""A lock file keeps others out while it is held, and is gone when nobody holds it."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fednar_ray.tracking.lines import held_alone
from fednar_ray.tracking.mlflow import Store

THREADS, TURNS = 8, 40


def test_one_at_a_time_although_the_file_is_removed_each_time(tmp_path: Path) -> None:
    lock, inside, most = tmp_path / "a.lock", [], []

    def work(name: int) -> None:
        for _ in range(TURNS):
            with held_alone(lock):
                inside.append(name)
                most.append(len(inside))
                inside.remove(name)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert most == [1] * THREADS * TURNS
    assert not list(tmp_path.iterdir())


def test_it_is_its_users_alone(tmp_path: Path) -> None:
    with held_alone(tmp_path / "a.lock"):
        assert (tmp_path / "a.lock").stat().st_mode & 0o777 == 0o600


def test_it_is_removed_after_an_error_and_never_follows_a_link(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held_alone(tmp_path / "a.lock"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"), held_alone(tmp_path / "a.lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_opening_a_store_leaves_no_lock_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    Store(f"sqlite:///{tmp_path}/m.db").check()
    assert not list(temporary.iterdir())
