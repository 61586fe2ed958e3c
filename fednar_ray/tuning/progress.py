"""Shows a search while it runs, as a live table on a terminal or as plain lines in a pipe, and its result."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fednar_ray.core.counting import format_count
from fednar_ray.core.stages import open_lines
from fednar_ray.report.axes import format_searched_value, format_values, shorten_key
from fednar_ray.report.progress import write_stage
from fednar_ray.report.search_answer import describe_clipping
from fednar_ray.report.tables import Column, print_table
from fednar_ray.tuning.search_result import SearchResult
from fednar_ray.tuning.search_status import SearchStatus, Show

LISTED_TRIALS = 10


@contextmanager
def show_search(console: Console) -> Iterator[Show]:
    """Yields a function that shows the state of a search."""
    if not console.is_terminal:
        with open_lines(write_stage, repeat=True) as lines:
            yield lambda status: lines.show(
                _describe(status), lambda text: click.echo(text, err=console.stderr), now=status.ended is not None
            )
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield lambda status: live.update(_build_live_table(status))


def _describe(status: SearchStatus) -> str:
    """Describes the trial that has just ended, or else those that are being trained."""
    entry, state = status.ended, f"[{format_counts(status)}; {format_best(status)}]"
    if entry is None:
        running = ", ".join(f"{each.name} {each.rounds}/{status.rounds}" for each in status.running[:LISTED_TRIALS])
        return f"training {running or 'no trial yet'}  {state}"
    value = "" if entry.value is None or entry.failure is not None else f" {entry.value:.4g}"
    why = f" ({entry.failure})" if entry.failure is not None else ""
    ended = f"{entry.name} {entry.status} after {format_count(entry.rounds, 'round')}:{value}{why}"
    return f"{ended}  {format_values(entry.values)}  {state}"


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
        table.add_row(label, f"{entry.rounds}/{status.rounds}", value, format_values(entry.values))
    return table


def print_result(console: Console, result: SearchResult) -> None:
    """Prints the best trials, and where the files of the search are."""
    _print_trials(console, result)
    if len(result.trials) > LISTED_TRIALS:
        console.print(f"… and {len(result.trials) - LISTED_TRIALS} more")
    if result.ended_early is not None:
        console.print(f"ended early: {result.ended_early}")
    console.print(f"trained {format_count(result.rounds_trained, 'round')}; early stopping saved {result.rounds_saved}")
    values = f"best {result.best_test:.4g}, baseline {result.baseline_test:.4g}"
    console.print(f"{result.test_metric.replace('_', ' ')}, measured once: {values}")
    clipping = describe_clipping(result.clipped)
    if clipping is not None:
        console.print(clipping, soft_wrap=True)
    if result.privacy is not None:
        console.print(result.privacy, soft_wrap=True)
    console.print(f"best: fednar run {result.best_file}", soft_wrap=True)
    if result.report is not None:
        console.print(f"report: {result.report.page}", soft_wrap=True)
    console.print(f"files: {result.directory}", soft_wrap=True)
    console.print(f"browse: fednar ui {shlex.quote(result.name)}", soft_wrap=True)


def _print_trials(console: Console, result: SearchResult) -> None:
    """Prints the table of the best trials. Searched keys have the paper's symbols; files have their full names."""
    shown = result.trials[:LISTED_TRIALS]
    symbols = _name_columns([key for entry in shown for key in entry.values])
    columns = [Column("trial"), Column("status"), Column("rounds", right=True), Column("value", right=True)]
    columns += [Column(symbol, right=True) for symbol in symbols.values()]
    rows = [
        {
            "trial": entry.name,
            "status": entry.status,
            "rounds": str(entry.rounds),
            "value": "" if entry.value is None else f"{entry.value:.4g}",
            **dict.fromkeys(symbols.values(), ""),
            **{symbols[key]: format_searched_value(value) for key, value in entry.values.items()},
        }
        for entry in shown
    ]
    what = f"{result.metric.replace('_', ' ')}, best first"
    print_table(console, columns, rows, title=f"{result.name}: {format_count(len(result.trials), 'trial')}, {what}")


def _name_columns(keys: Sequence[str]) -> dict[str, str]:
    """Returns a column's name for each key: its symbol, or the whole key if another one has the same."""
    shorts = {key: shorten_key(key) for key in keys}
    taken = [*shorts.values(), "trial", "status", "rounds", "value"]
    return {key: short if taken.count(short) == 1 else key for key, short in shorts.items()}


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
        "clipped": result.clipped,
        "privacy": result.privacy,
        "rounds_trained": result.rounds_trained,
        "rounds_saved": result.rounds_saved,
        "ended_early": result.ended_early,
        "best_file": str(result.best_file),
        "report": None if result.report is None else str(result.report.page),
        "directory": str(result.directory),
        "run_id": result.run_id,
        "tracking_uri": result.tracking_uri,
    }
