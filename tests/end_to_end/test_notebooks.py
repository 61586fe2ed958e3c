"""The notebooks of the documentation run, and a kernel that restarts leaves no processes behind."""

import re
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts" / "documentation"))
import nbformat  # noqa: E402
from notebooks import execute, list_notebooks, render  # noqa: E402

from tests.support.servers import PATIENCE_SECONDS  # noqa: E402
from tests.support.stores import create_store  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Jupyter's own libraries
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MACHINE = re.compile(r"(?<![\w.])/(?:tmp|root|work)/|(?<![\w.])/home/(?!you/)")
SECONDS_OR_ID = re.compile(r"-[0-9a-f]{8}\b|>\d+\.\d</td><td>\d+\.\d</td></tr>")


def list_outputs(notebook: Any) -> list[str]:
    """Returns the texts of all outputs, without what differs from one execution to the next."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error"
            if output.output_type != "stream":
                text = output.data.get("text/html", output.data.get("text/plain"))
                found.append(SECONDS_OR_ID.sub("", text))
            elif output.name == "stdout":
                found.append(output.text)
    return found


@pytest.mark.parametrize("path", list_notebooks(), ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_outputs_are_those_that_it_shows(path: Path, tmp_path: Path) -> None:
    create_store(tmp_path / "mlflow.db")
    kept = nbformat.read(path, as_version=4)
    assert list_outputs(execute(path, str(tmp_path))) == list_outputs(kept)


@pytest.mark.parametrize("path", list_notebooks(), ids=lambda path: path.stem)
def test_a_notebook_is_small_and_shows_nothing_of_a_machine(path: Path) -> None:
    assert path.stat().st_size < 200_000
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert MACHINE.search(str(cell)) is None
    page = render(path)
    assert page.startswith("# ")
    for cell in notebook.cells:
        assert cell.source in page


START = """
import fednar_ray as fr
from fednar_ray.execution.capacity import ActorPlan
from fednar_ray.execution.shared_session import open_session
with open_session(None) as session:
    plan = ActorPlan(count=1, cpus=0.5, gpus=0)
    session.give_back(plan, session.lease(plan))
import ray
assert ray.is_initialized()
"""


@pytest.mark.usefixtures("own_ray")
def test_a_kernel_that_restarts_leaves_no_ray_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path))
    try:
        client = manager.blocking_client()
        client.start_channels()
        client.wait_for_ready(timeout=PATIENCE_SECONDS)
        reply = client.execute_interactive(START, timeout=PATIENCE_SECONDS)
        assert reply["content"]["status"] == "ok", reply["content"]
        processes = psutil.Process(manager.provisioner.process.pid).children(recursive=True)
        assert any("raylet" in process.name() for process in processes)
        client.stop_channels()
        manager.restart_kernel()
        end = time.monotonic() + PATIENCE_SECONDS
        while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            assert time.monotonic() < end, [process.name() for process in processes if process.is_running()]
            time.sleep(0.2)
    finally:
        manager.shutdown_kernel(now=True)
