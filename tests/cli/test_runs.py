"""``fednar runs`` names the metric by which each run is judged."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.config.loading import parse_document
from fednar_ray.core.reports import RoundRecord
from fednar_ray.experiments.comparison.record import ComparisonRecord, PlannedRun
from fednar_ray.tracking.journal import Journal
from fednar_ray.tracking.outbox import Outbox
from fednar_ray.tracking.tags import PRIMARY_TAG


def write_run(name: str, metrics: Mapping[str, float], primary: str | None) -> None:
    directory = Path("runs") / name
    experiment = fr.Experiment.model_validate({"federation": {"rounds": 2, "local_steps": 1}})
    with Journal(directory, experiment) as journal:
        journal.log(RoundRecord(round_index=0, metrics=dict(metrics), client_ids=(0,), exclusions={}))
    if primary is not None:
        outbox = Outbox(directory)
        outbox.append({"kind": "tags", "tags": {PRIMARY_TAG: primary}})
        outbox.close()


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
    cells = CliRunner().invoke(cli, ["runs"]).output.splitlines()[3].split("│")
    assert [cell.strip() for cell in cells[1:4]] == ["small-1", "1/2", shown]
    (row,) = json.loads(CliRunner().invoke(cli, ["runs", "--json"]).output)
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


def list_cells() -> list[list[str]]:
    lines = CliRunner().invoke(cli, ["runs"], catch_exceptions=False).output.splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]


@pytest.mark.usefixtures("compared")
def test_runs_of_a_comparison_are_listed_below_it_with_what_tells_them_apart() -> None:
    cells = list_cells()
    assert [row[0] for row in cells] == ["small-1", "small-2", "small-3", "small-0"]
    assert [row[3] for row in cells[1:3]] == ["none seed=4", "fednar λ=0.03 A=2 seed=4"]
    rows = json.loads(CliRunner().invoke(cli, ["runs", "--json"]).output)
    assert {row["run"]: row["comparison"] for row in rows} == {
        "small-0": None, "small-1": None, "small-2": "small-1", "small-3": "small-1",
    }  # fmt: skip


@pytest.mark.usefixtures("compared")
def test_resuming_is_offered_only_if_something_is_left_to_do() -> None:
    assert "fednar run --resume RUN" in CliRunner().invoke(cli, ["runs"]).output
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
