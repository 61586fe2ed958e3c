"""``fednar report`` writes the same page from the run directory and from MLflow alone."""

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
from fednar_ray.report.plots import draw_curves
from fednar_ray.report.run_plots import compute_final_value
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


def read_main(page: Path) -> str:
    """Returns what a page shows, without its title and what says how it was made."""
    text = page.read_text(encoding="utf-8")
    return text[text.index("<main>") : text.index("<h2>How it was made")]


def test_a_run_is_drawn_from_its_directory(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    run = Path(run_to_summary(folder, "run")["directory"])
    for name in (run.name, str(run), run_to_summary(folder, "run")["run_id"]):
        page, picture = redraw(name, "--output", str(tmp_path / "out"))
        assert page.read_text() == (run / "report.html").read_text()
        assert is_same_picture(picture, run / "curves.png")
    assert redraw(run.name)[0].parent == run


def test_the_page_of_a_run_shows_the_names_of_its_clients(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(run_to_summary(folder, "run")["directory"], tmp_path / "run-1")
    write_client_names(copy, [f"ward {i}" for i in range(20)])
    assert read_main(redraw(str(copy))[0]).count("<td>ward ") == 20


def test_a_run_of_an_earlier_version_is_drawn_with_its_primary_metric(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(run_to_summary(folder, "run")["directory"], tmp_path / "run-1")
    (copy / "facts.json").unlink()
    outbox = Outbox(copy)
    outbox.append({"kind": "tags", "tags": {"fednar.primary": "macro_f1"}})
    outbox.close()
    page, curves = redraw(str(copy))
    assert is_same_picture(curves, draw_curves(load_records(copy), tmp_path / "expected.png", "macro_f1"))
    assert "test macro f1 of" in read_main(page)


def test_a_run_is_drawn_from_mlflow_alone(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, uri = run_to_summary(folder, "run"), create_store(folder / "m.db")
    page, picture = redraw(run["run_id"], "--uri", uri)
    assert page.parent == tmp_path / "runs" / Path(run["directory"]).name
    assert page.read_text() == Path(run["directory"], "report.html").read_text()
    assert is_same_picture(picture, Path(run["directory"], "curves.png"))


def test_a_run_that_has_not_finished_is_drawn_from_its_metrics(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, uri = run_to_summary(folder, "run"), create_store(folder / "m.db")
    client = MlflowClient(uri)
    client.update_run(run["run_id"], status="RUNNING")
    page, picture = redraw(run["run_id"], "--uri", uri)
    client.update_run(run["run_id"], status="FINISHED")
    assert is_same_picture(picture, Path(run["directory"], "curves.png"))
    made = read_main(Path(run["directory"], "report.html"))
    drawn, expected = read_main(page).partition("<h2>Clients")[0], made.partition("<h2>Sensitivity")[0]
    assert drawn.rstrip() == expected.rstrip()


def test_a_comparison_is_the_same_from_its_directory_and_from_mlflow(folder, tmp_path, monkeypatch):
    compared, uri = run_to_summary(folder, "comparison"), create_store(folder / "m.db")
    made = Path(compared["page"]).parent
    monkeypatch.chdir(folder)
    here = redraw(made.name, "--output", str(tmp_path / made.name))
    monkeypatch.chdir(tmp_path)
    there = redraw(compared["run_id"], "--uri", uri, "--output", str(tmp_path / "there"))
    for page, picture in (here, there):
        assert read_main(page) == read_main(made / "report.html")
        assert is_same_picture(picture, made / "comparison.png")
    artifacts = {file.path for file in MlflowClient(uri).list_artifacts(compared["run_id"])}
    assert {"comparison.png", "report.html"} <= artifacts
    assert not list(folder.glob("runs/*/curves.png"))[1:]  # the runs of a comparison have no page of their own


def build_rounds(count: int, accuracy: float) -> list[RoundRecord]:
    metrics = {"test_accuracy": accuracy, "effective_weight_decay": 0.01}
    return [RoundRecord(round_index=t, metrics=metrics, client_ids=(), exclusions={}) for t in range(count)]


def test_the_final_value_is_a_mean_over_the_last_rounds():
    assert compute_final_value(build_rounds(5, 0.7), 2) == pytest.approx(0.7)
    assert math.isnan(compute_final_value([], 2))


@pytest.mark.parametrize(("name", "problem"), [("nosuch", "no search of the name"), ("ab" * 16, "has no run (ab){16}")])
def test_an_unknown_name_or_id_is_refused(name, problem, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_fednar("report", name, "--uri", create_store(folder / "m.db"))
    assert re.search(problem, str(result.exception))
    assert not list(tmp_path.glob("runs/*"))
