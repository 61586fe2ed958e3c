"""Real servers for tests: MLflow's, and PostgreSQL behind it; on loopback only."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import socket
from typing import Any

PATIENCE_SECONDS = 300  # for what must happen, on a machine that does much else


def awaited(condition: Callable[[], Any], what: str = "the condition", *, pause: float = 0.02) -> Any:
    """The condition's first true value; ``pause``: seconds from one look to the next."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(pause)
    return value


def free_port(host: str = "127.0.0.1") -> int:
    with socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Server:
    """A real ``mlflow server`` on a database, which can be killed, hung, and started again on its port."""

    def __init__(self, database_uri: str, folder: Path, *options: str, **environment: str) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._database_uri, self._folder = database_uri, folder
        self._options, self._environment = options, environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        stores = ["--backend-store-uri", self._database_uri, "--artifacts-destination", "artifacts"]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                [*command, *stores, "--workers", "1", *self._options],
                cwd=self._folder,
                env={**os.environ, **settings, **self._environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        awaited(self._healthy, "an MLflow server's health")

    def _healthy(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "server.log").read_text()
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:  # noqa: S310
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def send(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)


def postgresql_programs() -> Path | None:
    """Where ``initdb`` and ``postgres`` are: on the path, or where Debian puts them."""
    found = shutil.which("initdb")
    places = [Path(found)] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return places[-1].parent if places else None


@contextmanager
def postgresql(programs: Path) -> Iterator[str]:
    """A PostgreSQL of our own, which lets in whoever comes from this machine; gives the URI of an empty database."""
    user = {"user": "postgres"} if os.geteuid() == 0 else {}  # it refuses to be run by root
    folder, port = Path(tempfile.mkdtemp(prefix="postgresql-")), free_port()
    if user:
        shutil.chown(folder, "postgres")
    data, settings = folder / "data", f"-c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    try:
        initialise = [programs / "initdb", "-D", data, "-A", "trust", "-U", "tests", "--no-sync"]
        subprocess.run(initialise, check=True, capture_output=True, cwd=folder, **user)
        serve = [programs / "postgres", "-D", data, "-p", str(port), *settings.split()]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(serve, stdout=log, stderr=log, cwd=folder, **user)
        try:
            awaited(lambda: "ready to accept connections" in (folder / "log").read_text(), "PostgreSQL's start")
            yield f"postgresql+psycopg2://tests@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGQUIT)  # at once, whoever is connected
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
