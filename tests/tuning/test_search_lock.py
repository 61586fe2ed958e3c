"""Only one process at a time runs a search."""

import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.config import load_document
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.creation import create_search
from fednar_ray.tuning.search import resume_search, start_search
from fednar_ray.tuning.search_lock import hold_search
from tests.support.processes import start_fednar
from tests.support.search_files import build_small_search, dump_small_search, hash_files
from tests.support.searches import IGNORED_WARNINGS, show_nothing
from tests.support.servers import wait_for

pytestmark = IGNORED_WARNINGS


def test_a_search_that_another_process_runs_is_refused_before_anything_changes(store: Store, tmp_path: Path) -> None:
    """While the lock is held, every command that opens the search is refused before Ray or MLflow is touched."""
    create_search(build_small_search(store), store, store.ensure_experiment("small"))
    (tmp_path / "f.yaml").write_text(dump_small_search(store, trials=99))
    client = MlflowClient(store.uri)
    with hold_search("small"):
        before, runs = hash_files(tmp_path), len(client.search_runs(["0", "1"]))
        message = rf"the search 'small' is being run by process {os.getpid()} on "
        with pytest.raises(fr.BadInput, match=message):
            start_search(load_document("f.yaml", to_search=True), fr.RaySession(), show_nothing)
        with pytest.raises(fr.BadInput, match=message):
            resume_search("small", fr.RaySession(), show_nothing)
        for command in (("tune", "f.yaml"), ("tune", "--resume", "small"), ("report", "small")):
            with pytest.raises(fr.BadInput, match=message):
                cli.main(command, standalone_mode=False)
        assert hash_files(tmp_path) == before
        assert len(client.search_runs(["0", "1"])) == runs
    assert [path.name for path in (tmp_path / "searches").iterdir()] == ["small"]


def test_searches_of_other_names_can_run_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with hold_search("small"), hold_search("small.lock"), hold_search("small-2"):
        pass
    assert not Path("searches").exists()


@pytest.mark.usefixtures("processes")
def test_a_lock_is_released_when_its_process_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "from fednar_ray.tuning.search_lock import hold_search as h\nwith h('small'): print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        with pytest.raises(fr.BadInput, match=f"run by process {holder.pid}"), hold_search("small"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with hold_search("small"):
        assert f"process {os.getpid()} " in Path("searches/.small.lock").read_text()
    assert not Path("searches").exists()


def test_a_process_that_waited_for_a_removed_lock_takes_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder removes the lock file on exit; a process that opened it earlier must not lock the removed file."""
    monkeypatch.chdir(tmp_path)
    held = hold_search("small")
    held.__enter__()
    flock, left = fcntl.flock, []

    def release_first(file: Any, how: int) -> None:
        if not left:
            left.append(held.__exit__(None, None, None))
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", release_first)
    with hold_search("small"), pytest.raises(fr.BadInput, match="is being run by"), hold_search("small"):
        pass
    assert left


def test_a_lock_that_is_a_link_is_refused_and_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("searches").mkdir()
    Path("searches/.small.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(fr.BadInput, match=r"cannot be locked: .*symbolic links"), hold_search("small"):
        pass
    assert not Path("elsewhere").exists()


@pytest.mark.usefixtures("processes", "own_ray")
def test_two_commands_at_once_create_one_search(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(dump_small_search(store, trials=2))
    (tmp_path / "b.yaml").write_text(dump_small_search(store, trials=1))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    processes = [start_fednar("tune", name, cwd=tmp_path, env=environment) for name in ("a.yaml", "b.yaml")]
    kept = tmp_path / "searches/small/search.yaml"
    try:
        wait_for(lambda: any(process.poll() is not None for process in processes), "the end of one of the two")
        wait_for(kept.exists, "the search of the other")
    finally:
        codes = [process.poll() for process in processes]
        for process in processes:
            process.kill()
    errors = [process.communicate()[1] for process in processes]
    assert sorted(codes, key=str) == [2, None], errors
    winner = codes.index(None)
    holder = rf"process {processes[winner].pid} on|another process;"  # which may not have written its name yet
    assert re.search(f"the search 'small' is being run by ({holder})", errors[1 - winner])
    assert "Traceback" not in errors[1 - winner]
    search = load_document(kept, to_search=True).search
    assert search is not None
    assert search.trials == (2, 1)[winner]
    assert len(store.client.search_runs([store.ensure_experiment("small")], "tags.`fednar.kind` = 'search'")) <= 1
