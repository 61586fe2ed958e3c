"""Notes arrive in MLflow with the answer, a table and links that work; a note that somebody edited stays."""

from pathlib import Path

from mlflow import MlflowClient

from fednar_ray.tracking.notes import Note
from fednar_ray.tracking.store import Store
from fednar_ray.tracking.tracker import RunTracker
from fednar_ray.tracking.ui_url import TRAINING_PAGES
from tests.support.stores import create_store

NOTE = Note(
    answer="It works: γ_λ.", figures={"a | b": "1"}, report="report.html", view="1a2b3c4d", picture="curves.png"
)


def test_a_note_reaches_the_run_and_its_experiment(tmp_path: Path) -> None:
    store = Store(create_store(tmp_path / "m.db"))
    experiment_id = store.ensure_experiment("e")

    def log(note: Note, directory: str) -> str:
        run_id = store.create_run(experiment_id, "r", {})
        with RunTracker(store, run_id, tmp_path / directory) as tracker:
            tracker.log_note(note, "e-1")
        return run_id

    run_id = log(NOTE, "first")
    text = store.client.get_run(run_id).data.tags["mlflow.note.content"]
    answer, links, table, picture = text.split("\n\n")
    assert (answer, table) == ("**It works: γ\\_λ.**", "| | |\n|---|---|\n| a \\| b | 1 |")
    page = f"#/experiments/{experiment_id}/runs"
    view = f"{page}?{TRAINING_PAGES}&viewStateShareKey=1a2b3c4d"
    assert f"[Report]({page}/{run_id}/artifacts/report.html?{TRAINING_PAGES})" in links
    assert f"[All runs, best first]({view})" in links
    assert f"[Their charts]({view}&compareRunsMode=CHART)" in links
    assert picture == f"![curves](get-artifact?path=curves.png&run_uuid={run_id})"
    newest = f"Newest result: **It works: γ\\_λ.**\n\n[e-1]({page}/{run_id}?{TRAINING_PAGES})"
    assert newest in read_note(store)

    log(Note(answer="It works better."), "second")
    assert "It works better." in read_note(store)
    store.client.set_experiment_tag(experiment_id, "mlflow.note.content", "mine")
    log(NOTE, "third")
    assert read_note(store) == "mine"


def read_note(store: Store) -> str:
    client: MlflowClient = store.client
    return str(client.get_experiment_by_name("e").tags["mlflow.note.content"])
