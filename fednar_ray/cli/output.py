"""Prints the progress and the results of commands."""

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fednar_ray.report.progress import PIPE_COLUMNS

if TYPE_CHECKING:
    from rich.console import Console


def build_console(*, stderr: bool) -> "Console":
    """Builds the console for progress and tables; ``stderr`` leaves the standard output to JSON."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else PIPE_COLUMNS, highlight=False)


def quiet_libraries() -> None:
    """Silences what MLflow and Alembic log about themselves, except warnings."""
    import fednar_ray.tracking.mlflow  # noqa: F401 - MLflow configures its logger when it is imported

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def print_place(console: "Console", directory: Path, tracking_uri: str) -> None:
    """Prints where the files are, and how to browse the results in MLflow."""
    console.print(f"files: {directory}", soft_wrap=True)
    console.print(f"browse: fednar ui --uri {shlex.quote(tracking_uri)}", soft_wrap=True)
