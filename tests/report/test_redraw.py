"""``fednar report`` of runs and comparisons draws the same plots from the run directory and from MLflow alone."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from matplotlib.image import imread
from mlflow import MlflowClient

from fednar_ray.cli.main import cli
from fednar_ray.core.reports import RoundRecord
from fednar_ray.report.plots import draw_curves, draw_step_norms
from fednar_ray.report.run_plots import Variant, compute_final_value, draw_variants
from fednar_ray.tracking.clients_file import write_client_names
from fednar_ray.tracking.journal import load_records
from fednar_ray.tracking.outbox import Outbox
from tests.support.stores import create_store

pytestmark = pytest.mark.usefixtures("recorded_runs")

SERIAL = ["execution.placement=serial", "federation.rounds=4", "model.hidden=8", "federation.local_steps=4"]


def run_fednar(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Returns a working directory with a run and a comparison."""
    folder = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        there = f"tracking.uri=sqlite:///{folder / 'm.db'}"
        made = [
            run_fednar("run", *SERIAL, there, "regularizer.clip_bound=0.5", "--json"),
            run_fednar("compare", *SERIAL, there, "compare.seeds=1", "compare.weight_decays=[0.001, 0.1]", "--json"),
        ]
    for name, result in zip(("run", "comparison"), made, strict=True):
        assert result.exit_code == 0, result.output
        (folder / f"{name}.json").write_text(result.stdout)
    return folder


def run_to_summary(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def redraw(name: str, *options: str) -> list[Path]:
    result = run_fednar("report", name, "--json", *options)
    assert result.exit_code == 0, result.output
    return [Path(path) for path in json.loads(result.stdout)["files"]]


def is_same_picture(path: Path, other: Path) -> bool:
    return (imread(path) == imread(other)).all()


def test_a_run_is_drawn_from_its_directory(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    run = Path(run_to_summary(folder, "run")["directory"])
    for name in (run.name, str(run), run_to_summary(folder, "run")["run_id"]):
        files = redraw(name, "--output", str(tmp_path / "out"))
        assert [path.name for path in files] == ["curves.png", "step_norms.png"]
        assert all(is_same_picture(path, run / path.name) for path in files)
    assert redraw(run.name)[0].parent == run


def test_the_clients_of_a_run_are_drawn_with_their_names(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Path(run_to_summary(folder, "run")["directory"])
    copy = shutil.copytree(run, tmp_path / run.name)
    plain = imread(redraw(str(copy), "--output", str(tmp_path / "plain"))[1])
    assert (plain == imread(run / "step_norms.png")).all()
    names = [f"ward {i}" for i in range(20)]
    write_client_names(copy, names)
    named = imread(redraw(str(copy), "--output", str(tmp_path / "named"))[1])
    assert (named == imread(draw_step_norms(load_records(run), tmp_path / "expected.png", names))).all()
    assert named.shape != plain.shape or (named != plain).any()


def test_a_run_is_drawn_from_its_directory_with_its_primary_metric(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(run_to_summary(folder, "run")["directory"], tmp_path / "run-1")
    outbox = Outbox(copy)
    outbox.append({"kind": "tags", "tags": {"fednar.primary": "macro_f1"}})
    outbox.close()
    curves = redraw(str(copy))[0]
    assert is_same_picture(curves, draw_curves(load_records(copy), tmp_path / "expected.png", "macro_f1"))


def test_a_run_is_drawn_from_mlflow_alone(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, uri = run_to_summary(folder, "run"), create_store(folder / "m.db")
    files = redraw(run["run_id"], "--uri", uri)
    assert all(is_same_picture(path, Path(run["directory"]) / path.name) for path in files)
    assert files[0].parent == tmp_path / "runs" / Path(run["directory"]).name


def test_a_run_that_has_not_finished_is_drawn_from_its_metrics(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, uri = run_to_summary(folder, "run"), create_store(folder / "m.db")
    client = MlflowClient(uri)
    client.update_run(run["run_id"], status="RUNNING")
    files = redraw(run["run_id"], "--uri", uri)
    client.update_run(run["run_id"], status="FINISHED")
    assert [path.name for path in files] == ["curves.png", "step_norms.png"]
    assert is_same_picture(files[0], Path(run["directory"]) / "curves.png")
    assert imread(files[1]).shape[1] == 600  # without the panel of clients


def test_the_plots_of_a_comparison_are_the_same_from_its_directory_and_from_mlflow(folder, tmp_path, monkeypatch):
    compared, uri = run_to_summary(folder, "comparison"), create_store(folder / "m.db")
    made = Path(compared["chart"]).parent
    assert Path(compared["accuracy_by_decay"]).parent == made
    monkeypatch.chdir(folder)
    here = redraw(made.name, "--output", str(tmp_path / "here"))
    monkeypatch.chdir(tmp_path)
    there = redraw(compared["run_id"], "--uri", uri)
    for files in (here, there):
        assert [path.name for path in files] == ["comparison.png", "accuracy_by_decay.png"]
        assert all(is_same_picture(path, made / path.name) for path in files)
    artifacts = {file.path for file in MlflowClient(uri).list_artifacts(compared["run_id"])}
    assert {"comparison.png", "accuracy_by_decay.png"} <= artifacts


def build_rounds(count: int, accuracy: float) -> list[RoundRecord]:
    metrics = {"test_accuracy": accuracy, "effective_weight_decay": 0.01}
    return [RoundRecord(round_index=t, metrics=metrics, client_ids=(), exclusions={}) for t in range(count)]


def test_a_comparison_of_one_weight_decay_has_no_plot_over_decays(tmp_path):
    runs = {Variant(0.01, name): [build_rounds(3, 0.5)] for name in ("fednar", "decoupled")}
    assert [path.name for path in draw_variants(runs, 2, tmp_path)] == ["comparison.png"]


def test_an_unfinished_comparison_is_drawn_up_to_its_last_round(tmp_path):
    runs = {
        Variant(0.01, "fednar"): [build_rounds(3, 0.5), build_rounds(5, 0.7)],
        Variant(0.1, "fednar"): [build_rounds(1, 0)],
    }
    assert len(draw_variants(runs, 2, tmp_path)) == 2
    assert compute_final_value(build_rounds(5, 0.7), 2) == pytest.approx(0.7)
    assert math.isnan(compute_final_value([], 2))


@pytest.mark.parametrize(("name", "problem"), [("nosuch", "no search of the name"), ("ab" * 16, "has no run (ab){16}")])
def test_an_unknown_name_or_id_is_refused(name, problem, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_fednar("report", name, "--uri", create_store(folder / "m.db"))
    assert re.search(problem, str(result.exception))
    assert not list(tmp_path.glob("runs/*"))
