"""A search as a person follows it: a live table on a terminal, plain lines in a pipe, and what it came to."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fednar_ray.tuning.recorder import SearchStatus, Show
from fednar_ray.tuning.search import SearchResult
from fednar_ray.tuning.trial_table import TrialEntry

LISTED_TRIALS = 10


@contextmanager
def shown(console: Console) -> Iterator[Show]:
    """Shows every event of a search."""
    if not console.is_terminal:
        yield lambda standing: _echo(standing, console)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield lambda standing: live.update(_table(standing))


def _echo(standing: SearchStatus, console: Console) -> None:
    entry = standing.ended
    if entry is None:
        return
    value = "" if entry.value is None or entry.failure is not None else f" {entry.value:.4g}"
    why = f" ({entry.failure})" if entry.failure is not None else ""
    line = f"{entry.name} {entry.status} after {entry.rounds} rounds:{value}{why}  {_values(entry)}"
    click.echo(f"{line}  [{_counts(standing)}; {_best(standing)}]", err=console.stderr)


def _counts(standing: SearchStatus) -> str:
    done = standing.finished + standing.stopped + standing.failed
    parts = [f"{done}/{standing.trials}"]
    parts += [f"{standing.stopped} stopped early"] if standing.stopped else []
    parts += [f"{standing.failed} failed"] if standing.failed else []
    return ", ".join(parts)


def _best(standing: SearchStatus) -> str:
    best = standing.best
    return "no best yet" if best is None else f"best {best.value:.4g} by {best.name}"


def _values(entry: TrialEntry) -> str:
    return " ".join(f"{key}={_short(value)}" for key, value in entry.values.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def seconds_left(standing: SearchStatus) -> float | None:
    """By the rounds of the trials that have ended; None while there are none."""
    done = standing.finished + standing.stopped + standing.failed
    return standing.seconds / done * (standing.trials - done) if done else None


def _table(standing: SearchStatus) -> Table:
    left = seconds_left(standing)
    time = f"{standing.seconds:.0f} s" + ("" if left is None else f", about {left:.0f} s left")
    table = Table(title=f"{_counts(standing)}; {_best(standing)}; {time}")
    for column in ("trial", "rounds", "last value", "values"):
        table.add_column(column, justify="left" if column in ("trial", "values") else "right")
    best = [] if standing.best is None else [standing.best]
    for entry in [*best, *standing.running][:LISTED_TRIALS]:
        value = "" if entry.value is None else f"{entry.value:.4g}"
        label = f"best: {entry.name}" if entry is standing.best else entry.name
        table.add_row(label, f"{entry.rounds}/{standing.rounds}", value, _values(entry))
    return table


def print_result(console: Console, result: SearchResult) -> None:
    """What a search came to."""
    table = Table(title=f"{result.name}: {len(result.trials)} trials, best first")
    for column in ("trial", "status", "rounds", "value", "values"):
        table.add_column(column, justify="right" if column in ("rounds", "value") else "left")
    for entry in result.trials[:LISTED_TRIALS]:
        value = "" if entry.value is None else f"{entry.value:.4g}"
        table.add_row(entry.name, entry.status, str(entry.rounds), value, _values(entry))
    console.print(table)
    if len(result.trials) > LISTED_TRIALS:
        console.print(f"… and {len(result.trials) - LISTED_TRIALS} more")
    if result.ended_early is not None:
        console.print(f"ended early: {result.ended_early}")
    console.print(f"trained {result.rounds_trained} rounds; early stopping saved {result.rounds_saved}")
    values = f"best {result.best_test:.4g}, baseline {result.baseline_test:.4g}"
    console.print(f"{result.test_metric.replace('_', ' ')}, measured once: {values}")
    console.print(f"best: fednar run {result.best_file}", soft_wrap=True)
    if result.report is not None:
        console.print(f"report: {result.report.page}", soft_wrap=True)
    console.print(f"files: {result.directory}", soft_wrap=True)
    console.print(f"browse: fednar ui --uri {shlex.quote(result.tracking_uri)}", soft_wrap=True)


def summary(result: SearchResult) -> dict[str, Any]:
    """For programs."""
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
