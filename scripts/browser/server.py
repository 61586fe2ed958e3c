"""Runs ``fednar ui`` for a browser."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FEDNAR = ROOT / ".venv" / "bin" / "fednar"
PATIENCE_SECONDS = 120.0


@contextmanager
def serve(store: Path) -> Iterator[str]:
    """Runs ``fednar ui`` on a store until the block ends, and gives its address."""
    if not store.exists():
        sys.exit(f"{store} does not exist; --directory names the directory in which `fednar tune` ran")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [FEDNAR, "ui", "--uri", f"sqlite:///{store}", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        # its own session, so that its workers end with it
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            if not wait_for_answer(server, f"{address}/health"):
                log.seek(0)
                sys.exit(f"fednar ui does not answer on {address}:\n{log.read().decode()}")
            yield address
        finally:
            end_server(server)


def wait_for_answer(server: subprocess.Popen[bytes], url: str) -> bool:
    """Waits for the first answer. Returns False if the server ends or takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=PATIENCE_SECONDS).close()  # noqa: S310 - our own server
        except OSError:
            time.sleep(0.2)
        else:
            return True
    return False


def end_server(server: subprocess.Popen[bytes]) -> None:
    """Ends a server and its workers."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, how)
            server.wait(20)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return
