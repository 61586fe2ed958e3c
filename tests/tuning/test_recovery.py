"""After the driver is killed, no ended trial is trained again, whatever the state of Tune's files."""

import json
import os
import pickle
import signal
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

import fednar_ray as fr
from fednar_ray.config import Document
from fednar_ray.config.loading import parse_document
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.recovery import recover
from fednar_ray.tuning.search import resume_search, start_search
from fednar_ray.tuning.search_result import SearchResult
from fednar_ray.tuning.search_status import SearchStatus
from fednar_ray.tuning.trial import FederatedTrial
from fednar_ray.tuning.trial_plan import build_values_key
from fednar_ray.tuning.trial_table import FAILED, FINISHED, RUNNING, STOPPED, TrialEntry, TrialTable
from fednar_ray.tuning.trial_training import TrialTraining
from tests.support.processes import ForkedProcess, finish, start_fednar
from tests.support.searches import (
    IGNORED_WARNINGS,
    SEARCH_ROUNDS,
    build_search,
    draw_no_pages,
    draw_values,
    dump_search,
    list_outcomes,
    train_alone,
)
from tests.support.stores import create_store
from tests.support.trial_processes import KillOnce
from tests.support.trials import RATE, ROUNDS, build_trial_search, create_table, record_trials, train_trial

pytestmark = IGNORED_WARNINGS

SEARCHER_STATE = "basic-variant-state-2026-01-02_03-04-05.json"  # a pickle, despite its name


def build_entry(name: str, rate: float, status: str, value: float | None) -> TrialEntry:
    return TrialEntry(name=name, values={RATE: rate}, status=status, rounds=2, value=value)


def write_tune_state(folder: Path, statuses: Mapping[str, str]) -> Path:
    """Writes the parts of Tune's state that recovery reads."""
    folder.mkdir(parents=True)
    trials = [[json.dumps({"trial_id": key, "status": status}), "{}"] for key, status in statuses.items()]
    path = folder / "experiment_state-2026-01-02_03-04-05.json"
    path.write_text(json.dumps({"trial_data": trials, "runner_data": {}}))
    (folder / SEARCHER_STATE).write_bytes(pickle.dumps({"counter": 2}))
    return path


@pytest.fixture
def ahead_of_tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialTable:
    """Returns a table ahead of Tune: 1 ended in both, 2 and 3 only in the table, and Tune does not know 4 and 5."""
    monkeypatch.chdir(tmp_path)
    table = TrialTable(name="small", run_id="r", tracking_uri="none", experiment_id="0")
    table.trials = {
        "1": build_entry("trial-0000", 0.1, FINISHED, 0.9),
        "2": build_entry("trial-0001", 0.2, STOPPED, 0.2),
        "3": build_entry("trial-0002", 0.3, FAILED, 0.0),
        "4": build_entry("trial-0003", 0.4, FINISHED, 0.8),
        "5": build_entry("trial-0004", 0.5, RUNNING, 0.1),
    }
    return table


def recover_table(table: TrialTable, **search: Any) -> Any:
    settings = build_trial_search(**search).search
    assert settings is not None
    return recover(table, settings, ROUNDS, table.directory / "tune")


def test_an_ended_trial_that_tune_would_train_again_returns_its_recorded_report(ahead_of_tune: TrialTable) -> None:
    statuses = {"1": "TERMINATED", "2": "RUNNING", "3": "PENDING", "6": "RUNNING"}
    write_tune_state(ahead_of_tune.directory / "tune", statuses)
    recovery = recover_table(ahead_of_tune)
    assert recovery.resumes_tune
    assert recovery.lost == {"4", "5"}
    assert {key: trial.value for key, trial in recovery.recorded.items()} == {
        "2": 0.2,
        "3": 0.0,
        build_values_key({RATE: 0.4}): 0.8,
    }


@pytest.mark.parametrize("damage", ["cut short", "empty", "no trials", "searcher cut short", "missing", "no state"])
def test_no_ended_trial_is_lost_if_the_state_of_tune_is_unreadable(damage: str, ahead_of_tune: TrialTable) -> None:
    path = write_tune_state(ahead_of_tune.directory / "tune", {"1": "TERMINATED", "2": "RUNNING"})
    match damage:
        case "cut short":
            path.write_text(path.read_text()[:50])
        case "empty":
            path.write_text("")
        case "no trials":
            path.write_text(json.dumps({"trial_data": [], "runner_data": {}}))
        case "searcher cut short":
            (path.parent / SEARCHER_STATE).write_bytes((path.parent / SEARCHER_STATE).read_bytes()[:-3])
        case "missing":
            ahead_of_tune.directory.joinpath("tune").rename(ahead_of_tune.directory / "elsewhere")
        case "no state":
            path.unlink()
    recovery = recover_table(ahead_of_tune)
    assert not recovery.resumes_tune
    assert not (ahead_of_tune.directory / "tune").exists()
    assert set(recovery.recorded) == {build_values_key({RATE: rate}) for rate in (0.1, 0.2, 0.3, 0.4)}
    assert recovery.lost == set(ahead_of_tune.trials)


def test_a_trial_with_a_complete_journal_counts_as_finished(store: Store) -> None:
    """The driver was killed after it wrote the journal and before it wrote the table."""
    table, trials = create_table(store), []
    with record_trials(table, store) as recorder:
        train_trial(recorder, trials, {RATE: 0.05})
    (entry,) = table.trials.values()
    value, width = entry.value, entry.group_size
    entry.status, entry.value, entry.rounds = RUNNING, None, 0
    (recorded,) = recover_table(table).recorded.values()
    assert (recorded.value, recorded.rounds, recorded.group_size) == (value, ROUNDS, width)
    assert len(recorded.lines) == ROUNDS
    assert TrialTable.load("small").trials[trials[0].trial_id].status == FINISHED


# --- real searches, whose driver is killed ---


def list_children(client: MlflowClient, result: SearchResult) -> list[Run]:
    experiment = client.get_run(result.run_id).info.experiment_id
    return list(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{result.run_id}'", max_results=100))


def count_finished(name: str) -> int:
    try:
        return TrialTable.load(name).count(FINISHED)
    except fr.BadInput:
        return 0


KILLED_TRIALS = 5


def wait_until(condition: Any, process: ForkedProcess, seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended by itself: {process.read_errors()}"
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def read_journal_time(table: TrialTable, name: str) -> int:
    return (table.directory / "trials" / name / "metrics.jsonl").stat().st_mtime_ns


@pytest.mark.usefixtures("processes", "searches")
@pytest.mark.parametrize("pack", ["off", 2])
def test_no_finished_trial_is_lost_if_the_driver_is_killed(
    pack: str | int, uri: str, tmp_path: Path, local_ray: str, session: fr.RaySession
) -> None:
    """The command is killed by SIGKILL, and its search is resumed in this process, where its pack is killed, too."""
    search = {
        "pack": pack,
        "concurrent": 1 if pack == "off" else pack,
        "algorithm": "random",
        "trials": KILLED_TRIALS,
        "report_rounds": 1,
        "space": {RATE: {"uniform": [0.01, 0.2]}},
    }
    text = dump_search(uri, {**search, "name": "killed"})
    (tmp_path / "search.yaml").write_text(text)
    environment = {**os.environ, "RAY_ADDRESS": local_ray, "RAY_AUTH_MODE": "token"}
    with start_fednar("tune", "search.yaml", cwd=tmp_path, env=environment, start_new_session=True) as process:
        try:
            wait_until(lambda: count_finished("killed") >= 2, process)
        finally:
            process.kill()
    before = TrialTable.load("killed")
    finished = {key: entry for key, entry in before.trials.items() if entry.status == FINISHED}
    assert 2 <= len(finished) < KILLED_TRIALS
    times = {entry.name: read_journal_time(before, entry.name) for entry in finished.values()}
    kill_once = KillOnce("PackTrainable")
    with draw_no_pages() if pack == "off" else nullcontext():
        result = resume_search("killed", session, kill_once)
    assert bool(kill_once.killed) == (pack == 2)
    undisturbed = build_search(uri, search)
    assert list_outcomes(result) == train_alone(undisturbed, draw_values(undisturbed))
    assert {name: read_journal_time(before, name) for name in times} == times  # they were not trained again
    client = MlflowClient(uri)
    trials = [run for run in list_children(client, result) if run.data.tags["fednar.kind"] == "trial"]
    assert sorted(run.data.tags["fednar.trial"] for run in trials) == [f"trial-{i:04d}" for i in range(KILLED_TRIALS)]
    for run in trials:
        assert run.info.status == "FINISHED"
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "loss/train")]
        assert steps == list(range(SEARCH_ROUNDS)), run.info.run_name


TRIALS = 3


class CountedTrial(FederatedTrial):
    """Writes every trained round to a file, in whichever process it is trained."""

    def _train_some_rounds(self, training: TrialTraining) -> None:
        (federation,) = training.federations
        before = federation.rounds
        super()._train_some_rounds(training)
        with (Path(self._plan.raw["data"]["directory"]) / "trained").open("a") as file:
            file.writelines(f"{t}\n" for t in range(before, federation.rounds))


def build_folder_search(folder: str) -> Document:
    """Returns a search whose data are clients' files in ``folder``."""
    experiment = {
        "name": "small",
        "data": {"source": "folder", "directory": folder, "label": "y", "validation": 0.2},
        "model": {"name": "mlp", "hidden": 4},
        "federation": {"rounds": ROUNDS, "local_steps": 1},
        "tracking": {"uri": create_store(Path(folder, "m.db"))},
        "execution": {"placement": "serial"},
    }
    search = {"space": {RATE: {"uniform": [0.01, 0.2]}}, "algorithm": "random", "trials": TRIALS, "concurrent": 1}
    return parse_document(yaml.safe_dump({"experiment": experiment, "search": search}), "f.yaml", to_search=True)


def kill_after_second_trial(status: SearchStatus) -> None:
    if status.finished == 2 and status.ended is None:
        os.kill(os.getpid(), signal.SIGKILL)


def start_and_be_killed(folder: str) -> None:
    """Runs a search in its own process, which is killed before Tune knows that the second trial has ended."""
    import fednar_ray.tuning.tune_run as module

    module.FederatedTrial = CountedTrial  # type: ignore[misc]
    with fr.RaySession() as session:
        start_search(build_folder_search(folder), session, kill_after_second_trial)


@pytest.mark.usefixtures("processes", "searches")
@pytest.mark.parametrize("state", ["behind", "cut short"])
def test_a_trial_that_ended_just_before_a_kill_is_not_trained_again(
    state: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: str, session: fr.RaySession
) -> None:
    for name in ("north", "south"):
        rows = "".join(f"{i % 7},{i % 3},{i % 2}\n" for i in range(30))
        (tmp_path / f"{name}.csv").write_text("a,b,y\n" + rows)
    environment = {**os.environ, "RAY_ADDRESS": local_ray, "RAY_AUTH_MODE": "token"}
    done = finish(ForkedProcess(start_and_be_killed, str(tmp_path), env=environment))
    assert done.returncode == -signal.SIGKILL, done.stderr
    trained = tmp_path / "trained"
    assert len(trained.read_text().split()) == 2 * ROUNDS
    before = TrialTable.load("small")
    assert [entry.status for entry in before.trials.values()] == [FINISHED, FINISHED]
    for path in (tmp_path / "searches/small/tune").glob("*.json") if state == "cut short" else ():
        path.write_bytes(path.read_bytes()[:100])
    resumed = recover(before, build_folder_search(str(tmp_path)).search, ROUNDS, before.directory / "tune").resumes_tune
    assert resumed == (state == "behind")
    monkeypatch.setattr("fednar_ray.tuning.tune_run.FederatedTrial", CountedTrial)
    with draw_no_pages():
        result = resume_search("small", session, lambda status: None)
    assert len(trained.read_text().split()) == TRIALS * ROUNDS  # the exact number over both processes
    assert len(result.trials) == TRIALS
    kept = {entry.name: entry.value for entry in before.trials.values()}
    assert {entry.name: entry.value for entry in result.trials if entry.name in kept} == kept
    found = store.client.search_runs([before.experiment_id])
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len(found) == 1 + TRIALS + 2  # the parent, the trials, the best and the baseline
    for entry in result.trials:
        steps = [point.step for point in store.client.get_metric_history(str(entry.run_id), "loss/train")]
        assert steps == list(range(ROUNDS))
    if state == "behind":  # a finished search ends again with its recorded results
        with draw_no_pages():
            again = resume_search("small", session, lambda status: None)
        assert (again.best_test, again.baseline_test) == (result.best_test, result.baseline_test)
        assert len(store.client.search_runs([before.experiment_id])) == len(found)
