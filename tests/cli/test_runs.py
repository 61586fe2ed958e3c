"""``fednar runs`` names the metric by which each run is judged."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.cli.run_list import KINDS
from fednar_ray.config.loading import parse_document
from fednar_ray.core.reports import RoundRecord
from fednar_ray.experiments.comparison.record import ComparisonRecord, PlannedRun
from fednar_ray.tracking.identity import Identity
from fednar_ray.tracking.journal import Journal
from fednar_ray.tracking.locks import lock_run_directory
from fednar_ray.tracking.outbox import Outbox
from fednar_ray.tracking.stop_record import Stop
from fednar_ray.tracking.tags import END_TAG, PRIMARY_TAG
from fednar_ray.tuning.trial_table import TrialEntry, TrialTable


def write_run(name: str, metrics: Mapping[str, float], primary: str | None) -> None:
    directory = Path("runs") / name
    experiment = fr.Experiment.model_validate({"federation": {"rounds": 2, "local_steps": 1}})
    with Journal(directory, experiment) as journal:
        journal.log(RoundRecord(round_index=0, metrics=dict(metrics), client_ids=(0,), exclusions={}))
    if primary is not None:
        write_tags(directory, {PRIMARY_TAG: primary})


def write_tags(directory: Path, tags: Mapping[str, str]) -> None:
    outbox = Outbox(directory)
    outbox.append({"kind": "tags", "tags": dict(tags)})
    outbox.close()


def show_runs() -> list[str]:
    """Returns the lines of the list on a terminal so wide that nothing wraps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fednar_ray.cli.output.PIPE_COLUMNS", 300)
        lines = CliRunner().invoke(cli, ["runs"], catch_exceptions=False).stdout.splitlines()
    assert lines == [line.rstrip() for line in lines]
    return lines


def list_entries() -> list[list[str]]:
    """Returns the cells of each entry of the list: name, time, progress, result and status."""
    rows = [re.split(" {2,}", line.strip()) for line in show_runs()]
    return [row for row in rows if len(row) == 5 and row[0] != "name"]


@pytest.mark.parametrize(
    ("metrics", "primary", "shown"),
    [
        ({"test_accuracy": 0.97, "test_auc": 0.812}, "auc", "test auc 0.812"),
        ({"test_accuracy": 0.97}, "auc", "test accuracy 0.970"),  # the test rows have one label: no AUC
        ({"test_rmse": 12.345678, "test_r2": 0.5}, "rmse", "test rmse 12.35"),
        ({"test_rmse": 12.345678, "test_r2": 0.5}, None, "test rmse 12.35"),  # a run of an earlier version
        ({"test_accuracy": 0.5}, None, "test accuracy 0.500"),
        ({"train_loss": 0.5}, "auc", "–"),
    ],
)
def test_a_run_is_listed_with_its_primary_metric(
    metrics: Mapping[str, float],
    primary: str | None,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run("small-1", metrics, primary)
    ((name, _, done, *rest),) = list_entries()
    assert [name, done, *rest] == ["small-1", "1/2", shown, "unfinished, no checkpoint"]
    (row,) = json.loads(CliRunner().invoke(cli, ["runs", "--json"]).stdout)
    assert row["test_value"] == metrics.get(row["test_metric"])
    assert row["test_accuracy"] == metrics.get("test_accuracy")


def write_compared(name: str, regularizer: str, seed: int) -> None:
    settings = {
        "name": "small",
        "seed": seed,
        "federation": {"rounds": 1, "local_steps": 1},
        "regularizer": {"name": regularizer, "weight_decay": 0.03, "clip_bound": 2.0},
    }
    with Journal(Path("runs") / name, fr.Experiment.model_validate(settings)) as journal:
        journal.log(RoundRecord(round_index=0, metrics={"test_accuracy": 0.5}, client_ids=(), exclusions={}))


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Changes to a directory with a finished comparison of two runs, and a run beside it that is older."""
    monkeypatch.chdir(tmp_path)
    write_run("small-0", {"test_accuracy": 0.97}, None)
    text = "experiment: {name: small, model: {name: mlp}, federation: {rounds: 1, local_steps: 1}}"
    runs = [PlannedRun(weight_decay=0.03, regularizer=name, seed=4, directory=f"small-{i}")
            for i, name in enumerate(("none", "fednar"), start=2)]  # fmt: skip
    record = ComparisonRecord(directory=Path("runs/small-1").absolute(), document=parse_document(text, "e"), runs=runs)
    record.directory.mkdir(parents=True)
    write_run("small-1", {}, None)
    record.save()
    for run in runs:
        assert run.directory is not None
        write_compared(run.directory, run.regularizer, run.seed)
    return tmp_path


@pytest.mark.usefixtures("compared")
def test_runs_of_a_comparison_are_listed_below_it_with_what_tells_them_apart() -> None:
    lines = show_runs()
    assert [line for line in lines if line in KINDS.values()] == ["runs", "comparisons"]
    found = list_entries()
    assert [row[0] for row in found] == ["small-0", "small-1", "small-2", "small-3"]
    assert all(f"  {name} " in "\n".join(lines) for name in ("small-2", "small-3"))
    assert found[1][2:] == ["0/2", "–", "unfinished"]
    labels = [line.strip() for line in lines if "seed" in line]
    assert labels == ["fednar λ=0.01 A=10 seed=0", "none, fednar; λ=0.03; 1 seed", "none seed=4",
                      "fednar λ=0.03 A=2 seed=4"]  # fmt: skip
    rows = json.loads(CliRunner().invoke(cli, ["runs", "--json"]).stdout)
    assert {row["run"]: (row["kind"], row["comparison"]) for row in rows} == {
        "small-0": ("run", None), "small-1": ("comparison", None),
        "small-2": ("run", "small-1"), "small-3": ("run", "small-1"),
    }  # fmt: skip


@pytest.mark.usefixtures("compared")
def test_a_finished_comparison_shows_its_best_variant() -> None:
    Path("runs/small-1/finished").touch()
    columns = ["weight decay", "regularizer", "final rmse", "rmse by seed"]
    data = [["0.03", "none", "2", [2.0, 2.0]], ["0.03", "fednar", "1", [1.0, 1.5]], ["0.03", "x", "-", [None, 0.0]]]
    Path("runs/small-1/comparison.json").write_text(json.dumps({"columns": columns, "data": data}))
    rows = json.loads(CliRunner().invoke(cli, ["runs", "--json"]).stdout)
    (row,) = [row for row in rows if row["kind"] == "comparison"]
    assert (row["status"], row["result"]) == ("finished", "fednar λ=0.03: rmse 1.25")
    Path("runs/small-1/comparison.json").write_text("{}")
    assert "comparisons" in CliRunner().invoke(cli, ["runs"], catch_exceptions=False).stdout


def test_a_run_says_why_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reasons = {
        "failed": ("RoundAborted: round 1 aborted: no update", "failed", "round 1 aborted: no update"),
        "killed": ("KeyboardInterrupt: ", "interrupted", None),
        "ended": (None, "unfinished", None),
    }
    for name, (end, _, _) in reasons.items():
        write_run(f"{name}-1", {"test_accuracy": 0.5}, None)
        if end is not None:
            write_tags(Path("runs", f"{name}-1"), {END_TAG: end})
    write_run("stopped-1", {"test_accuracy": 0.5}, None)
    Stop(rounds=1, planned=2, reason="no better").save(Path("runs/stopped-1"))
    Path("runs/stopped-1/finished").touch()
    rows = json.loads(CliRunner().invoke(cli, ["runs", "--json"]).stdout)
    found = {row["run"].removesuffix("-1"): (row["status"], row["why"]) for row in rows}
    wanted = {name: (status, why) for name, (_, status, why) in reasons.items()}
    assert found == wanted | {"stopped": ("stopped early", "no better")}
    lines = show_runs()
    assert "failed-1, failed: round 1 aborted: no update" in lines
    assert "stopped-1, stopped early: no better" in lines
    with lock_run_directory(Path("runs/ended-1")):
        rows = json.loads(CliRunner().invoke(cli, ["runs", "--json"]).stdout)
    assert next(row["status"] for row in rows if row["run"] == "ended-1") == "running"


def write_search(name: str, settings: Mapping[str, object]) -> TrialTable:
    best = TrialEntry(name="trial-0000", values={"regularizer.clip_bound": 2.0}, status="finished", value=0.75)
    table = TrialTable(
        name=name, tracking_uri="sqlite:///mlflow.db", experiment_id="1", run_id="a" * 32, trials={"0": best}
    )
    table.create(json.dumps({"experiment": {}, "search": settings}))
    return table


def test_searches_are_listed_with_their_best_value_and_why_they_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"metric": "validation_auc", "mode": "max", "space": {"regularizer.clip_bound": {"choice": [1, 2]}}}
    table = write_search("small", settings)
    write_search("damaged", {})
    write_run("small-best-1", {"test_auc": 0.5}, None)
    Identity(run_id="b" * 32, tracking_uri="sqlite:///mlflow.db", parent_id="a" * 32).write(
        Path("runs/small-best-1").absolute()
    )
    lines = show_runs()
    assert "searches" in lines
    assert "runs" not in lines  # the run belongs to the search
    assert [line.strip() for line in lines if "trial" in line] == ["A; 1 trial"]
    assert any(line.startswith("  small-best-1 ") for line in lines)
    assert list_entries()[0][2:] == ["1", "validation auc 0.750", "unfinished"]
    assert "resume it with: fednar tune --resume small" in lines
    table.files.finished_mark.write_text("no better trial for 5 trials")
    shown = CliRunner().invoke(cli, ["runs"]).stdout
    assert "small, stopped early: no better trial for 5 trials" in shown.splitlines()
    assert "--resume" not in shown
    *_, row = json.loads(CliRunner().invoke(cli, ["runs", "--json"]).stdout)
    assert (row["kind"], row["keys"], row["best_value"]) == ("search", ["regularizer.clip_bound"], 0.75)


@pytest.mark.usefixtures("compared")
def test_the_first_start_is_listed_also_after_resuming() -> None:
    begun = datetime(2026, 11, 2, 16, 52, 10)
    for name in ("small-0", "small-1"):  # a run and a comparison, whose files were written just now
        identity = Identity(run_id="b" * 32, tracking_uri="x", started=begun.astimezone(UTC).isoformat())
        identity.write(Path("runs", name).absolute())
    rows = json.loads(CliRunner().invoke(cli, ["runs", "--json"]).stdout)
    assert {row["run"] for row in rows if row["started"] == begun.isoformat()} == {"small-0", "small-1"}
    assert [row[1] for row in list_entries() if row[0] in ("small-0", "small-1")] == ["11-02 16:52"] * 2


@pytest.mark.usefixtures("compared")
def test_resuming_is_offered_only_if_something_is_left_to_do() -> None:
    (Path("runs/small-0/checkpoints")).mkdir()
    Path("runs/small-0/checkpoints/round-00000001.json").touch()
    lines = show_runs()
    assert [line for line in lines if "--resume" in line] == [
        "resume it with: fednar run --resume small-0",
        "resume it with: fednar compare --resume small-1",
    ]
    for name in ("small-0", "small-1"):
        Path("runs", name, "finished").touch()
    assert "--resume" not in CliRunner().invoke(cli, ["runs"]).output


@pytest.mark.usefixtures("compared")
def test_a_comparison_given_as_a_run_names_its_runs() -> None:
    Path("rows.csv").write_text("x\n1\n")
    for command in (["predict", "small-1", "rows.csv"], ["suggest", "small-1"]):
        problem = CliRunner().invoke(cli, command).exception
        assert isinstance(problem, fr.BadInput)
        assert str(problem).splitlines() == [
            "small-1 is a comparison; name one of its runs:",
            "  small-2  none λ=0.03 seed=4",
            "  small-3  fednar λ=0.03 seed=4",
        ]


@pytest.mark.usefixtures("compared")
@pytest.mark.parametrize(("given", "hint"), [("smal", "did you mean small"), ("zebra", "runs here: small-")])
def test_an_unknown_run_is_answered_with_names_like_it(given: str, hint: str) -> None:
    assert hint in str(CliRunner().invoke(cli, ["suggest", given]).exception)
