"""Prints the progress and the results of commands."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fednar_ray.report.progress import PIPE_COLUMNS

if TYPE_CHECKING:
    from rich.console import Console

START = "reading the settings"
"""The first stage of commands that train; it is announced before anything is imported that takes long."""

IMPORTS = "loading PyTorch and Ray"
"""The stage after ``START``, in which PyTorch, Ray and MLflow are imported."""

STARTS_EARLY = "starts early"
"""The object of click's context in a process of the ``fednar`` command: Ray may start while PyTorch is imported."""


def build_console(*, stderr: bool) -> "Console":
    """Builds the console for progress and tables; ``stderr`` leaves the standard output to JSON."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else PIPE_COLUMNS, highlight=False)


def quiet_libraries() -> None:
    """Silences what MLflow and Alembic log about themselves, except warnings."""
    from fednar_ray.tracking.quiet import quiet_libraries

    quiet_libraries()


def print_place(console: "Console", directory: Path) -> None:
    """Prints where the files of a run or a comparison are, and how to open it in MLflow."""
    console.print(f"files: {directory}", soft_wrap=True)
    console.print(f"browse: fednar ui {shlex.quote(directory.name)}", soft_wrap=True)
