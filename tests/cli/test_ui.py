"""``fednar ui`` serves until it is ended, opens a server of the same store, and says what else uses its port."""

import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from threading import Thread

import psutil
import pytest

from fednar_ray.cli.ui import START
from tests.support.commands import FEDNAR, build_environment, run_fednar
from tests.support.servers import PATIENCE_SECONDS, wait_for
from tests.support.stores import create_store

pytestmark = pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)


def check_second_calls(port: int, folder: Path) -> None:
    """Checks that a second call opens the server that runs already, unless it is that of another store."""
    again = run_fednar("ui", "--port", str(port), cwd=folder)
    *shown, served = again.stdout.splitlines()
    assert (again.returncode, shown) == (0, [f"MLflow: http://127.0.0.1:{port}{START}"]), again.stderr
    assert served.startswith("served by MLflow ")
    assert served.endswith("with this store, which already runs there; end it where it was started")
    other = run_fednar("ui", "--port", str(port), "--uri", create_store(folder / "other.db"), cwd=folder)
    assert (other.returncode, other.stdout) == (2, "")
    assert f"127.0.0.1:{port} is in use by MLflow " in other.stderr
    assert "with another store; choose another port: --port " in other.stderr


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("case", ["serves", "taken"])
def test_ui_serves_or_reports_a_port_in_use(case: str, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        if case == "taken":
            other.listen()
            Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
            done = run_fednar("ui", "--port", str(port), cwd=tmp_path)
            assert (done.returncode, done.stdout) == (2, "")
            problem = f"127.0.0.1:{port} is in use by a program that is no web server; choose another port: --port "
            assert problem in done.stderr
            assert int(done.stderr.rpartition("--port ")[2].split()[0]) > port
            return
    log = tmp_path / "log"
    with (
        log.open("w") as stream,
        subprocess.Popen(
            [FEDNAR, "ui", "--port", str(port)], cwd=tmp_path, env=build_environment(), stdout=stream, stderr=stream
        ) as process,
    ):

        def healthy() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    return bool(answer.status == 200)
            except urllib.error.URLError:
                return False

        try:
            wait_for(healthy)
            children = psutil.Process(process.pid).children(recursive=True)
            wait_for(lambda: "end it with Ctrl-C" in log.read_text())
            check_second_calls(port, tmp_path)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=PATIENCE_SECONDS) == 0
        finally:
            process.kill()
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
    for child in alive:
        child.kill()
    assert not alive
    address = f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning"
    stages = ["opening the tracking store …", "starting MLflow's server …"]
    assert log.read_text().splitlines() == [*stages, f"MLflow: {address}", "end it with Ctrl-C"]
