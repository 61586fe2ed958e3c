"""A search's files: who may write them, and that they appear at once, whenever their writer is killed."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.config import Document, load_document
from fednar_ray.config.loading import parse_document
from fednar_ray.core.errors import TrackingUnavailable
from fednar_ray.tracking.mlflow import Store
from fednar_ray.tracking.run_directory import SearchDirectory
from fednar_ray.tuning.creation import add_parent_run, create_search
from fednar_ray.tuning.search import resume_search, start_search
from fednar_ray.tuning.search_lock import hold_search
from fednar_ray.tuning.trial_table import TrialTable, check_name_is_free, list_searches
from tests.support.servers import awaited
from tests.support.stores import create_store

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Tune, about itself
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings(  # of SQLAlchemy about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]

FEDNAR = str(Path(sys.executable).parent / "fednar")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store(create_store(tmp_path / "m.db"))


def file_of(store: Store, trials: int) -> str:
    experiment = {
        "name": "small",
        "data": {"source": "digits", "validation": 0.1, "partition": {"kind": "iid", "clients": 4}},
        "model": {"name": "mlp", "hidden": 4},
        "federation": {"rounds": 3, "local_steps": 1},
        "execution": {"placement": "serial"},
        "tracking": {"uri": store.uri},
    }
    search = {"space": {"algorithm.local_lr": {"uniform": [0.01, 0.2]}}, "trials": trials}
    return yaml.safe_dump({"experiment": experiment, "search": search})


def document(store: Store, trials: int = 3) -> Document:
    return parse_document(file_of(store, trials), "f.yaml", to_search=True)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, with a digest of its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def silent(status: Any) -> None:
    """Shows nothing."""


# --- one process at a time ---


def test_a_search_that_another_process_runs_is_refused_before_anything_changes(store: Store, tmp_path: Path) -> None:
    """Each of the ways in, while the lock is held: Ray would be started and MLflow opened only after it."""
    create_search(document(store), store, store.ensure_experiment("small"))
    (tmp_path / "f.yaml").write_text(file_of(store, trials=99))
    client = MlflowClient(store.uri)
    with hold_search("small"):
        before, runs = contents(tmp_path), len(client.search_runs(["0", "1"]))
        says = rf"the search 'small' is being run by process {os.getpid()} on "
        with pytest.raises(fr.BadInput, match=says):
            start_search(load_document("f.yaml", to_search=True), fr.RaySession(), silent)
        with pytest.raises(fr.BadInput, match=says):
            resume_search("small", fr.RaySession(), silent)
        for command in (("tune", "f.yaml"), ("tune", "--resume", "small"), ("report", "small")):
            with pytest.raises(fr.BadInput, match=says):
                cli.main(command, standalone_mode=False)
        assert contents(tmp_path) == before
        assert len(client.search_runs(["0", "1"])) == runs
    assert [path.name for path in (tmp_path / "searches").iterdir()] == ["small"]


def test_searches_of_other_names_can_run_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with hold_search("small"), hold_search("small.lock"), hold_search("small-2"):
        pass
    assert not Path("searches").exists()


@pytest.mark.usefixtures("processes")
def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_whoever_waited_for_a_removed_lock_takes_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder removes the lock file as it leaves; a process that had opened it must not lock what has no name."""
    monkeypatch.chdir(tmp_path)
    held = hold_search("small")
    held.__enter__()
    flock, left = fcntl.flock, []

    def leave_first(file: Any, how: int) -> None:
        if not left:
            left.append(held.__exit__(None, None, None))
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", leave_first)
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


# --- whole, or not there ---


class Killed(BaseException):
    """Ends the process's work at once: the product catches no such thing."""


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, number: int, calls: list[str]) -> Iterator[None]:
    """Raises Killed instead of the ``number``-th change of a file, directory or MLflow run."""

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == number:
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "mkdir"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        patch.setattr(Path, "write_text", counted("write_text", Path.write_text))
        patch.setattr(Store, "create_run", counted("create_run", Store.create_run))
        yield


def test_a_search_that_is_killed_while_it_is_created_is_there_as_a_whole_or_not_at_all(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every write: what is left can be started as if there were nothing, or resumed; MLflow has one parent run."""
    experiment_id = store.ensure_experiment("small")
    made, number, outcomes = False, 0, set()
    while not made:
        number += 1
        calls: list[str] = []
        with killed_at(monkeypatch, number, calls):
            try:
                create_search(document(store), store, experiment_id)
                made = True
            except Killed:
                pass
        there = SearchDirectory.named("small").path.exists()
        outcomes.add(there)
        if there:
            assert list(list_searches()) == ["small"]
            table = TrialTable.load("small")
            assert load_document(table.files.search_yaml, to_search=True).search.trials == 3  # type: ignore[union-attr]
            add_parent_run(table, store)
            add_parent_run(TrialTable.load("small"), store)
            runs = store.client.search_runs([experiment_id], "tags.`fednar.search` = 'small'")
            assert [run.info.run_id for run in runs] == [TrialTable.load("small").run_id], calls
            store.client.delete_run(table.parent_id)
            (tmp_path / "searches" / "small").rename(tmp_path / f"kept-{number}")
        else:
            assert list(list_searches()) == []
            check_name_is_free("small")
        assert not store.client.search_runs([experiment_id]), calls
    assert outcomes == {True, False}
    assert number > 6


def test_a_search_is_not_left_behind_where_mlflow_refuses_its_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*args: Any) -> str:
        raise TrackingUnavailable("gone")

    monkeypatch.setattr(Store, "create_run", unavailable)
    with pytest.raises(TrackingUnavailable):
        create_search(document(store), store, store.ensure_experiment("small"))
    assert not SearchDirectory.named("small").path.exists()


def test_names_that_are_taken_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SearchDirectory.named("empty").path.mkdir(parents=True)
    check_name_is_free("empty")
    (SearchDirectory.named("other").path / "notes").mkdir(parents=True)
    with pytest.raises(fr.BadInput, match=r"searches/other exists and is not a search"):
        check_name_is_free("other")
    SearchDirectory.named("file").path.write_text("")
    with pytest.raises(fr.BadInput, match=r"searches/file exists and is not a search"):
        check_name_is_free("file")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"trials": 3}', '{"trials": {}, "color": 1}'])
def test_a_damaged_record_of_a_search_is_named(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SearchDirectory.named("small").path.mkdir(parents=True)
    (SearchDirectory.named("small").path / "search.json").write_text(text)
    with pytest.raises(fr.BadInput, match=r"searches/small/search\.json is damaged"):
        resume_search("small", fr.RaySession(), silent)


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_search_under_another_name_is_refused(store: Store, move: Callable[..., object]) -> None:
    TrialTable(name="small", tracking_uri=store.uri, experiment_id="0").create(file_of(store, trials=3))
    move(SearchDirectory.named("small").path, SearchDirectory.named("other").path)
    before = contents(Path("searches"))
    there = SearchDirectory.named("small").path
    says = f"other holds the search 'small', which cannot be resumed as 'other'; rename it to {there}"
    with fr.RaySession() as session, pytest.raises(fr.BadInput, match=says):
        resume_search("other", session, silent)
    assert contents(Path("searches")) == before


def test_a_search_without_its_search_file_is_refused_with_what_to_do(store: Store) -> None:
    """What an earlier version left, when it was killed between the two files."""
    TrialTable(name="small", tracking_uri=store.uri, experiment_id="0").create(file_of(store, trials=3))
    SearchDirectory.named("small").search_yaml.unlink()
    with pytest.raises(fr.BadInput, match=r"search\.yaml is missing.*cannot be resumed; move .* start it again"):
        resume_search("small", fr.RaySession(), silent)


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ({"runs": {}, "trials": {}}, "runs"),
        ({"trials": {"a": {"name": "trial-0000", "cohort_width": 4, "begun": None}}}, "cohort_width, begun"),
    ],
)
def test_a_search_of_an_earlier_version_is_refused_with_what_to_do(
    table: dict[str, Any], names: str, store: Store
) -> None:
    """The table of trials is refused; the search file then says which of its keys are called otherwise now."""
    directory = SearchDirectory.named("small").path
    TrialTable(name="small", tracking_uri=store.uri, experiment_id="0").create(file_of(store, trials=3))
    kept = json.loads((directory / "search.json").read_text())
    (directory / "search.json").write_text(json.dumps({**kept, **table}))
    old = yaml.safe_load(file_of(store, trials=3))
    old["experiment"]["execution"]["cohort_width"] = 4
    (directory / "search.yaml").write_text(yaml.safe_dump(old))
    before = contents(directory)
    again = re.escape(f"fednar tune {directory / 'search.yaml'} search.name=small-2")
    says = rf"search\.json was written by an earlier version .*\(it has {names}\).*{again}"
    with pytest.raises(fr.BadInput, match=says):
        resume_search("small", fr.RaySession(), silent)
    with pytest.raises(fr.ConfigError, match=r"cohort_width.*execution\.vectorize"):
        load_document(directory / "search.yaml", ["search.name=small-2"], to_search=True)
    assert contents(directory) == before


@pytest.mark.usefixtures("processes", "own_ray")
def test_two_commands_at_once_leave_one_search(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(file_of(store, trials=2))
    (tmp_path / "b.yaml").write_text(file_of(store, trials=1))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    processes = [
        subprocess.Popen(
            [FEDNAR, "tune", name], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a.yaml", "b.yaml")
    ]  # fmt: skip
    kept = tmp_path / "searches/small/search.yaml"
    try:
        awaited(lambda: any(process.poll() is not None for process in processes), "the end of one of the two")
        awaited(kept.exists, "the search of the other")
    finally:
        codes = [process.poll() for process in processes]
        for process in processes:
            process.kill()
    errors = [process.communicate()[1] for process in processes]
    assert sorted(codes, key=str) == [2, None], errors
    winner = codes.index(None)
    assert f"the search 'small' is being run by process {processes[winner].pid} on" in errors[1 - winner]
    assert "Traceback" not in errors[1 - winner]
    search = load_document(kept, to_search=True).search
    assert search is not None
    assert search.trials == (2, 1)[winner]
    assert len(store.client.search_runs([store.ensure_experiment("small")], "tags.`fednar.kind` = 'search'")) <= 1
