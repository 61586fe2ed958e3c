"""Shows a search while it runs, as a live table on a terminal or as plain lines in a pipe, and its result."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fednar_ray.core.counting import format_count
from fednar_ray.tuning.search_result import SearchResult
from fednar_ray.tuning.search_status import SearchStatus, Show
from fednar_ray.tuning.trial_table import TrialEntry

LISTED_TRIALS = 10


@contextmanager
def show_search(console: Console) -> Iterator[Show]:
    """Yields a function that shows the state of a search."""
    if not console.is_terminal:
        yield lambda status: _print_ended_trial(status, console)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield lambda status: live.update(_build_live_table(status))


def _print_ended_trial(status: SearchStatus, console: Console) -> None:
    entry = status.ended
    if entry is None:
        return
    value = "" if entry.value is None or entry.failure is not None else f" {entry.value:.4g}"
    why = f" ({entry.failure})" if entry.failure is not None else ""
    line = (
        f"{entry.name} {entry.status} after {format_count(entry.rounds, 'round')}:{value}{why}  {_format_values(entry)}"
    )
    click.echo(f"{line}  [{format_counts(status)}; {format_best(status)}]", err=console.stderr)


def format_counts(status: SearchStatus) -> str:
    """Formats how many trials have ended, and how."""
    parts = [f"{status.done}/{status.trials}"]
    parts += [f"{status.stopped} stopped early"] if status.stopped else []
    parts += [f"{status.failed} failed"] if status.failed else []
    return ", ".join(parts)


def format_best(status: SearchStatus) -> str:
    """Formats the best value up to now."""
    best = status.best
    return "no best trial yet" if best is None else f"best {best.value:.4g} by {best.name}"


def _format_values(entry: TrialEntry) -> str:
    return " ".join(f"{key}={_format_value(value)}" for key, value in entry.values.items())


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _build_live_table(status: SearchStatus) -> Table:
    left = status.seconds_left
    time = f"{status.seconds:.0f} s" + ("" if left is None else f", about {left:.0f} s left")
    table = Table(title=f"{format_counts(status)}; {format_best(status)}; {time}")
    for column in ("trial", "rounds", "last value", "values"):
        table.add_column(column, justify="left" if column in ("trial", "values") else "right")
    best = [] if status.best is None else [status.best]
    for entry in [*best, *status.running][:LISTED_TRIALS]:
        value = "" if entry.value is None else f"{entry.value:.4g}"
        label = f"best: {entry.name}" if entry is status.best else entry.name
        table.add_row(label, f"{entry.rounds}/{status.rounds}", value, _format_values(entry))
    return table


def print_result(console: Console, result: SearchResult) -> None:
    """Prints the best trials, and where the files of the search are."""
    table = Table(title=f"{result.name}: {format_count(len(result.trials), 'trial')}, best first")
    for column in ("trial", "status", "rounds", "value", "values"):
        table.add_column(column, justify="right" if column in ("rounds", "value") else "left")
    for entry in result.trials[:LISTED_TRIALS]:
        value = "" if entry.value is None else f"{entry.value:.4g}"
        table.add_row(entry.name, entry.status, str(entry.rounds), value, _format_values(entry))
    console.print(table)
    if len(result.trials) > LISTED_TRIALS:
        console.print(f"… and {len(result.trials) - LISTED_TRIALS} more")
    if result.ended_early is not None:
        console.print(f"ended early: {result.ended_early}")
    console.print(f"trained {format_count(result.rounds_trained, 'round')}; early stopping saved {result.rounds_saved}")
    values = f"best {result.best_test:.4g}, baseline {result.baseline_test:.4g}"
    console.print(f"{result.test_metric.replace('_', ' ')}, measured once: {values}")
    console.print(f"best: fednar run {result.best_file}", soft_wrap=True)
    if result.report is not None:
        console.print(f"report: {result.report.page}", soft_wrap=True)
    console.print(f"files: {result.directory}", soft_wrap=True)
    console.print(f"browse: fednar ui --uri {shlex.quote(result.tracking_uri)}", soft_wrap=True)


def summarize(result: SearchResult) -> dict[str, Any]:
    """Returns the fields of ``fednar tune --json``."""
    best = result.best
    return {
        "name": result.name,
        "trials": len(result.trials),
        "best_trial": best.name,
        "best_value": best.value,
        "best_values": best.values,
        result.test_metric: result.best_test,
        f"baseline_{result.test_metric}": result.baseline_test,
        "rounds_trained": result.rounds_trained,
        "rounds_saved": result.rounds_saved,
        "ended_early": result.ended_early,
        "best_file": str(result.best_file),
        "report": None if result.report is None else str(result.report.page),
        "directory": str(result.directory),
        "run_id": result.run_id,
        "tracking_uri": result.tracking_uri,
    }
