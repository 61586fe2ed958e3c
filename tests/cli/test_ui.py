"""``fednar ui`` serves until it is ended, and reports a port that is in use."""

import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.support.commands import FEDNAR, build_environment, run_fednar
from tests.support.servers import PATIENCE_SECONDS, wait_for

pytestmark = pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("case", ["serves", "taken"])
def test_ui_serves_or_reports_a_port_in_use(case: str, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        if case == "taken":
            other.listen()
            done = run_fednar("ui", "--port", str(port), cwd=tmp_path)
            assert (done.returncode, done.stdout) == (2, "")
            assert f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port" in done.stderr
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
