"""A real MLflow server for tests, on loopback only."""

import os
import runpy
import signal
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.processes import ForkedProcess
from tests.support.servers import find_free_port, wait_for


class Server:
    """A real ``mlflow server`` on a database, which can be killed, hung, and started again on its port."""

    def __init__(self, database_uri: str, folder: Path, *options: str, **environment: str) -> None:
        self.port = find_free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        stores = ("--backend-store-uri", database_uri, "--artifacts-destination", "artifacts")
        self._words = ("--host", "127.0.0.1", "--port", str(self.port), *stores, "--workers", "1", *options)
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._folder, self._environment = folder, {**settings, **environment}
        self._process: ForkedProcess | None = None

    def start(self) -> None:
        environment = {**os.environ, **self._environment}
        self._process = ForkedProcess(_serve, self._words, cwd=self._folder, env=environment)
        wait_for(self._healthy, "an MLflow server's health")

    def _healthy(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._process.read_output() + self._process.read_errors()
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:  # noqa: S310
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.close()

    def send(self, number: int) -> None:
        """Sends a signal to the server, which is one process."""
        assert self._process is not None
        self._process.send_signal(number)


def _serve(words: tuple[str, ...]) -> None:
    """Runs ``mlflow server``, which becomes the web server that it would start as another process."""
    import mlflow.server
    from mlflow.cli import cli

    def become(command: list[str], extra_env: dict[str, str], **_: Any) -> None:
        os.environ.update(extra_env)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        del sys.modules["mlflow.server"]  # it reads the environment when it is imported
        assert command[1:3] == ["-m", "uvicorn"], command
        sys.argv = command[2:]
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)

    mlflow.server._exec_cmd = become
    cli.main(["server", *words])
