"""Real searches on a local Ray, checked through MLflow's client and the files that they write."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import fednar_ray as fr
from fednar_ray.report.search_answer import SearchOutcome, describe_search
from fednar_ray.tracking.run_views import VIEW_TAG_PREFIX, parse_view
from fednar_ray.tracking.searches import read_search
from fednar_ray.tuning.search import start_search
from fednar_ray.tuning.search_result import SearchResult
from fednar_ray.tuning.search_status import SearchStatus
from fednar_ray.tuning.trial_table import FAILED, FINISHED, TrialTable
from tests.support.processes import start_fednar
from tests.support.searches import GRID, IGNORED_WARNINGS, RATE, SEARCH_ROUNDS, build_search, dump_search, show_nothing
from tests.support.servers import wait_for
from tests.support.stores import create_store

pytestmark = IGNORED_WARNINGS


@dataclass(frozen=True)
class FinishedSearch:
    """A finished grid search, whose trials were packed, and its runs in MLflow."""

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
def grid(searches: None, tmp_path_factory: pytest.TempPathFactory, session: fr.RaySession) -> FinishedSearch:
    folder, before = tmp_path_factory.mktemp("grid"), Path.cwd()
    os.chdir(folder)
    uri, shown = create_store(folder / "m.db"), []
    search = {**GRID, "pack": 3, "concurrent": "auto"}  # more packs than one on two CPUs
    result = start_search(build_search(uri, search), session, shown.append, register="digit-reader")
    os.chdir(before)
    client = MlflowClient(uri)
    parent = client.get_run(result.run_id)
    found = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result.run_id}'", max_results=100
    )
    return FinishedSearch(
        result, parent, {run.data.tags.get("fednar.trial", run.info.run_name): run for run in found}, client, shown
    )


@pytest.mark.usefixtures("searches")
def test_a_search_on_a_regression_minimizes_the_error(uri: str, tmp_path: Path, session: fr.RaySession) -> None:
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
    result = start_search(
        build_search(uri, search, data=data, model={"name": "mlp", "hidden": 8}), session, show_nothing
    )
    assert result.best.values == {RATE: 0.1}
    assert result.test_metric == "test_rmse"
    *_, again = fr.iter_rounds(fr.load(result.best_file), session=session)
    assert again.metrics["test_rmse"] == result.best_test
    assert result.report is not None


def test_every_grid_point_is_a_nested_run_with_its_values(grid: FinishedSearch) -> None:
    trials = [run for name, run in grid.children.items() if name.startswith("trial-")]
    points = {(run.data.params[RATE], run.data.params["regularizer.name"]) for run in trials}
    assert points == {("0.02", "fednar"), ("0.02", "none"), ("0.3", "fednar"), ("0.3", "none")}
    assert len(trials) == 4
    for run in trials:
        assert set(run.data.params) == {RATE, "regularizer.name"}
        assert (run.info.status, run.data.tags["fednar.status"]) == ("FINISHED", FINISHED)
        assert run.data.tags["fednar.alerts"] == "none"
    assert grid.parent.info.status == "FINISHED"


def test_a_trial_records_every_round_once_and_no_test_metric(grid: FinishedSearch) -> None:
    run_id = grid.children["trial-0002"].info.run_id
    for name in ("loss/train", "accuracy/validation", "loss/validation", "fednar/clip_fraction", "clients/trained"):
        assert [m.step for m in grid.client.get_metric_history(run_id, name)] == list(range(SEARCH_ROUNDS)), name
    assert not [name for name in grid.children["trial-0002"].data.metrics if name.endswith("/test")]


def test_a_trial_equals_a_run_with_its_values(grid: FinishedSearch) -> None:
    """Each trial has the same metric as the experiment that ``iter_rounds`` trains alone."""
    for entry in grid.result.trials:
        experiment = build_search("sqlite:////nowhere.db", GRID).build_variant({**entry.values})
        *_, last = fr.iter_rounds(experiment)
        assert last.metrics["validation_loss"] == entry.value, entry.name


def test_the_best_trial_has_the_lowest_final_loss_and_its_file_repeats_the_result(
    grid: FinishedSearch,
) -> None:
    best = grid.result.best
    assert best.value == min(entry.value for entry in grid.result.trials if entry.value is not None)
    experiment = fr.load(grid.result.best_file)
    assert experiment.algorithm.local_lr == best.values[RATE]
    assert experiment.federation.rounds == SEARCH_ROUNDS
    assert experiment.execution.vectorize == best.group_size
    *_, again = fr.iter_rounds(experiment)
    assert again.metrics["validation_loss"] == best.value
    (recorded_run,) = [run for run in grid.children.values() if run.data.tags["fednar.kind"] == "best"]
    assert again.metrics["test_accuracy"] == recorded_run.data.metrics["accuracy/test"]


def test_the_parent_run_records_the_best_trial_and_the_search_space(grid: FinishedSearch) -> None:
    best, parent = grid.result.best, grid.parent
    assert parent.data.metrics["best/loss/validation"] == best.value
    assert parent.data.metrics["best/accuracy/test"] == grid.result.best_test
    assert parent.data.metrics["baseline/accuracy/test"] == grid.result.baseline_test
    assert parent.data.params[f"best.{RATE}"] == str(best.values[RATE])
    assert json.loads(parent.data.params["search.space"])[RATE] == {"grid": [0.02, 0.3]}
    assert not [key for key in parent.data.params if key.startswith(("search.stop", "search.retries"))]
    so_far = grid.client.get_metric_history(parent.info.run_id, "best_so_far")
    assert [point.step for point in so_far] == [1, 2, 3, 4]
    assert [point.value for point in so_far] == sorted((point.value for point in so_far), reverse=True)
    assert so_far[-1].value == best.value
    (model,) = parent.outputs.model_outputs
    assert grid.client.get_logged_model(model.model_id).source_run_id == grid.children["best"].info.run_id
    record = read_search(grid.result.tracking_uri, grid.result.name)
    page = grid.result.report.page.read_text()
    assert grid.result.clipped is None  # the best trial has no bound
    for sentence in describe_search(SearchOutcome.of_record(record)):  # the note has the answer of the page
        assert sentence.replace("_", "\\_") in parent.data.tags["mlflow.note.content"]
        assert sentence in page
    assert all(trial.totals["cost/total_bytes"] > 0 for trial in record.trials)
    assert "in all trials" in page


def test_the_saved_view_shows_the_trials_with_the_lowest_loss_first(grid: FinishedSearch) -> None:
    run_id = grid.parent.info.run_id
    tags = grid.client.get_experiment(grid.parent.info.experiment_id).tags
    state = parse_view(tags[f"{VIEW_TAG_PREFIX}{run_id[:8]}"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("tags.`fednar.rank`", True)
    assert {f"params.`{RATE}`", "params.`regularizer.name`", "tags.`fednar.status`"} <= set(state["selectedColumns"])
    shown = grid.client.search_runs([grid.parent.info.experiment_id], state["searchFilter"])
    assert {run.info.run_id for run in shown} == {run.info.run_id for run in grid.children.values()}
    shown = grid.client.search_runs(
        [grid.parent.info.experiment_id], state["searchFilter"], order_by=[f"{state['orderByKey']} ASC"]
    )
    listed = [run.data.tags.get("fednar.trial", run.data.tags["fednar.kind"]) for run in shown]
    assert listed == ["best", "baseline", *(entry.name for entry in grid.result.trials)]


def test_the_parents_results_table_lists_the_trials_best_first(grid: FinishedSearch, tmp_path: Path) -> None:
    best = grid.result.best
    rows = grid.table(tmp_path)
    assert [row["value"] for row in rows] == sorted(entry.value for entry in grid.result.trials)
    assert rows[0]["trial"] == best.name
    names = {file.path for file in grid.client.list_artifacts(grid.parent.info.run_id)}
    assert {"search.yaml", "best.yaml", "results.json", "report"} <= names
    pages = {file.path for file in grid.client.list_artifacts(grid.parent.info.run_id, "report")}
    assert "report/index.html" in pages


def test_the_baseline_uses_decoupled_decay(grid: FinishedSearch) -> None:
    (baseline,) = [run for run in grid.children.values() if run.data.tags["fednar.kind"] == "baseline"]
    assert baseline.data.params["regularizer.name"] == "decoupled"
    assert baseline.data.params[RATE] == "0.1"


def test_the_best_model_is_registered(grid: FinishedSearch) -> None:
    (version,) = grid.client.search_model_versions("name = 'digit-reader'")
    assert version.run_id == grid.parent.data.tags["fednar.best_run_id"]


def test_the_status_shows_the_end_of_each_trial(grid: FinishedSearch) -> None:
    ended = [status.ended.name for status in grid.shown if status.ended is not None]
    assert sorted(ended) == [f"trial-{i:04d}" for i in range(4)]
    last = grid.shown[-1]
    assert (last.trials, last.finished, last.stopped, last.failed, last.running) == (4, 4, 0, 0, ())
    assert last.best is not None
    assert last.best.name == grid.result.best.name


def test_a_name_in_use_is_refused(uri: str, session: fr.RaySession) -> None:
    TrialTable(name="small", run_id="r", tracking_uri=uri, experiment_id="0").save()
    with pytest.raises(fr.BadInput, match=r"'small' is in use; resume that search with: fednar tune --resume small"):
        start_search(build_search(uri, GRID), session, show_nothing)


@pytest.mark.usefixtures("searches")
def test_a_diverging_trial_fails_alone_and_records_why(uri: str, session: fr.RaySession) -> None:
    search = {"algorithm": "grid", "space": {RATE: {"grid": [0.1, 1e30]}}, "pack": 2, "concurrent": 2}
    result = start_search(build_search(uri, search, regularizer={"name": "none"}), session, show_nothing)
    good, bad = result.trials
    assert (good.status, bad.status) == (FINISHED, FAILED)
    assert bad.failure is not None
    *_, alone = fr.iter_rounds(build_search(uri, search, regularizer={"name": "none"}).build_variant(good.values))
    assert good.value == alone.metrics["validation_accuracy"]  # although it shared a process with the other
    run = MlflowClient(uri).get_run(bad.run_id)
    assert (run.info.status, run.data.tags["fednar.failure"]) == ("FAILED", bad.failure)


@pytest.mark.usefixtures("searches")
def test_a_search_without_a_finished_trial_has_no_best(uri: str, session: fr.RaySession) -> None:
    search = {"algorithm": "grid", "space": {RATE: {"grid": [1e30]}}}
    with pytest.raises(fr.RunFailed, match=r"no trial of small trained all 6 rounds.*trial-0000 failed"):
        start_search(build_search(uri, search, regularizer={"name": "none"}), session, show_nothing)


@pytest.mark.usefixtures("processes")
def test_ctrl_c_prints_how_to_resume_the_search(tmp_path: Path) -> None:
    uri = create_store(tmp_path / "m.db")
    search = {"algorithm": "random", "trials": 500, "space": {RATE: {"uniform": [0.01, 0.2]}}}
    (tmp_path / "search.yaml").write_text(dump_search(uri, {**search, "name": "long"}))
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with start_fednar("tune", "search.yaml", cwd=tmp_path, env=environment, start_new_session=True) as process:
        wait_for(
            lambda: "finished after" in process.read_output() + process.read_errors() or process.poll() is not None,
            "a finished trial",
        )
        process.send_signal(signal.SIGINT)
        output = "".join(process.communicate())
    assert process.returncode == 130, output
    assert "interrupted; resume it with: fednar tune --resume long" in output
    assert "Traceback" not in output
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("small").experiment_id], "tags.`fednar.kind` = 'search'")
    assert run.info.status == "KILLED"
