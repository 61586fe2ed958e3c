"""A comparison uses the metric of its task, and a resumed one gives the same result as an uninterrupted one."""

import contextlib
import json
import logging
import math
import os
import re
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from scipy import stats

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.config import CompareSettings, Document, load_document
from fednar_ray.core.errors import BadInput, ConfigError
from fednar_ray.core.reports import RoundRecord
from fednar_ray.core.timing import DURATIONS
from fednar_ray.experiments.comparison.record import find
from fednar_ray.experiments.comparison.running import iter_comparison
from fednar_ray.experiments.placement import open_pool, plan_execution
from fednar_ray.experiments.prepare import prepare
from fednar_ray.report.comparison_table import Outcome, build_rows
from fednar_ray.report.run_plots import Variant
from fednar_ray.tracking.identity import read_identity
from fednar_ray.tracking.locks import lock_run_directory
from fednar_ray.tracking.outbox import Outbox
from fednar_ray.tracking.run_directory import RunDirectory
from tests.support.processes import finish, start_fednar
from tests.support.servers import PATIENCE_SECONDS, wait_for
from tests.support.stores import create_store

pytestmark = [
    pytest.mark.usefixtures("recorded_runs"),
    pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]

ROUNDS = 4
RUNS = 2  # one run per regularizer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes three clients' tables of a regression and of a binary task."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    slope = rng.normal(size=4)
    for task in ("regression", "binary"):
        (folder / task).mkdir()
        for name in "abc":
            x = rng.normal(size=(40, 4)).astype(np.float32)
            y = x @ slope + 0.1 * rng.normal(size=40)
            labels = y.astype(np.float32) if task == "regression" else (y > 0).astype(np.int64)
            np.savez(folder / task / f"{name}.npz", x=x, y=labels)
    return folder


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def write(data: Path, task: str = "regression", folder: Path | None = None, **compared: Any) -> Path:
    """Writes the file of a small comparison."""
    experiment = {
        "name": "small",
        "data": {"source": "folder", "directory": str(data / task), "task": task, "test_share": 0.25},
        "model": {"name": "logistic"},
        "federation": {"rounds": ROUNDS, "local_steps": 3, "batch_size": 8},
        "regularizer": {"weight_decay": 0.05, "clip_bound": 0.5},
        "execution": {"placement": "serial", "vectorize": 3},
        "checkpoint": {"every": 2},
        "tracking": {"uri": create_store((folder or Path.cwd()) / "mlflow.db")},
    }
    path = (folder or Path.cwd()) / "small.yaml"
    compare = {"seeds": 1, "final_rounds": 2, "pack": "off", **compared}
    path.write_text(yaml.safe_dump({"experiment": experiment, "compare": compare}))
    return path


def run_fednar(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def run_and_parse(*arguments: str) -> dict[str, Any]:
    result = run_fednar("compare", *arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def load_children(run_id: str) -> dict[tuple[float, str, int], Any]:
    """Returns the runs of a comparison in MLflow that were not replaced, by decay, regularizer and seed."""
    client = MlflowClient(create_store(Path.cwd() / "mlflow.db"))
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    kept = [run for run in found if "fednar.abandoned" not in run.data.tags]
    return {
        (float(p["regularizer.weight_decay"]), p["regularizer.name"], int(p["seed"])): run
        for run in kept
        for p in [run.data.params]
    }


def load_statuses() -> list[str]:
    """Returns the statuses of all runs in MLflow, sorted."""
    client = MlflowClient(create_store(Path.cwd() / "mlflow.db"))
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    return sorted(run.info.status for run in client.search_runs(everywhere))


def load_history(run: Any, metric: str) -> list[float]:
    client = MlflowClient(create_store(Path.cwd() / "mlflow.db"))
    return [m.value for m in sorted(client.get_metric_history(run.info.run_id, metric), key=lambda m: m.step)]


# --- The metric


def test_a_regression_is_compared_by_its_rmse(data):
    result = run_and_parse(str(write(data, target_rmse=0.7, seeds=2)))
    assert "nan" not in json.dumps(result).lower()
    runs = load_children(result["run_id"])
    finals = {
        name: np.array([np.mean(load_history(runs[0.05, name, seed], "rmse/test")[-2:]) for seed in (0, 1)])
        for name in ("decoupled", "fednar")
    }
    first, second = result["rows"]
    assert list(first)[:5] == ["weight decay", "regularizer", "final rmse", "difference", "rounds to target"]
    for row in (first, second):
        final = finals[row["regularizer"]]
        assert row["final rmse"] == f"{final.mean():.4g} ± {final.std(ddof=1):.2g}"
        reached = [
            next((t + 1 for t, value in enumerate(load_history(runs[0.05, row["regularizer"], seed], "rmse/test"))
                  if value <= 0.7), None)
            for seed in (0, 1)
        ]  # fmt: skip
        assert None not in reached
        assert row["rounds to target"] == f"{np.median(reached):g}"
    difference = finals["fednar"] - finals["decoupled"]
    half = stats.t.ppf(0.975, 1) * difference.std(ddof=1) / math.sqrt(2)
    assert second["difference"] == f"{difference.mean():+.2g} ± {half:.2g}"
    assert first["difference"] == "–"
    client = MlflowClient(create_store(Path.cwd() / "mlflow.db"))
    headline = client.get_run(result["run_id"]).data.metrics
    assert headline["final_rmse/fednar_0.05"] == pytest.approx(finals["fednar"].mean())
    assert headline["difference/fednar_0.05"] == pytest.approx(difference.mean())


def test_a_regression_without_a_target_shows_a_dash_and_states_that_lower_is_better(data):
    result = run_fednar("compare", str(write(data)), "compare.weight_decays=[0.01, 0.1]")
    assert result.exit_code == 0, result.output
    assert "1 seed; difference to decoupled; a lower rmse is better" in result.output
    assert "nan" not in result.output.lower()
    assert "±" not in result.output  # one seed has no spread
    assert "test rmse" in result.output
    (picture,) = Path("runs").glob("*/comparison.png")
    assert f"report: {picture.absolute().with_name('report.html')}" in result.output
    again = run_fednar("report", picture.parent.name, "--json", "--output", "elsewhere")
    assert [Path(path).name for path in json.loads(again.stdout)["files"]] == ["report.html", "comparison.png"]
    assert Path("elsewhere", picture.name).read_bytes() == picture.read_bytes()
    assert "Final test rmse by weight decay" in Path("elsewhere", "report.html").read_text()


def test_a_binary_task_is_compared_by_its_accuracy(data):
    result = run_and_parse(str(write(data, "binary")), "compare.target_accuracy=0.6")
    runs = load_children(result["run_id"])
    for row in result["rows"]:
        accuracies = load_history(runs[0.05, row["regularizer"], 0], "accuracy/test")
        assert row["final accuracy"] == f"{np.mean(accuracies[-2:]):.3f}"
        assert row["rounds to target"] == str(1 + int(np.argmax(np.array(accuracies) >= 0.6)))


@pytest.mark.parametrize(
    ("task", "target", "instead"),
    [("regression", "target_accuracy", "target_rmse"), ("binary", "target_rmse", "target_accuracy")],
)
def test_a_target_of_another_task_is_refused_before_anything_starts(task, target, instead, data):
    result = run_fednar("compare", str(write(data, task)), f"compare.{target}=0.5")
    assert str(result.exception) == f"compare.{target}: 0.5 is not a target for {task}; set compare.{instead}"
    assert isinstance(result.exception, ConfigError)
    assert not Path("runs").exists()


def build_outcome(values: list[float | None], metric: str = "test_rmse", **more: float) -> Outcome:
    """Builds a run by hand; None stands for a round that was not evaluated."""
    records = tuple(
        RoundRecord(
            round_index=t,
            metrics={"bytes_down": 1e6, "bytes_up": 1e6, "client_seconds": 1.0, "round_seconds": 2.0, **more}
            | ({} if value is None else {metric: value}),
            client_ids=(),
            exclusions={},
        )
        for t, value in enumerate(values)
    )
    return Outcome(records, ())


def build_table(fednar: list[Outcome], decoupled: list[Outcome], **settings: Any) -> list[dict[str, str]]:
    runs = {Variant(0.1, "decoupled"): decoupled, Variant(0.1, "fednar"): fednar}
    return [row.format_cells() for row in build_rows(runs, CompareSettings(seeds=len(fednar), **settings))]


def test_a_lower_rmse_reaches_the_target():
    rows = build_table(
        [build_outcome([3.0, None, 1.0])], [build_outcome([3.0, None, 2.0])], target_rmse=2.5, final_rounds=1
    )
    assert [row["rounds to target"] for row in rows] == ["3", "3"]
    assert [row["MB to target"] for row in rows] == ["6.0", "6.0"]
    assert [row["final rmse"] for row in rows] == ["2", "1"]
    assert [row["difference"] for row in rows] == ["–", "-1"]
    rows = build_table([build_outcome([3.0, 1.0])], [build_outcome([3.0, 2.0])], target_rmse=1.5)
    assert [row["rounds to target"] for row in rows] == ["–", "2"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.filterwarnings("error")
def test_values_that_are_not_finite_are_written_as_words(value):
    rows = build_table([build_outcome([1.0, value])] * 2, [build_outcome([1.0, 2.0])] * 2)
    assert [row["final rmse"] for row in rows] == ["1.5 ± 0", "not finite"]
    assert [row["difference"] for row in rows] == ["–", "–"]
    assert not re.search(r"\b(nan|inf)\b", str(rows))


def test_rounds_without_clients_have_no_clipped_steps():
    clipped = build_outcome([0.5, 0.6], "test_accuracy", clip_fraction=0.25)
    assert [row["clipped"] for row in build_table([build_outcome([0.5], "test_accuracy")], [clipped])] == ["25 %", "–"]


# --- The time that a row includes


def test_a_serial_run_warms_up_before_its_first_round(data):
    prepared = prepare(load_document(write(data)).experiment)
    with fr.RaySession() as session, open_pool(prepared, plan_execution(prepared, session), session) as pool:
        assert not pool.trainer._gradients
        pool.wait_until_ready()
        assert len(pool.trainer._gradients) == 1


def test_all_actors_have_started_and_warmed_up_before_the_first_round(data, session):
    overrides = ["execution.placement=pooled", "execution.actors=2", "execution.gpus_per_actor=0"]
    prepared = prepare(load_document(write(data), overrides).experiment)
    with open_pool(prepared, plan_execution(prepared, session), session) as pool:
        pool.wait_until_ready()
        assert [slot.starting for slot in pool._slots] == [None, None]


# --- Resuming


def build_document(data: Path, **compared: Any) -> Document:
    return load_document(write(data, **compared))


def interrupt_comparison(document: Document, rounds: int) -> str:
    """Starts a comparison, stops it after a total number of rounds, and returns its name."""
    with fr.RaySession() as session, contextlib.closing(iter_comparison(document, session)) as comparing:
        for _ in range(rounds):
            next(comparing)
    (path,) = Path("runs").glob("*/comparison.yaml")
    return path.parent.name


def load_trajectories(name: str) -> dict[str, list[Any]]:
    """Returns the rounds of each run of a comparison without durations, by label."""
    record, found = find(name), {}
    for run in record.runs:
        directory = record.find_directory(run)
        assert directory is not None
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            del line["time"]
            line["metrics"] = {key: value for key, value in line["metrics"].items() if key not in DURATIONS}
        model = (directory / "model.pt").read_bytes()
        found[run.label] = [model, *lines]
    return found


def drop_durations(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key not in ("client-s", "wall s")} for row in rows]


class Whole(NamedTuple):
    """An uninterrupted comparison: its working directory, the output of its command, its table and its rounds."""

    folder: Path
    output: str
    rows: list[dict[str, str]]
    trajectories: dict[str, list[Any]]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = run_fednar("compare", str(write(data, folder=folder)), "--resume", "--json")
        assert done.exit_code == 0, (done.output, done.exception)
        result = json.loads(done.stdout)
        return Whole(folder, done.output, drop_durations(result["rows"]), load_trajectories(result["name"]))


@pytest.mark.parametrize("pack", ["off", "auto"])
@pytest.mark.parametrize("rounds", [1, ROUNDS, ROUNDS + 3, RUNS * ROUNDS])
def test_a_resumed_comparison_equals_an_uninterrupted_one(rounds, pack, data, whole):
    name = interrupt_comparison(build_document(data, pack=pack), rounds)
    started = -(-rounds // ROUNDS) if pack == "off" else min(rounds, RUNS)
    finished = started - 1 if pack == "off" else 0  # together, no run ends before the last one of them
    assert load_statuses() == ["FINISHED"] * finished + ["KILLED"] * (started - finished + 1)  # and the comparison
    before = {path: path.stat().st_mtime_ns for path in Path("runs").glob("*/model.pt")}
    result = run_and_parse("--resume", name)
    assert result["name"] == name
    assert drop_durations(result["rows"]) == whole.rows
    assert load_trajectories(name) == whole.trajectories
    assert load_statuses() == ["FINISHED"] * (RUNS + 1)
    assert len(load_children(result["run_id"])) == RUNS
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())  # finished runs were only read
    assert len([*Path("runs").iterdir()]) == RUNS + 1


def test_the_same_command_resumes_or_starts_and_shows_a_finished_comparison_again(whole, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, logger="fednar_ray")
    monkeypatch.chdir(whole.folder)
    assert "no comparison of 'small' to resume; starting a new one" in whole.output
    (name,) = {path.parent.name for path in Path("runs").glob("*/comparison.yaml")}
    count = len([*Path("runs").iterdir()])
    first = find(name)
    facts = RunDirectory(first.directory.parent / str(first.runs[0].directory)).facts
    kept = facts.read_bytes()
    for arguments in (["small.yaml", "--resume"], ["--resume", name], ["--resume", name.rpartition("-")[2]]):
        facts.write_text("{")  # after the last round, a warning about it is enough
        result = run_and_parse(*arguments)
        assert result["name"] == name
        assert drop_durations(result["rows"]) == whole.rows
        assert f"{facts} does not say how the run was made" in caplog.text
        caplog.clear()
    facts.write_bytes(kept)
    assert len([*Path("runs").iterdir()]) == count
    assert load_statuses() == ["FINISHED"] * (RUNS + 1)


def test_what_a_killed_process_had_not_sent_of_a_finished_run_is_sent_on_resumption(whole, monkeypatch):
    monkeypatch.chdir(whole.folder)
    (name,) = {path.parent.name for path in Path("runs").glob("*/comparison.yaml")}
    directory = find(name).directory.parent / str(find(name).runs[0].directory)
    with closing(Outbox(directory)) as outbox:  # as if the process had been killed before it was sent
        outbox.append({"kind": "tags", "tags": {"late": "yes"}})
    result = run_and_parse("--resume", name)
    late = [run for run in load_children(result["run_id"]).values() if run.data.tags.get("late") == "yes"]
    assert [run.info.run_id[:8] for run in late] == [directory.name.rpartition("-")[2]]


def test_an_unfinished_comparison_is_listed_and_only_one_process_resumes_it_with_its_own_settings(data):
    name = interrupt_comparison(build_document(data), ROUNDS + 1)
    assert_listed_as_unfinished(name)
    assert_refused_with_other_settings(name)
    assert_refused_while_locked(name)
    assert_refused_as_a_run(name)
    assert run_and_parse("small.yaml", "execution.retries=5", "--resume")["name"] == name  # the placement may change
    assert re.search(rf"{name} .* 2/2 .*finished", run_fednar("runs").output)


def assert_listed_as_unfinished(name: str) -> None:
    output = run_fednar("runs").output
    assert "comparisons" in output.splitlines()
    assert re.search(rf"{name} .* 1/2 .*unfinished", output)
    assert f"resume it with: fednar compare --resume {name}" in output


def assert_refused_with_other_settings(name: str) -> None:
    for change, says in [
        ("compare.seeds=3", "compare.seeds: 3, and was 1"),
        ("federation.rounds=5", "federation.rounds: 5, and was 4"),
        ("regularizer.clip_bound=1", "regularizer.clip_bound: 1.0, and was 0.5"),
    ]:
        error = run_fednar("compare", "small.yaml", change, "--resume").exception
        assert isinstance(error, ConfigError)
        assert says in str(error)
        assert f"fednar compare --resume {name}" in str(error)


def assert_refused_while_locked(name: str) -> None:
    with lock_run_directory(Path("runs", name).absolute()):
        error = run_fednar("compare", "--resume", name).exception
    assert isinstance(error, BadInput)
    assert "is being written by a process that is running" in str(error)


def assert_refused_as_a_run(name: str) -> None:
    error = run_fednar("run", "--resume", name).exception
    assert isinstance(error, BadInput)
    assert str(error) == f"{name} is a comparison; resume it with: fednar compare --resume {name}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--resume", "nosuch"], "nosuch: no such comparison; comparisons here: none"),
        (["--resume", "small-1", "x.yaml"], "it takes no FILE and no key=value"),
    ],
)
def test_a_comparison_that_cannot_be_resumed_is_refused(arguments, says):
    error = run_fednar("compare", *arguments).exception
    assert isinstance(error, BadInput)
    assert says in str(error)


def test_a_record_that_is_damaged_or_has_old_keys_is_named(data):
    name = interrupt_comparison(build_document(data), 1)
    path = RunDirectory(Path("runs", name).absolute()).comparison_yaml
    assert_old_keys_are_refused_with_the_new_names(name, path)
    for text in ("", "[]", "runs: 5", "runs: [{}]", "{"):
        path.write_text(text)
        error = run_fednar("compare", "--resume", name).exception
        assert isinstance(error, BadInput), text
        assert str(path) in str(error)
    assert name in run_fednar("runs").output  # and the other commands still work


def assert_old_keys_are_refused_with_the_new_names(name: str, path: Path) -> None:
    sections = yaml.safe_load(path.read_text())
    sections["experiment"]["execution"]["cohort_width"] = sections["experiment"]["execution"].pop("vectorize", "auto")
    for run in sections["runs"]:
        run["cohort_width"] = run.pop("group_size")
    path.write_text(yaml.safe_dump(sections))
    error = run_fednar("compare", "--resume", name).exception
    assert isinstance(error, BadInput)
    for says in (
        str(path),
        "runs.0.cohort_width is now group_size",
        "execution.cohort_width is now execution.vectorize",
        "resume the comparison with the version that wrote it, or start a new one",
    ):
        assert says in str(error)


def test_a_run_without_a_checkpoint_is_trained_from_its_first_round(data, whole):
    settings = build_document(data)
    checkpoint = settings.experiment.checkpoint.model_copy(update={"every": None})
    file = Path("small.yaml")
    sections = yaml.safe_load(file.read_text())
    sections["experiment"]["checkpoint"] = checkpoint.model_dump()
    file.write_text(yaml.safe_dump(sections))
    name = interrupt_comparison(load_document(file), ROUNDS + 2)
    result = run_fednar("compare", "--resume", name, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert drop_durations(summary["rows"]) == whole.rows
    assert load_trajectories(name) == whole.trajectories
    assert load_statuses() == ["FINISHED"] * (RUNS + 1) + ["KILLED"]  # the attempt that was replaced
    assert len(load_children(summary["run_id"])) == RUNS
    drawn = run_fednar("report", summary["run_id"], "--uri", create_store(Path.cwd() / "mlflow.db"), "--json")
    assert drawn.exit_code == 0, drawn.output


def test_a_run_that_another_process_trains_is_not_trained(data):
    name = interrupt_comparison(build_document(data), 3)
    directory = find(name).find_directory(find(name).runs[0])
    assert directory is not None
    with lock_run_directory(directory):
        error = run_fednar("compare", "--resume", name).exception
    assert isinstance(error, BadInput)
    assert f"{directory} is being written by a process that is running" in str(error)
    assert find(name).find_directory(find(name).runs[0]) == directory
    assert "fednar.abandoned" not in MlflowClient().get_run(read_identity(directory).run_id).data.tags


def test_a_finished_run_with_a_damaged_identity_remains_in_the_comparison(data, whole):
    name = interrupt_comparison(build_document(data), ROUNDS + 1)
    directory = find(name).find_directory(find(name).runs[0])
    assert directory is not None
    run_id = read_identity(directory).run_id
    RunDirectory(directory).identity.write_text("{}")
    assert drop_durations(run_and_parse("--resume", name)["rows"]) == whole.rows
    assert "fednar.abandoned" not in MlflowClient().get_run(run_id).data.tags


def iter_rounds_trained(folder: Path) -> Iterator[int]:
    for path in folder.glob("runs/*/metrics.jsonl"):
        yield path.read_bytes().count(b"\n")


@pytest.mark.usefixtures("processes")
def test_a_killed_comparison_is_resumed_by_its_command(data, tmp_path, whole):
    """A killed driver leaves runs with the MLflow status RUNNING, which the resumed comparison ends."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_TRACKING")}
    command = ["compare", str(write(data)), "--resume", "--json"]
    with start_fednar(*command, cwd=tmp_path, env=environment) as driver:
        wait_for(lambda: sum(iter_rounds_trained(tmp_path)) >= ROUNDS + 1, pause=0.002)
        driver.send_signal(signal.SIGKILL)
    assert "RUNNING" in load_statuses()
    done = finish(start_fednar(*command, cwd=tmp_path, env=environment))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert drop_durations(result["rows"]) == whole.rows
    assert load_trajectories(result["name"]) == whole.trajectories
    assert set(load_statuses()) <= {"FINISHED", "KILLED"}
    assert {run.info.status for run in load_children(result["run_id"]).values()} == {"FINISHED"}


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_comparison_prints_how_to_resume_it(sign, code, data, tmp_path):
    with start_fednar("compare", str(write(data)), "federation.rounds=100000", cwd=tmp_path) as driver:
        wait_for(lambda: sum(iter_rounds_trained(tmp_path)) >= 2, pause=0.01)
        driver.send_signal(sign)
        _, output = driver.communicate(timeout=PATIENCE_SECONDS)
    (path,) = Path("runs").glob("*/comparison.yaml")
    assert driver.returncode == code
    assert f"resume it with: fednar compare --resume {path.parent.name}" in output
    assert set(load_statuses()) == {"KILLED"}
