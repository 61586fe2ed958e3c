"""What the driver records of trials, and how a resumed search uses it: no trial is trained twice."""

import json
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

import fednar_ray as fr
from fednar_ray.config import Document
from fednar_ray.config.loading import parse_document
from fednar_ray.tracking.mlflow import Store
from fednar_ray.tuning.recorder import Recorder
from fednar_ray.tuning.recovery import recover
from fednar_ray.tuning.search import resume_search, start_search
from fednar_ray.tuning.search_status import SearchStatus
from fednar_ray.tuning.stop_rules import StopFileStopper, StopRules
from fednar_ray.tuning.strategy import build_scheduler, rename_in_rungs, restore_scheduler, save_scheduler
from fednar_ray.tuning.trial import FederatedTrial
from fednar_ray.tuning.trial_plan import TrialPlan, build_values_key
from fednar_ray.tuning.trial_report import Lineage, TrialReport
from fednar_ray.tuning.trial_table import FAILED, FINISHED, RUNNING, STOPPED, TrialEntry, TrialTable
from tests.support.stores import create_store

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Tune, about itself
    pytest.mark.filterwarnings(  # of SQLAlchemy about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]

RATE = "algorithm.local_lr"
ROUNDS = 3


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store(create_store(tmp_path / "m.db"))


def document(**search: Any) -> Document:
    experiment = {
        "name": "small",
        "data": {"source": "digits", "validation": 0.1, "partition": {"kind": "iid", "clients": 4}},
        "model": {"name": "mlp", "hidden": 4},
        "federation": {"rounds": ROUNDS, "clients_per_round": 2, "local_steps": 1},
        "execution": {"placement": "serial"},
    }
    search = {"space": {RATE: {"uniform": [0.01, 0.2]}}, "algorithm": "random", "report_rounds": 1, **search}
    return parse_document(yaml.safe_dump({"experiment": experiment, "search": search}), "f.yaml", to_search=True)


def plan_of(document: Document) -> TrialPlan:
    assert document.search is not None
    return TrialPlan(raw=document.raw, execution={"placement": "serial"}, search=document.search)


def new_table(store: Store) -> TrialTable:
    experiment_id = store.ensure_experiment("small")
    run_id = store.create_run(experiment_id, "small", {})
    return TrialTable(name="small", run_id=run_id, tracking_uri=store.uri, experiment_id=experiment_id)


@contextmanager
def recording(table: TrialTable, store: Store) -> Iterator[Recorder]:
    with Recorder(table, store, plan_of(document()), FIFOScheduler(), 100, lambda status: None) as recorder:
        yield recorder


def opened(values: dict[str, Any], plan: TrialPlan) -> FederatedTrial:
    """A trial as its process has it."""
    trial = FederatedTrial.__new__(FederatedTrial)  # what Tune's own part does needs a trial's directory
    trial._trial_info = None
    trial.setup(values, plan=plan)
    return trial


def train(recorder: Recorder, trials: list[Trial], values: dict[str, Any]) -> None:
    """One trial from its start to its end, with Tune's events in Tune's order."""
    trial = Trial("FederatedTrial", config=values, stub=True)
    trials.append(trial)
    trainable = opened(values, plan_of(document()))
    recorder.on_trial_start(0, trials, trial)
    done = False
    while not done:
        result = trainable.step()
        recorder.on_trial_result(0, trials, trial, result)
        done = result["done"]
    recorder.on_trial_complete(0, trials, trial)
    trainable.cleanup()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_ended_trials_hold_no_files_open_while_mlflow_is_slow(store: Store, tmp_path: Path) -> None:
    table, trials = new_table(store), []
    with recording(table, store) as recorder:
        train(recorder, trials, {RATE: 0.05})
        with closing(sqlite3.connect(tmp_path / "m.db", isolation_level=None)) as busy:
            busy.execute("BEGIN EXCLUSIVE")  # MLflow waits while more trials end
            counts = []
            for index in range(12):
                train(recorder, trials, {RATE: 0.01 + index / 1000})
                counts.append(open_files())
    assert counts[11] - counts[5] <= 3, counts  # of MLflow's own connections
    client = MlflowClient(store.uri)
    assert len(table.trials) == 13
    for entry in table.trials.values():
        run = client.get_run(str(entry.run_id))
        assert (run.info.status, run.data.tags["fednar.status"]) == ("FINISHED", FINISHED)
        assert [m.step for m in client.get_metric_history(run.info.run_id, "train_loss")] == list(range(ROUNDS))


def test_the_table_has_the_end_of_a_trial_before_tune_does(store: Store) -> None:
    table, values = new_table(store), {RATE: 0.05}
    trial, trained = Trial("FederatedTrial", config=values, stub=True), opened(values, plan_of(document()))
    statuses = []
    with recording(table, store) as recorder:
        recorder.on_trial_start(0, [trial], trial)
        for _ in range(ROUNDS):
            recorder.on_trial_result(0, [trial], trial, trained.step())
            statuses.append(TrialTable.load("small").trials[trial.trial_id].status)
    assert statuses == [RUNNING, RUNNING, FINISHED]


def test_a_recorded_trial_returns_its_result_and_trains_nothing() -> None:
    recorded = TrialReport(
        value=0.5,
        rounds=2,
        lines=("{}",),
        failure=None,
        train_seconds=0.0,
        group_size=4,
        lineage=None,
        done=True,
        should_checkpoint=False,
    )
    plan = replace(plan_of(document()), recorded={build_values_key({RATE: 0.05}): recorded})
    again, other = opened({RATE: 0.05}, plan), opened({RATE: 0.06}, plan)
    result = again.step()
    assert (result["validation_accuracy"], result["rounds"], result["done"]) == (0.5, 2, True)
    assert result["lines"] == ("{}",)
    assert not again._federations
    assert other.step()["rounds"] == 1
    assert again.reset_config({RATE: 0.07})  # the process takes up another trial
    assert again.step()["rounds"] == 1
    assert again.reset_config({RATE: 0.05})
    assert again.step() == result


def test_a_report_survives_tune_s_dictionary_and_the_table_s_file(store: Store) -> None:
    lineage = Lineage(initial_values={RATE: 0.1}, changes={"2": {RATE: 0.05}})
    report = TrialReport(
        value=0.5,
        rounds=2,
        lines=("{}", "{}"),
        failure=None,
        train_seconds=1.5,
        group_size=4,
        lineage=lineage,
        done=False,
        should_checkpoint=True,
    )
    result = report.to_tune("validation_accuracy")
    assert (result["validation_accuracy"], result["rounds"], result["should_checkpoint"]) == (0.5, 2, True)
    of_tune = {**result, "time_total_s": 3.0, "trial_id": "a"}
    assert TrialReport.from_tune(of_tune, "validation_accuracy") == report
    table = new_table(store)
    entry = table.trials["a"] = TrialEntry(name="trial-0000", values={RATE: 0.1})
    entry.update(report, {RATE: 0.05})
    table.save()
    assert TrialTable.load("small") == table
    assert (entry.initial_values, entry.values, entry.seconds) == ({RATE: 0.1}, {RATE: 0.05}, 1.5)


def ended(table: TrialTable, value: float) -> TrialEntry:
    entry = TrialEntry(name=f"trial-{len(table.trials):04d}", values={}, status=FINISHED, rounds=ROUNDS, value=value)
    table.trials[entry.name] = entry
    return entry


@pytest.mark.parametrize(
    ("stop", "values", "met"),
    [
        ({"target": 0.8}, (0.5, 0.8), "trial-0001 reached search.stop.target (0.8)"),
        ({"patience_trials": 2}, (0.5, 0.4, 0.3), "2 trials ended without a new best"),
        ({"patience_trials": 2}, (0.5, 0.4, 0.6, 0.3), None),
        ({"wall_seconds": 1e-9}, (), "search.stop.wall_seconds (1e-09) have passed"),
        ({"wall_seconds": 1000}, (0.5,), None),
    ],
)
def test_the_first_stop_rule_that_is_met_stops_also_a_pickled_stopper(
    stop: dict[str, float], values: tuple[float, ...], met: str | None, store: Store
) -> None:
    """Tune restores a pickled stopper when a search is resumed."""
    table, search = new_table(store), document(stop=stop).search
    assert search is not None
    table.save()
    stopper = pickle.loads(pickle.dumps(StopFileStopper("small")))  # noqa: S301 - our own
    rules = StopRules(search, table)
    rules.check_time()
    for value in values:
        assert not stopper.stop_all()
        rules.count_ended_trial(ended(table, value))
        rules.check_time()
    assert (rules.met, stopper.stop_all()) == (met, met is not None)
    rules.clear()
    assert not stopper.stop_all()
    assert not stopper("a", {})


def test_a_stop_file_that_a_killed_process_left_does_not_end_a_resumed_search(store: Store) -> None:
    table = new_table(store)
    table.save()
    table.files.stop_file.write_text("1 trials ended without a new best")
    with recording(table, store) as recorder:
        assert not StopFileStopper("small").stop_all()
        assert recorder.ended_early is None


def entry_of(name: str, rate: float, status: str, value: float | None) -> TrialEntry:
    return TrialEntry(name=name, values={RATE: rate}, status=status, rounds=2, value=value)


SEARCHER_STATE = "basic-variant-state-2026-01-02_03-04-05.json"  # a pickle, in spite of its name


def tune_state(folder: Path, statuses: Mapping[str, str]) -> Path:
    """A state as Tune writes it, as far as it is read."""
    folder.mkdir(parents=True)
    trials = [[json.dumps({"trial_id": key, "status": status}), "{}"] for key, status in statuses.items()]
    path = folder / "experiment_state-2026-01-02_03-04-05.json"
    path.write_text(json.dumps({"trial_data": trials, "runner_data": {}}))
    (folder / SEARCHER_STATE).write_bytes(pickle.dumps({"counter": 2}))
    return path


@pytest.fixture
def behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialTable:
    """A table that is ahead of Tune: 1 has ended for both, 2 and 3 for us, Tune does not know 4 and 5."""
    monkeypatch.chdir(tmp_path)
    table = TrialTable(name="small", run_id="r", tracking_uri="none", experiment_id="0")
    table.trials = {
        "1": entry_of("trial-0000", 0.1, FINISHED, 0.9),
        "2": entry_of("trial-0001", 0.2, STOPPED, 0.2),
        "3": entry_of("trial-0002", 0.3, FAILED, 0.0),
        "4": entry_of("trial-0003", 0.4, FINISHED, 0.8),
        "5": entry_of("trial-0004", 0.5, RUNNING, 0.1),
    }
    return table


def recovered(table: TrialTable, **search: Any) -> Any:
    settings = document(**search).search
    assert settings is not None
    return recover(table, settings, ROUNDS, table.directory / "tune")


def test_a_trial_that_tune_would_train_again_returns_its_recorded_report(behind: TrialTable) -> None:
    statuses = {"1": "TERMINATED", "2": "RUNNING", "3": "PENDING", "6": "RUNNING"}
    tune_state(behind.directory / "tune", statuses)
    recovery = recovered(behind)
    assert recovery.resumes_tune
    assert recovery.lost == {"4", "5"}
    assert {key: trial.value for key, trial in recovery.recorded.items()} == {
        "2": 0.2,
        "3": 0.0,
        build_values_key({RATE: 0.4}): 0.8,
    }


@pytest.mark.parametrize("damage", ["cut short", "empty", "no trials", "searcher cut short", "missing", "no state"])
def test_a_state_of_tune_that_cannot_be_read_costs_no_ended_trial(damage: str, behind: TrialTable) -> None:
    path = tune_state(behind.directory / "tune", {"1": "TERMINATED", "2": "RUNNING"})
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
            behind.directory.joinpath("tune").rename(behind.directory / "elsewhere")
        case "no state":
            path.unlink()
    recovery = recovered(behind)
    assert not recovery.resumes_tune
    assert not (behind.directory / "tune").exists()
    assert set(recovery.recorded) == {build_values_key({RATE: rate}) for rate in (0.1, 0.2, 0.3, 0.4)}
    assert recovery.lost == set(behind.trials)


def test_a_trial_with_a_complete_journal_has_finished(store: Store) -> None:
    """The driver was killed between the two writes."""
    table, trials = new_table(store), []
    with recording(table, store) as recorder:
        train(recorder, trials, {RATE: 0.05})
    (entry,) = table.trials.values()
    value, width = entry.value, entry.group_size
    entry.status, entry.value, entry.rounds = RUNNING, None, 0
    (recorded,) = recovered(table).recorded.values()
    assert (recorded.value, recorded.rounds, recorded.group_size) == (value, ROUNDS, width)
    assert len(recorded.lines) == ROUNDS
    assert TrialTable.load("small").trials[trials[0].trial_id].status == FINISHED


def test_a_resumed_search_sends_mlflow_the_trials_that_it_lacks(store: Store) -> None:
    table, trials = new_table(store), []
    with recording(table, store) as recorder:
        train(recorder, trials, {RATE: 0.05})
        train(recorder, trials, {RATE: 0.06})
    sent, missing = table.trials.values()
    for name in ("run.json", "outbox.jsonl", "outbox.sent"):  # as if the driver had been killed before
        (table.get_trial_directory(missing) / name).unlink()
    store.client.delete_run(str(missing.run_id))
    missing.run_id = None
    with recording(table, store):
        pass
    assert missing.run_id is not None
    for entry in (sent, missing):
        run = store.client.get_run(str(entry.run_id))
        assert (run.info.status, run.data.tags["fednar.status"], run.data.params[RATE]) == (
            "FINISHED",
            FINISHED,
            str(entry.values[RATE]),
        )
        history = store.client.get_metric_history(run.info.run_id, "train_loss")
        assert [point.step for point in history] == list(range(ROUNDS))
    operations = (table.get_trial_directory(sent) / "outbox.jsonl").read_text()
    assert '"resumed"' not in operations  # what MLflow had is left alone


def test_rungs_are_kept_whole_and_move_to_a_trial_s_new_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    search = document(scheduler={"name": "asha", "grace_rounds": 1, "reduction": 2}).search
    assert search is not None
    scheduler, trials = build_scheduler(search, 8), [Trial("FederatedTrial", trial_id=key, stub=True) for key in "abc"]
    for trial, value in zip(trials, (0.9, 0.1, 0.5), strict=True):
        scheduler.on_trial_add(None, trial)
        scheduler.on_trial_result(None, trial, {"rounds": 1, "validation_accuracy": value})
    save_scheduler(scheduler, tmp_path / "s.pickle")
    again = build_scheduler(search, 8)
    restore_scheduler(again, tmp_path / "s.pickle")
    rename_in_rungs(again, "b", "new")
    (*_, (milestone, values)) = again._brackets[0]._rungs
    assert (milestone, values) == (1, {"a": 0.9, "new": 0.1, "c": 0.5})
    (tmp_path / "s.pickle").write_bytes((tmp_path / "s.pickle").read_bytes()[:40])
    restore_scheduler(build_scheduler(search, 8), tmp_path / "s.pickle")
    assert "s.pickle cannot be read" in caplog.text


# --- a real search, whose driver kills itself ---

TRIALS = 3


class CountedTrial(FederatedTrial):
    """Writes down every round that is trained, whoever trains it."""

    def _train_some_rounds(self) -> str | None:
        before = self._federations[0].rounds
        result = super()._train_some_rounds()
        with (Path(self._plan.raw["data"]["directory"]) / "trained").open("a") as file:
            file.writelines(f"{t}\n" for t in range(before, self._federations[0].rounds))
        return result


def killing_document(folder: str) -> Document:
    """Its data are clients' files in ``folder``."""
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


def kill_after_the_second_trial(status: SearchStatus) -> None:
    if status.finished == 2 and status.ended is None:
        os.kill(os.getpid(), signal.SIGKILL)


def begin_and_be_killed(folder: str) -> None:
    """In a process of its own: Tune has not even been told that the trial has ended."""
    import fednar_ray.tuning.tune_run as module

    module.FederatedTrial = CountedTrial  # type: ignore[misc]
    with fr.RaySession() as session:
        start_search(killing_document(folder), session, kill_after_the_second_trial)


@pytest.mark.usefixtures("processes", "searches")
@pytest.mark.parametrize("state", ["behind", "cut short"])
def test_a_trial_that_ended_just_before_a_kill_is_not_trained_again(
    state: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: fr.RaySession
) -> None:
    for name in ("north", "south"):
        rows = "".join(f"{i % 7},{i % 3},{i % 2}\n" for i in range(30))
        (tmp_path / f"{name}.csv").write_text("a,b,y\n" + rows)
    code = f"from tests.tuning.test_trial_record import *; begin_and_be_killed({str(tmp_path)!r})"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    trained = tmp_path / "trained"
    assert len(trained.read_text().split()) == 2 * ROUNDS
    before = TrialTable.load("small")
    assert [entry.status for entry in before.trials.values()] == [FINISHED, FINISHED]
    for path in (tmp_path / "searches/small/tune").glob("*.json") if state == "cut short" else ():
        path.write_bytes(path.read_bytes()[:100])
    resumed = recover(before, killing_document(str(tmp_path)).search, ROUNDS, before.directory / "tune").resumes_tune
    assert resumed == (state == "behind")
    monkeypatch.setattr("fednar_ray.tuning.tune_run.FederatedTrial", CountedTrial)
    result = resume_search("small", session, lambda status: None)
    assert len(trained.read_text().split()) == TRIALS * ROUNDS  # exact, over both processes
    assert len(result.trials) == TRIALS
    kept = {entry.name: entry.value for entry in before.trials.values()}
    assert {entry.name: entry.value for entry in result.trials if entry.name in kept} == kept
    found = store.client.search_runs([before.experiment_id])
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len(found) == 1 + TRIALS + 2  # the parent, the trials, the best and the baseline
    for entry in result.trials:
        steps = [point.step for point in store.client.get_metric_history(str(entry.run_id), "train_loss")]
        assert steps == list(range(ROUNDS))
    if state == "behind":  # a finished search is concluded again, from what it has
        again = resume_search("small", session, lambda status: None)
        assert (again.best_test, again.baseline_test) == (result.best_test, result.baseline_test)
        assert len(store.client.search_runs([before.experiment_id])) == len(found)
