"""``fednar ui NAME`` in a browser that has never seen MLflow: its table of runs is arranged for a reader.

Saved views are not a documented interface of MLflow, so this test shows that the installed version opens them.
"""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fednar_ray.tracking.notes import Note
from fednar_ray.tracking.run_views import RunView, format_rank
from fednar_ray.tracking.store import Store
from fednar_ray.tracking.tracker import RunTracker
from tests.support.commands import build_environment
from tests.support.forked_workers import get_executable
from tests.support.servers import PATIENCE_SECONDS, find_free_port, wait_for
from tests.support.stores import create_store

CHROMIUM = shutil.which("chromium")
LOSSES = {"0000 A=1": 0.25, "0001 A=2": 0.25, "0002 A=3": 0.125, "0003 A=4": 0.5}  # of trials, by their runs' names
RANKED = ["0001 A=2", "0000 A=1", "0003 A=4", "0002 A=3"]  # neither by loss nor by time
QUIET = ("--disable-gpu", "--disable-background-networking", "--no-first-run", "--no-sandbox")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's package chromium is not installed"),
    pytest.mark.filterwarnings(
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]


def write_search(folder: Path) -> None:
    """Records a search whose trials have known losses."""
    store = Store(create_store(folder / "mlflow.db"))
    experiment_id = store.ensure_experiment("digits")
    parent = store.create_run(experiment_id, "clip", {"fednar.kind": "search", "fednar.search": "clip"})
    for index, (name, loss) in enumerate(LOSSES.items()):
        tags = {
            "mlflow.parentRunId": parent,
            "fednar.status": "stopped early",
            "fednar.rank": format_rank(RANKED.index(name)),
        }
        with RunTracker(store, store.create_run(experiment_id, name, tags), folder / name) as trial:
            trial.log_params({"regularizer.clip_bound": index + 1})
            trial.log_metrics({"validation_loss": loss, "test_accuracy": 0.5, "bytes_up": 7.0})
    store.create_run(experiment_id, "another", {})
    view = RunView(
        key=parent[:8],
        name="clip: best first",
        metrics=["loss/validation"],
        params=["regularizer.clip_bound"],
        tags=["fednar.status"],
        ascending=True,
        ranked=True,
        parent=parent,
    )
    with RunTracker(store, parent, folder / "search") as tracker:
        tracker.log_view(view)
        tracker.log_note(Note(answer="A=2 is best.", view=view.key, picture="curves.png"), "clip")
    assert MlflowClient(store.uri).get_run(parent).info.status == "FINISHED"


@pytest.fixture(scope="module")
def pages(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Yields the addresses that ``fednar ui clip`` prints while it serves them."""
    folder = tmp_path_factory.mktemp("browser")
    write_search(folder)
    log = folder / "log"
    with (
        log.open("w") as stream,
        subprocess.Popen(
            [
                get_executable("fednar"),
                "ui",
                "clip",
                "--uri",
                f"sqlite:///{folder}/mlflow.db",
                "--port",
                str(find_free_port()),
            ],
            cwd=folder,
            env=build_environment(),
            stdout=stream,
            stderr=stream,
        ) as process,
    ):
        try:
            wait_for(lambda: process.poll() is not None or "Ctrl-C" in log.read_text(), "an address", pause=0.2)
            assert process.poll() is None, log.read_text()
            yield re.findall(r"http://\S+", log.read_text())
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()


def read_page(address: str, folder: Path) -> str:
    """Returns the page that a browser with an empty profile shows, as HTML, after its requests."""
    profile = [f"--user-data-dir={folder / 'profile'}", "--window-size=2200,1000", "--virtual-time-budget=20000"]
    command = [str(CHROMIUM), "--headless", *QUIET, *profile, "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True).stdout


def test_the_saved_view_shows_the_searched_values_and_the_best_trial_first(pages: list[str], tmp_path: Path) -> None:
    html = read_page(pages[0], tmp_path)
    assert re.findall(r">(\d{4} A=\d|another)<", html) == RANKED
    for column in ("metrics.`loss/validation`", "params.`regularizer.clip_bound`", "tags.`fednar.status`"):
        assert f'col-id="{column}"' in html
    assert "Newest result: <strong>A=2 is best.</strong>" in html


def test_the_page_of_the_search_begins_with_its_answer(pages: list[str], tmp_path: Path) -> None:
    html = read_page(pages[1], tmp_path)
    assert "<strong>A=2 is best.</strong>" in html
    assert "viewStateShareKey=" in html
    assert '<img src="get-artifact?path=curves.png' in html.replace("&amp;", "&")


def test_the_charts_of_the_saved_view_begin_with_the_primary_metric(pages: list[str], tmp_path: Path) -> None:
    html = read_page(f"{pages[0]}&compareRunsMode=CHART", tmp_path)
    assert list(dict.fromkeys(re.findall(">(accuracy|cost|loss)<", html))) == ["loss", "accuracy", "cost"]
