"""``fednar ui``: MLflow's own user interface, opened at the page of a run, a comparison, a search or an experiment."""

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

import click

from fednar_ray.cli.completion import complete_any
from fednar_ray.cli.output import quiet_libraries
from fednar_ray.core.errors import BadInput, TrackingUnavailable
from fednar_ray.core.stages import announce, rest

if TYPE_CHECKING:
    from fednar_ray.tracking.running_server import Listener
    from fednar_ray.tracking.store import Store

START = "/#/experiments?workflowType=machine_learning"  # without a name; otherwise MLflow opens its GenAI pages
START_SECONDS, END_SECONDS = 120.0, 10.0
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")
LAST_LINES = 5  # of the log of a server that ended


@click.command()
@click.argument("name", required=False, shell_complete=complete_any)
@click.option("--uri", help="The tracking store. Default: that of NAME, else MLFLOW_TRACKING_URI, else ./mlflow.db.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="The port to listen on.")
@click.option("--browser/--no-browser", default=None, help="Whether to open a browser. Default: if there is a screen.")
def ui(name: str | None, uri: str | None, host: str, port: int, browser: bool | None) -> None:
    """Open MLflow's UI until Ctrl-C.

    NAME is a run, a comparison, a search or an experiment, whose page is opened: of a comparison or a search, the table
    of its runs, best first. If the tracking store is a server, its own UI is opened. So is one that already runs on
    the port with the same store.
    """
    announce("opening the tracking store")
    quiet_libraries()
    from fednar_ray.tracking.pages import find_page
    from fednar_ray.tracking.store import Store
    from fednar_ray.tuning.trial_table import find_tracking_uri

    page = None if name is None else find_page(name, uri, find_tracking_uri(name))
    store = Store(uri) if page is None else page.store
    store.check()
    pages = [("MLflow", START)] if page is None else [(page.what, page.path)]
    if page is not None and page.answer is not None:
        pages.append(("what came out", page.answer))
    if store.uri.startswith("http"):
        _show(store.uri.rstrip("/"), pages, browser)
        return
    address = f"http://{host}:{port}"
    other = _find_other(host, port, store)
    if other is not None:
        _show(address, pages, browser)
        click.echo(f"served by {other.what}, which already runs there; end it where it was started")
        return
    announce("starting MLflow's server")
    with suppress(KeyboardInterrupt), _serve(store.uri, host, port) as server:
        _show(address, pages, browser)
        click.echo("end it with Ctrl-C")
        rest()
        server.wait()
        raise TrackingUnavailable(f"MLflow's server ended with code {server.returncode}")


def _show(address: str, pages: list[tuple[str, str]], browser: bool | None) -> None:
    """Prints the pages, and opens the first one in a browser if there is a screen."""
    for what, path in pages:
        click.echo(f"{what}: {address}{path}")
    sys.stdout.flush()
    screen = sys.platform in ("darwin", "win32") or any(name in os.environ for name in DISPLAYS)
    if screen and sys.stdout.isatty() if browser is None else browser:
        webbrowser.open(address + pages[0][1])


@contextmanager
def _serve(uri: str, host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Runs MLflow's server until the block ends, and yields it once it answers. What it logs is not shown."""
    from fednar_ray.core.store_uris import split_off_folder

    address, folder = split_off_folder(uri)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address, "--workers", "1"]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [*command, "--host", host, "--port", str(port)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal reaches this process alone, which ends all of them
        )
        try:
            _wait_for_answer(server, f"http://{host}:{port}/health", log)
            yield server
        finally:
            _end(server)


def _wait_for_answer(server: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    """Waits for the first answer. Raises TrackingUnavailable if the server ends, or takes too long."""
    from urllib.request import urlopen  # not at the top: it takes a while, and other commands do not need it

    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urlopen(url, timeout=START_SECONDS).close()  # noqa: S310 - our own server
        except OSError:
            time.sleep(0.1)
        else:
            return
    log.seek(0)
    last = log.read().decode(errors="replace").strip().splitlines()[-LAST_LINES:]
    raise TrackingUnavailable("\n".join(["MLflow's server does not start:", *last]))


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends the server with all its processes, which are the group of its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


def _find_other(host: str, port: int, store: "Store") -> "Listener | None":
    """Returns what already listens on the port; None if it is free. Raises BadInput if the port cannot be used."""
    error = _try_port(host, port)
    if error is None:
        return None
    if error.errno != errno.EADDRINUSE:
        raise BadInput(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
    from fednar_ray.tracking.running_server import find_listener

    found = find_listener(f"http://{host}:{port}", store)
    if not found.shows_store:
        free = next((near for near in range(port + 1, min(port + 100, 65536)) if _try_port(host, near) is None), None)
        other = "another --port" if free is None else f"another port: --port {free}"
        raise BadInput(f"{host}:{port} is in use by {found.what}; choose {other}")
    return found


def _try_port(host: str, port: int) -> OSError | None:
    """Returns why a port cannot be listened on; None if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None
