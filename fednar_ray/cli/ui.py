"""``fednar ui``: MLflow's own user interface."""

import os
import socket
import sys

import click

from fednar_ray.cli.output import quiet_libraries
from fednar_ray.core.errors import BadInput


@click.command()
@click.option("--uri", help="The tracking store. Default: MLFLOW_TRACKING_URI, otherwise ./mlflow.db.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="The port to listen on.")
def ui(uri: str | None, host: str, port: int) -> None:
    """Serve MLflow's UI on a tracking store until Ctrl-C."""
    from fednar_ray.core.store_uris import split_off_folder
    from fednar_ray.tracking.mlflow import Store

    quiet_libraries()
    store = Store(uri)
    store.check()
    _check_port(host, port)
    click.echo(f"MLflow's UI on {store.uri}: http://{host}:{port}  (end it with Ctrl-C)")
    sys.stdout.flush()
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    address, folder = split_off_folder(store.uri)
    if folder is not None:
        os.chdir(folder)
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address, "--workers", "1"]
    os.execv(sys.executable, [*server, "--host", host, "--port", str(port)])


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BadInput(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
