"""Shows finished rounds on a terminal, or as plain lines in a pipe."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click

from fednar_ray.core.metric_names import format_metric_value
from fednar_ray.core.private_metrics import format_epsilon
from fednar_ray.core.stages import open_lines

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 80
PLAIN_LINES = 10  # of progress, if the output is not a terminal


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


@contextmanager
def show_progress(console: "Console", rounds: int, every: int | None = None) -> Iterator[ShowRound]:
    """Yields a function that shows finished rounds: as a bar on a terminal, otherwise as plain lines.

    There is at least one plain line per minute, also while a round takes longer.

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
    with open_lines(write_stage, repeat=True) as lines:

        def show_line(done: int, label: str, metrics: Mapping[str, float], primary: str) -> None:
            loss = format_epsilon(metrics) or (
                f"training loss {metrics['train_loss']:.3f}" if "train_loss" in metrics else "no client took part"
            )
            parts = (f"round {done}/{rounds}", format_test_metric(metrics, primary), loss, label)
            line, due = "  ".join(part for part in parts if part), done % interval == 0 or done == rounds
            lines.show(line, lambda text: click.echo(text, err=console.stderr), now=due)

        yield show_line


def write_stage(line: str) -> None:
    """Writes the line of a stage to the standard error, so that a program's own output stays as it is."""
    click.secho(line, err=True, dim=True)


@contextmanager
def _show_bar(console: "Console", rounds: int) -> Iterator[ShowRound]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=rounds)
        last = ""

        def advance(done: int, label: str, metrics: Mapping[str, float], primary: str) -> None:
            nonlocal last
            last = format_test_metric(metrics, primary) or last
            parts = (label, last, format_epsilon(metrics))
            bar.update(task, completed=done, description=" ".join(part for part in parts if part) or "rounds")

        yield advance


def format_test_metric(metrics: Mapping[str, float], primary: str) -> str:
    """Formats the primary metric on the test set; empty if the round was not evaluated.

    A test set with one label has no AUC. Then it is the accuracy.
    """
    for name in (primary, "accuracy"):
        if (value := metrics.get(f"test_{name}")) is not None:
            return f"test {name.replace('_', ' ')} {format_metric_value(name, value)}"
    return ""
