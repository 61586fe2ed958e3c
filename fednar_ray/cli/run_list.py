"""The table of ``fednar runs``: runs, comparisons and searches, with what came out of each."""

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from fednar_ray.core.counting import format_count
from fednar_ray.core.metric_names import format_metric_value
from fednar_ray.report.tables import Column, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from fednar_ray.experiments.comparison.summary import ComparisonSummary
    from fednar_ray.tracking.run_summary import RunSummary
    from fednar_ray.tuning.search_summary import SearchSummary

KINDS = {"run": "runs", "comparison": "comparisons", "search": "searches"}
COMMANDS = {"run": "run", "comparison": "compare", "search": "tune"}  # that resume an entry of a kind
COLUMNS = (
    Column("name"),
    Column("started"),
    Column("done", right=True),
    Column("result", least=10),
    Column("status", least=12),
)
UNFINISHED = ("interrupted", "failed", "unfinished")  # what can be resumed
LABEL_WIDTH = 32  # of the lines below a name, at least
MISSING = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One entry of the list.

    Attributes:
        kind: One of ``KINDS``.
        label: What it does, in short.
        started: When, in ISO format; None if that is unknown.
        done: How many rounds, runs or trials are done, and of how many.
        why: Why it ended early.
        resumable: Whether it can be resumed.
        of: The comparison or search that it belongs to.
    """

    kind: str
    name: str
    label: str
    started: str | None
    done: str
    result: str
    status: str
    why: str | None = None
    resumable: bool = False
    of: str | None = None

    def build_cells(self, width: int) -> dict[str, str]:
        """Returns the cells of the table; ``width`` is that of the labels."""
        indent = "  " if self.of is not None else ""
        label = [f"{indent}  {line}" for line in textwrap.wrap(self.label, width - len(indent) - 2)]
        started = MISSING if self.started is None else f"{datetime.fromisoformat(self.started):%m-%d %H:%M}"
        name = "\n".join([f"{indent}{self.name}", *label])
        return {"name": name, "started": started, "done": self.done, "result": self.result, "status": self.status}


def describe_run(row: "RunSummary", owner: str | None) -> Line:
    """Describes a run; ``owner`` is the comparison or search that it belongs to."""
    status = row.status
    if status in UNFINISHED:
        checkpoint = (
            "no checkpoint" if row.resumes_from_round is None else f"resumes from round {row.resumes_from_round}"
        )
        status = f"{status}, {checkpoint}"
    result = MISSING
    if row.test_metric is not None and row.test_value is not None:
        name = row.test_metric.removeprefix("test_")
        result = f"test {name.replace('_', ' ')} {format_metric_value(name, row.test_value)}"
    return Line(
        kind="run",
        name=row.run,
        label=row.label,
        started=row.started,
        done=f"{row.rounds}/{row.of}",
        result=result,
        status=status,
        why=row.why,
        resumable=row.status in UNFINISHED and row.resumes_from_round is not None and owner is None,
        of=owner,
    )


def describe_comparison(found: "ComparisonSummary") -> Line:
    """Builds the line of a comparison, which counts its runs instead of rounds."""
    return Line(
        kind="comparison",
        name=found.name,
        label=found.label,
        started=found.started,
        done=f"{found.runs}/{found.of}",
        result=found.result or MISSING,
        status=found.status,
        resumable=found.status in UNFINISHED,
    )


def describe_search(found: "SearchSummary") -> Line:
    """Builds the line of a search, which counts its trials instead of rounds."""
    from fednar_ray.report.axes import shorten_key

    result = MISSING
    if found.best_value is not None:
        value = format_metric_value(found.metric.removeprefix("validation_"), found.best_value)
        result = f"{found.metric.replace('_', ' ')} {value}"
    return Line(
        kind="search",
        name=found.name,
        label=f"{' '.join(map(shorten_key, found.keys))}; {format_count(found.trials, 'trial')}",
        started=found.started,
        done=str(found.trials),
        result=result,
        status=found.status,
        why=found.why,
        resumable=found.status in UNFINISHED,
    )


def _group(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Returns the lines of each kind, newest first, with those that belong to a comparison or search below it."""
    grouped: dict[str, list[Line]] = {kind: [] for kind in KINDS}
    names = {line.name for line in lines}
    for line in lines:
        if line.of not in names:
            below = [each for each in lines if each.of == line.name]
            grouped[line.kind] += [line, *below]
    return {kind: found for kind, found in grouped.items() if found}


def print_lines(console: "Console", entries: Sequence[Line]) -> None:
    """Prints a table per kind, and below it why something ended early, and how to resume what can be resumed."""
    for index, (kind, lines) in enumerate(_group(entries).items()):
        if index:
            console.print()
        width = max(LABEL_WIDTH, *(len(line.name) for line in lines))
        print_table(console, COLUMNS, [line.build_cells(width) for line in lines], title=KINDS[kind])
        for line in lines:
            if line.why is not None:
                console.print(f"{line.name}, {line.status.partition(',')[0]}: {line.why}", soft_wrap=True, markup=False)
        _print_resume_hint(console, kind, lines)


def _print_resume_hint(console: "Console", kind: str, lines: Sequence[Line]) -> None:
    """Prints how the newest entry of a kind that can be resumed is."""
    for line in lines:
        if line.kind == kind and line.resumable:
            console.print(f"resume it with: fednar {COMMANDS[kind]} --resume {shlex.quote(line.name)}", soft_wrap=True)
            return
