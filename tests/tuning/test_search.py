"""Real searches on a local Ray, read back through MLflow's client and from the files they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

import fednar_ray as fr
from fednar_ray.config import Document
from fednar_ray.config.loading import parse_document
from fednar_ray.core.errors import CapacityError
from fednar_ray.tracking.journal import load_records
from fednar_ray.tuning.search import SearchResult, resume_search, start_search
from fednar_ray.tuning.search_status import SearchStatus
from fednar_ray.tuning.trial_table import FAILED, FINISHED, STOPPED, TrialTable
from tests.support.stores import create_store

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Tune, about itself
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings(  # of SQLAlchemy about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]

ROUNDS = 6
A, DECAY, RATE = "regularizer.clip_bound", "regularizer.weight_decay", "algorithm.local_lr"
FEDNAR = str(Path(sys.executable).parent / "fednar")


def file_of(uri: str, search: Mapping[str, Any], **experiment: Any) -> str:
    """A search; one trial at a time unless told otherwise, since each process takes seconds to start."""
    execution = experiment.pop("execution", {"placement": "serial"})
    base = {
        "name": "small",
        "data": {"source": "digits", "validation": 0.1, "partition": {"kind": "dirichlet", "clients": 6}},
        "model": {"name": "mlp", "hidden": 8},
        "federation": {"rounds": ROUNDS, "clients_per_round": 3, "local_steps": 3, "batch_size": 16},
        "checkpoint": {"every": None},
        "tracking": {"uri": uri},
        "execution": execution,
    }
    search = {"checkpoint_seconds": 0, "concurrent": 1, **search}
    return yaml.safe_dump({"experiment": {**base, **experiment}, "search": search})


def document(uri: str, search: Mapping[str, Any], **experiment: Any) -> Document:
    return parse_document(file_of(uri, search, **experiment), "search.yaml", to_search=True)


def silent(status: SearchStatus) -> None:
    """Shows nothing."""


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return create_store(tmp_path / "m.db")


def outcomes(result: SearchResult) -> list[tuple[Any, ...]]:
    """What a search with the same seed has in common with this one."""
    return sorted((sorted(e.values.items()), e.status, e.rounds, e.value) for e in result.trials)


GRID = {
    "algorithm": "grid",
    "metric": "validation_loss",
    "mode": "min",
    "space": {RATE: {"grid": [0.02, 0.3]}, "regularizer.name": {"choice": ["fednar", "none"]}},
}


@dataclass(frozen=True)
class Searched:
    """A finished grid, and MLflow's view of it."""

    result: SearchResult
    parent: Run
    children: dict[str, Run]
    client: MlflowClient
    shown: list[SearchStatus]

    def table(self, folder: Path) -> list[dict[str, Any]]:
        path = self.client.download_artifacts(self.parent.info.run_id, "results.json", str(folder))
        found = json.loads(Path(path).read_text())
        return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]


@pytest.fixture(scope="module")
def grid(searches: None, tmp_path_factory: pytest.TempPathFactory, session: fr.RaySession) -> Searched:
    folder, before = tmp_path_factory.mktemp("grid"), Path.cwd()
    os.chdir(folder)
    uri, shown = create_store(folder / "m.db"), []
    result = start_search(document(uri, GRID), session, shown.append, register="digit-reader")
    os.chdir(before)
    client = MlflowClient(uri)
    parent = client.get_run(result.run_id)
    found = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.run_id}'", max_results=100
    )
    return Searched(result, parent, {run.info.run_name: run for run in found}, client, shown)


@pytest.mark.usefixtures("searches")
def test_a_search_of_a_regression_is_judged_by_its_error(uri: str, tmp_path: Path, session: fr.RaySession) -> None:
    x = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5, 0.0], dtype=np.float32)
    np.savez(tmp_path / "line.npz", train_x=x[:90], train_y=y[:90], test_x=x[90:], test_y=y[90:])
    search = {"algorithm": "grid", "metric": "validation_rmse", "mode": "min", "space": {RATE: {"grid": [1e-4, 0.1]}}}
    data = {
        "source": "npz",
        "path": str(tmp_path / "line.npz"),
        "task": "regression",
        "validation": 0.2,
        "partition": {"clients": 6},
    }
    result = start_search(document(uri, search, data=data, model={"name": "mlp", "hidden": 8}), session, silent)
    assert result.best.values == {RATE: 0.1}
    assert result.test_metric == "test_rmse"
    again = fr.run(fr.load(result.best_file), session=session)
    assert again.metrics["test_rmse"] == result.best_test
    assert result.report is not None


def test_every_point_of_a_grid_is_a_nested_run_with_its_values(grid: Searched) -> None:
    trials = [run for name, run in grid.children.items() if name.startswith("trial-")]
    points = {(run.data.params[RATE], run.data.params["regularizer.name"]) for run in trials}
    assert points == {("0.02", "fednar"), ("0.02", "none"), ("0.3", "fednar"), ("0.3", "none")}
    assert len(trials) == 4
    for run in trials:
        assert set(run.data.params) == {RATE, "regularizer.name"}
        assert (run.info.status, run.data.tags["fednar.status"]) == ("FINISHED", FINISHED)
        assert run.data.tags["fednar.alerts"] == "none"
    assert grid.parent.info.status == "FINISHED"


def test_a_trial_has_every_round_once_and_no_test_metric(grid: Searched) -> None:
    run_id = grid.children["trial-0002"].info.run_id
    for name in ("train_loss", "validation_accuracy", "validation_loss", "clip_fraction", "clients_trained"):
        assert [m.step for m in grid.client.get_metric_history(run_id, name)] == list(range(ROUNDS)), name
    assert not [name for name in grid.children["trial-0002"].data.metrics if name.startswith("test")]


def test_a_trial_is_the_run_of_its_values(grid: Searched) -> None:
    """Each trial equals the same experiment as ``iter_rounds`` trains it by itself."""
    for entry in grid.result.trials:
        experiment = document("sqlite:////nowhere.db", GRID).build_variant({**entry.values})
        *_, last = fr.iter_rounds(experiment)
        assert last.metrics["validation_loss"] == entry.value, entry.name


def test_the_best_has_the_lowest_last_loss_and_its_file_runs_to_the_same_bytes(
    grid: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = grid.result.best
    assert best.value == min(entry.value for entry in grid.result.trials if entry.value is not None)
    experiment = fr.load(grid.result.best_file)
    assert experiment.algorithm.local_lr == best.values[RATE]
    assert experiment.federation.rounds == ROUNDS
    assert experiment.execution.vectorize == best.group_size
    monkeypatch.chdir(tmp_path)
    again = fr.run(experiment)
    assert again.metrics["validation_loss"] == best.value
    (recorded_run,) = [run for run in grid.children.values() if run.data.tags["fednar.kind"] == "best"]
    assert again.metrics["test_accuracy"] == recorded_run.data.metrics["test_accuracy"]


def test_the_parent_carries_the_best_and_what_was_searched(grid: Searched, tmp_path: Path) -> None:
    best, parent = grid.result.best, grid.parent
    assert parent.data.metrics["best/validation_loss"] == best.value
    assert parent.data.metrics["best/test_accuracy"] == grid.result.best_test
    assert parent.data.metrics["baseline/test_accuracy"] == grid.result.baseline_test
    assert parent.data.params[f"best.{RATE}"] == str(best.values[RATE])
    assert json.loads(parent.data.params["search.space"])[RATE] == {"grid": [0.02, 0.3]}
    rows = grid.table(tmp_path)
    assert [row["value"] for row in rows] == sorted(entry.value for entry in grid.result.trials)
    assert rows[0]["trial"] == best.name
    names = {file.path for file in grid.client.list_artifacts(parent.info.run_id)}
    assert {"search.yaml", "best.yaml", "results.json", "report"} <= names
    pages = {file.path for file in grid.client.list_artifacts(parent.info.run_id, "report")}
    assert "report/index.html" in pages


def test_the_baseline_is_the_experiment_with_decoupled_decay(grid: Searched) -> None:
    (baseline,) = [run for run in grid.children.values() if run.data.tags["fednar.kind"] == "baseline"]
    assert baseline.data.params["regularizer.name"] == "decoupled"
    assert baseline.data.params[RATE] == "0.1"


def test_the_best_model_is_registered(grid: Searched) -> None:
    (version,) = grid.client.search_model_versions("name = 'digit-reader'")
    assert version.run_id == grid.parent.data.tags["fednar.best_run_id"]


def test_the_status_shows_the_end_of_each_trial(grid: Searched) -> None:
    ended = [status.ended.name for status in grid.shown if status.ended is not None]
    assert sorted(ended) == [f"trial-{i:04d}" for i in range(4)]
    last = grid.shown[-1]
    assert (last.trials, last.finished, last.stopped, last.failed, last.running) == (4, 4, 0, 0, ())
    assert last.best is not None
    assert last.best.name == grid.result.best.name


def test_a_name_in_use_is_refused(uri: str, session: fr.RaySession) -> None:
    TrialTable(name="small", run_id="r", tracking_uri=uri, experiment_id="0").save()
    with pytest.raises(fr.BadInput, match=r"'small' is in use; resume that search with: fednar tune --resume small"):
        start_search(document(uri, GRID), session, silent)


def test_a_search_that_can_never_fit_is_refused_before_it_starts(
    uri: str, session: fr.RaySession, tmp_path: Path
) -> None:
    for execution, text in (
        (
            {"placement": "serial", "cpus_per_actor": 64},
            "a trial needs 64 CPUs at once, which does not fit: the cluster has",
        ),
        ({"placement": "pooled", "actors": 9, "gpus_per_actor": 0}, "9 actors of 1 CPU"),
    ):
        with pytest.raises(CapacityError, match=text):
            start_search(document(f"sqlite:///{tmp_path}/new.db", GRID, execution=execution), session, silent)
    assert not Path("searches").exists()
    assert not (tmp_path / "new.db").exists()


OPTUNA = {
    "algorithm": "optuna",
    "trials": 12,
    "scheduler": {"name": "asha", "grace_rounds": 2, "reduction": 2},
    "space": {RATE: {"loguniform": [0.001, 1.0]}, DECAY: {"loguniform": [1e-4, 0.3]}},
}


@pytest.mark.usefixtures("searches")
def test_asha_saves_rounds_and_one_trial_at_a_time_repeats_exactly(uri: str, session: fr.RaySession) -> None:
    first = start_search(document(uri, {**OPTUNA, "name": "first"}), session, silent)
    stopped = [entry for entry in first.trials if entry.status == STOPPED]
    assert stopped
    assert {entry.rounds for entry in stopped} <= {2, 4}
    assert first.rounds_trained == sum(entry.rounds for entry in first.trials)
    assert first.rounds_saved == sum(ROUNDS - entry.rounds for entry in stopped) > 0
    assert first.best.status == FINISHED
    client = MlflowClient(uri)
    run = client.get_run(stopped[0].run_id)
    assert (run.info.status, run.data.tags["fednar.status"]) == ("KILLED", STOPPED)
    second = start_search(document(uri, {**OPTUNA, "name": "second"}), session, silent)
    assert outcomes(second) == outcomes(first)
    other = start_search(document(uri, {**OPTUNA, "name": "third", "seed": 1, "trials": 2}), session, silent)
    assert not {e.values[RATE] for e in other.trials} & {e.values[RATE] for e in first.trials}
    warm = {**OPTUNA, "name": "warm", "trials": 2, "warm_start": {"search": "first", "points": 2}, "scheduler": "none"}
    warmed = start_search(document(uri, warm), session, silent)
    assert {e.values[RATE] for e in warmed.trials} == {e.values[RATE] for e in first.trials[:2]}


@pytest.mark.usefixtures("searches")
def test_random_trials_repeat_with_several_at_a_time_and_report_the_mean_over_seeds(
    uri: str, session: fr.RaySession
) -> None:
    search = {**OPTUNA, "algorithm": "random", "concurrent": 2, "trials": 3, "scheduler": "none", "seeds": 2}
    first = start_search(document(uri, {**search, "name": "first"}), session, silent)
    second = start_search(document(uri, {**search, "name": "second"}), session, silent)
    assert outcomes(first) == outcomes(second)
    entry = first.trials[0]
    single = [
        list(fr.iter_rounds(document(uri, search).build_variant({**entry.values, "seed": seed}))) for seed in (0, 1)
    ]
    accuracies = [reports[-1].metrics["validation_accuracy"] for reports in single]
    assert entry.value == pytest.approx(sum(accuracies) / 2, abs=1e-12)
    losses = [record.metrics["train_loss"] for record in load_records(first.directory / "trials" / entry.name)]
    assert losses == pytest.approx(
        [(a.metrics["train_loss"] + b.metrics["train_loss"]) / 2 for a, b in zip(*single, strict=True)]
    )


@pytest.mark.usefixtures("searches")
def test_pbt_copies_federations_and_its_best_file_repeats_the_result(uri: str, session: fr.RaySession) -> None:
    search = {
        "algorithm": "random",
        "trials": 4,
        "concurrent": "auto",
        "scheduler": {"name": "pbt", "perturb_rounds": 2, "quantile": 0.5, "resample": 0.0},
        "space": {RATE: {"loguniform": [0.001, 0.5]}},
    }
    result = start_search(document(uri, search), session, silent)
    handed = [entry for entry in result.trials if entry.lineage is not None]
    assert handed
    rates = {entry.values[RATE] for entry in result.trials}
    for entry in handed:
        assert entry.lineage is not None
        assert set(entry.lineage.changes) <= {"2", "4"}
        *_, last = entry.lineage.changes.items()
        assert last[1][RATE] == entry.values[RATE]
    assert all(0.001 <= rate <= 0.5 for rate in rates)
    for entry in result.trials:
        assert [record.round_index for record in load_records(result.directory / "trials" / entry.name)] == [
            *range(ROUNDS)
        ]
    winner = next(entry for entry in result.trials if entry.lineage is not None)
    assert winner.lineage is not None
    experiment = document(uri, search).build_variant({**winner.lineage.initial_values})
    changes = winner.lineage.changes
    changed = fr.Experiment.model_validate({**experiment.model_dump(exclude_none=True), "changes": changes})
    *_, report = fr.iter_rounds(changed)
    assert report.metrics["validation_accuracy"] == winner.value
    *_, best = fr.iter_rounds(fr.load(result.best_file))
    assert best.metrics["validation_accuracy"] == result.best.value


@pytest.mark.usefixtures("searches")
@pytest.mark.parametrize("scheduler", ["median", "hyperband"])
def test_other_schedulers_run(scheduler: str, uri: str, session: fr.RaySession) -> None:
    settings = {"name": "median", "grace_rounds": 2} if scheduler == "median" else {"name": "hyperband", "reduction": 2}
    search = {**OPTUNA, "algorithm": "random", "trials": 5, "scheduler": settings}
    result = start_search(document(uri, search), session, silent)
    assert len(result.trials) == 5
    assert result.best.rounds == ROUNDS
    assert {entry.status for entry in result.trials} <= {FINISHED, STOPPED}


@pytest.mark.usefixtures("searches")
def test_actors_of_a_trial_are_reserved_with_it(uri: str, session: fr.RaySession) -> None:
    search = {"algorithm": "grid", "space": {RATE: {"grid": [0.05, 0.1]}}}
    actors = {"placement": "pooled", "actors": 2, "gpus_per_actor": 0, "vectorize": 2}
    pooled = start_search(document(uri, search, name="pooled", execution=actors), session, silent)
    serial = start_search(
        document(uri, search, name="serial", execution={**actors, "placement": "serial"}), session, silent
    )
    assert outcomes(pooled) == outcomes(serial)


@pytest.mark.usefixtures("searches")
def test_stop_rules_end_the_search(uri: str, session: fr.RaySession) -> None:
    search = {**OPTUNA, "algorithm": "random", "trials": 50, "scheduler": "none"}
    reached = start_search(document(uri, {**search, "name": "target", "stop": {"target": 0.05}}), session, silent)
    assert reached.ended_early is not None
    assert "reached search.stop.target (0.05)" in reached.ended_early
    assert len(reached.trials) < 10
    tired = start_search(document(uri, {**search, "name": "tired", "stop": {"patience_trials": 2}}), session, silent)
    assert tired.ended_early == "2 trials ended without a new best"
    assert len(tired.trials) < 50


@pytest.mark.usefixtures("searches")
def test_a_trial_that_diverges_fails_alone_and_says_why(uri: str, session: fr.RaySession) -> None:
    search = {"algorithm": "grid", "space": {RATE: {"grid": [0.1, 1e30]}}}
    result = start_search(document(uri, search, regularizer={"name": "none"}), session, silent)
    good, bad = result.trials
    assert (good.status, bad.status) == (FINISHED, FAILED)
    assert bad.failure is not None
    run = MlflowClient(uri).get_run(bad.run_id)
    assert (run.info.status, run.data.tags["fednar.failure"]) == ("FAILED", bad.failure)


@pytest.mark.usefixtures("searches")
def test_where_no_trial_runs_all_rounds_there_is_no_best(uri: str, session: fr.RaySession) -> None:
    search = {"algorithm": "grid", "space": {RATE: {"grid": [1e30]}}}
    with pytest.raises(fr.RunFailed, match=r"no trial of small trained all 6 rounds.*trial-0000 failed"):
        start_search(document(uri, search, regularizer={"name": "none"}), session, silent)


@pytest.mark.usefixtures("searches")
def test_a_trial_whose_process_is_killed_resumes_from_its_checkpoint(uri: str, session: fr.RaySession) -> None:
    search = {"algorithm": "grid", "space": {RATE: {"grid": [0.05, 0.1]}}, "report_rounds": 1, "retries": 3}
    undisturbed = start_search(document(uri, {**search, "name": "undisturbed"}), session, silent)
    killed: list[int] = []

    def kill_one(status: SearchStatus) -> None:
        if not killed and any(entry.rounds >= 2 for entry in status.running):
            trials = [p for p in psutil.process_iter() if _title(p).startswith("ray::FederatedTrial")]
            killed.append(trials[0].pid)
            os.kill(trials[0].pid, signal.SIGKILL)

    disturbed = start_search(document(uri, {**search, "name": "disturbed"}), session, kill_one)
    assert killed
    assert outcomes(disturbed) == outcomes(undisturbed)
    for entry in disturbed.trials:
        steps = [m.step for m in MlflowClient(uri).get_metric_history(entry.run_id, "train_loss")]
        assert steps == list(range(ROUNDS))


def _title(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


@pytest.mark.usefixtures("processes", "searches")
def test_a_killed_driver_costs_no_finished_trial(uri: str, tmp_path: Path, session: fr.RaySession) -> None:
    """The command is killed by SIGKILL, and its search is resumed in this process."""
    search = {
        "algorithm": "random",
        "trials": 6,
        "report_rounds": 1,
        "space": {RATE: {"uniform": [0.01, 0.2]}},
    }
    undisturbed = start_search(document(uri, {**search, "name": "undisturbed"}), session, silent)
    (tmp_path / "search.yaml").write_text(file_of(uri, {**search, "name": "killed"}))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with subprocess.Popen(
        [FEDNAR, "tune", "search.yaml"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            _until(lambda: _ended_of("killed") >= 2, process)
        finally:
            process.kill()
    before = TrialTable.load("killed")
    finished = {key: entry for key, entry in before.trials.items() if entry.status == FINISHED}
    assert 2 <= len(finished) < 6
    times = {entry.name: _journal_time(before, entry.name) for entry in finished.values()}
    result = resume_search("killed", session, silent)
    assert outcomes(result) == outcomes(undisturbed)
    assert {name: _journal_time(before, name) for name in times} == times  # not run again
    client = MlflowClient(uri)
    trials = [run for run in _children(client, result) if run.data.tags["fednar.kind"] == "trial"]
    assert sorted(run.info.run_name for run in trials) == [f"trial-{i:04d}" for i in range(6)]
    for run in trials:
        assert run.info.status == "FINISHED"
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "train_loss")]
        assert steps == list(range(ROUNDS)), run.info.run_name


def _children(client: MlflowClient, result: SearchResult) -> list[Run]:
    experiment = client.get_run(result.run_id).info.experiment_id
    return list(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{result.run_id}'", max_results=100))


def _ended_of(name: str) -> int:
    try:
        return TrialTable.load(name).count(FINISHED)
    except fr.BadInput:
        return 0


def _until(condition: Any, process: subprocess.Popen[bytes], seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def _journal_time(table: TrialTable, name: str) -> int:
    return (table.directory / "trials" / name / "metrics.jsonl").stat().st_mtime_ns


@pytest.mark.usefixtures("processes")
def test_ctrl_c_says_how_to_resume_the_search(tmp_path: Path) -> None:
    uri = create_store(tmp_path / "m.db")
    search = {"algorithm": "random", "trials": 500, "space": {RATE: {"uniform": [0.01, 0.2]}}}
    (tmp_path / "search.yaml").write_text(file_of(uri, {**search, "name": "long"}))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with subprocess.Popen(
        [FEDNAR, "tune", "search.yaml"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            lines = []
            while not any("finished after" in line for line in lines):
                lines.append(process.stdout.readline())
                assert lines[-1], lines
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 130, output
    assert "interrupted; resume it with: fednar tune --resume long" in output
    assert "Traceback" not in output
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("small").experiment_id], "tags.`fednar.kind` = 'search'")
    assert run.info.status == "KILLED"
