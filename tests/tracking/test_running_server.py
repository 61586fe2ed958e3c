"""What listens at an address is named. tests/cli/test_ui.py has MLflow's own servers, of the same store and another."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from fednar_ray.tracking.running_server import find_listener
from fednar_ray.tracking.store import Store
from tests.support.stores import create_store


class Answers(BaseHTTPRequestHandler):
    """Answers every path with the same text, or with 404 if there is none, as a server called ``server_version``."""

    text, server_version, sys_version = b"", "Elsewhere/1.0", ""

    def do_GET(self) -> None:
        self.send_response(200 if self.text else 404)
        self.send_header("Content-Length", str(len(self.text)))
        self.end_headers()
        self.wfile.write(self.text)

    def log_message(self, *_: object) -> None:
        """Keeps the server from printing a line per request."""


@contextmanager
def serve(text: bytes, name: str) -> Iterator[str]:
    handler = type("Handler", (Answers,), {"text": text, "server_version": name})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("text", "name", "what"),
    [
        (b"<html>", "AirTunes/7", "another web server (AirTunes/7)"),
        (b"", "AirTunes/7", "another web server (AirTunes/7)"),
        (b"<html>", "", "another web server"),
        (b"3.17.2", "", "MLflow 3.17.2 with another store"),  # it says no experiments
    ],
)
def test_a_web_server_is_named(text: bytes, name: str, what: str, tmp_path: Path) -> None:
    with serve(text, name) as address:
        found = find_listener(address, Store(create_store(tmp_path / "mlflow.db")))
    assert (found.what, found.shows_store) == (what, False)


def test_what_speaks_another_protocol_is_no_web_server(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
        found = find_listener(f"http://127.0.0.1:{other.getsockname()[1]}", Store(create_store(tmp_path / "mlflow.db")))
    assert (found.what, found.shows_store) == ("a program that is no web server", False)
