"""Prints the progress and the results of commands."""

import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import click

from fednar_ray.core.metric_names import format_metric_value

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 150
PLAIN_LINES = 10  # of progress, if the output is not a terminal

Step = TypeVar("Step")
Value = TypeVar("Value")


class ShowRound(Protocol):
    """Shows a finished round."""

    def __call__(self, done: int, label: str, metrics: Mapping[str, float], primary: str) -> None:
        """Shows that ``done`` rounds are trained.

        Args:
            done: The number of rounds.
            label: The name of the run.
            metrics: The metrics of the last round.
            primary: The metric that counts, without its split.
        """


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


def announce_start(console: "Console") -> None:
    """Says on a terminal what takes the first seconds, before anything is imported that takes long."""
    if console.is_terminal:
        console.print("loading the data, then starting Ray …", style="dim")


@contextmanager
def show_progress(console: "Console", rounds: int, every: int | None = None) -> Iterator[ShowRound]:
    """Yields a function that shows finished rounds: as a bar on a terminal, otherwise as plain lines.

    Args:
        console: Where to show them.
        rounds: Number of rounds in all.
        every: Number of rounds from one plain line to the next; None for ten lines in all.
    """
    if console.is_terminal:
        with _show_bar(console, rounds) as show:
            yield show
        return
    interval = every or max(1, rounds // PLAIN_LINES)

    def show_line(done: int, label: str, metrics: Mapping[str, float], primary: str) -> None:
        if done % interval == 0 or done == rounds:
            loss = f"training loss {metrics['train_loss']:.3f}" if "train_loss" in metrics else "no client took part"
            parts = (f"round {done}/{rounds}", _format_test_metric(metrics, primary), loss, label)
            click.echo("  ".join(part for part in parts if part), err=console.stderr)

    yield show_line


@contextmanager
def _show_bar(console: "Console", rounds: int) -> Iterator[ShowRound]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=rounds)
        last = ""

        def advance(done: int, label: str, metrics: Mapping[str, float], primary: str) -> None:
            nonlocal last
            last = _format_test_metric(metrics, primary) or last
            bar.update(task, completed=done, description=f"{label} {last}".strip() or "training")

        yield advance


def _format_test_metric(metrics: Mapping[str, float], primary: str) -> str:
    """Formats the primary metric on the test set; empty if the round was not evaluated.

    A test set with one label has no AUC. Then it is the accuracy.
    """
    for name in (primary, "accuracy"):
        if (value := metrics.get(f"test_{name}")) is not None:
            return f"test {name.replace('_', ' ')} {format_metric_value(name, value)}"
    return ""


def print_place(console: "Console", directory: Path, tracking_uri: str) -> None:
    """Prints where the files are, and how to browse the results in MLflow."""
    console.print(f"files: {directory}", soft_wrap=True)
    console.print(f"browse: fednar ui --uri {shlex.quote(tracking_uri)}", soft_wrap=True)
