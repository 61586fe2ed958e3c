"""Servers for tests, on loopback only: PostgreSQL, and one that forwards or answers nonsense."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import socket
from threading import Thread
from typing import Any

PATIENCE_SECONDS = 300  # limit for what must happen, generous because the machine may be busy


def wait_for(condition: Callable[[], Any], what: str = "the condition", *, pause: float = 0.02) -> Any:
    """Returns the condition's first true value. It is checked every ``pause`` seconds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(pause)
    return value


def find_free_port(host: str = "127.0.0.1") -> int:
    with socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Proxy:
    """An HTTP server on loopback that answers 200 with ``nonsense``, or without it forwards to a real server.

    ``only`` restricts nonsense to paths that contain it, and ``at`` to one call of those, counted from 0. ``calls``
    holds the path of each call.
    """

    def __init__(
        self, behind: str | None = None, nonsense: bytes | None = None, only: str = "", at: int | None = None
    ) -> None:
        self.behind, self.nonsense, self.only, self.at = behind, nonsense, only, at
        self.status = 200  # the status of a nonsense answer
        self.calls: list[str] = []
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever)

    def count_matching(self) -> int:
        """Returns the number of calls whose path contains ``only``."""
        return sum(self.only in path for path in self.calls)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy

    def _answer(self) -> None:
        proxy = self.proxy
        proxy.calls.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if proxy.nonsense is not None and proxy.only in self.path and proxy.at in (None, proxy.count_matching() - 1):
            status, answer = proxy.status, proxy.nonsense
        else:
            status, answer = self._forward(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _forward(self, body: bytes) -> tuple[int, bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() in ("content-type", "accept")}
        request = urllib.request.Request(  # noqa: S310 - http only
            f"{self.proxy.behind}{self.path}", data=body or None, headers=headers, method=self.command
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def find_postgresql() -> Path | None:
    """Returns the directory with ``initdb`` and ``postgres``: on the path, or where Debian installs them."""
    found = shutil.which("initdb")
    places = [Path(found)] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return places[-1].parent if places else None


@contextmanager
def run_postgresql(programs: Path) -> Iterator[str]:
    """Runs a PostgreSQL server that accepts every local user; yields the URI of an empty database."""
    user = {"user": "postgres"} if os.geteuid() == 0 else {}  # PostgreSQL refuses to run as root
    folder, port = Path(tempfile.mkdtemp(prefix="postgresql-")), find_free_port()
    if user:
        shutil.chown(folder, "postgres")
    data, settings = folder / "data", f"-c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    try:
        initialize = [programs / "initdb", "-D", data, "-A", "trust", "-U", "tests", "--no-sync"]
        subprocess.run(initialize, check=True, capture_output=True, cwd=folder, **user)
        serve = [programs / "postgres", "-D", data, "-p", str(port), *settings.split()]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(serve, stdout=log, stderr=log, cwd=folder, **user)
        try:
            wait_for(lambda: "ready to accept connections" in (folder / "log").read_text(), "PostgreSQL's start")
            yield f"postgresql+psycopg2://tests@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGQUIT)  # immediate shutdown, even with open connections
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
