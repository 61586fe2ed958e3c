"""``fednar runs`` and ``fednar sync``: list the runs in ./runs, and send MLflow what it missed of them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from fednar_ray.cli.options import as_json
from fednar_ray.cli.output import build_console, quiet_libraries
from fednar_ray.core.errors import BadInput, TrackingUnavailable
from fednar_ray.core.metric_names import format_metric_value
from fednar_ray.core.stages import announce

if TYPE_CHECKING:
    from fednar_ray.experiments.comparison.record import ComparisonRecord
    from fednar_ray.tracking.run_lookup import RunSummary


@click.command()
@as_json
def runs(as_json: bool) -> None:
    """List the runs in ./runs, those of a comparison below it. Shows the round at which each can be resumed."""
    announce("reading runs and searches")
    from fednar_ray.experiments.comparison.record import list_comparisons
    from fednar_ray.tracking.run_lookup import list_runs, summarize

    rows = [summarize(kept) for kept in list_runs()]
    comparisons = {record.name: record for record in list_comparisons()} if rows else {}
    owners = {run.directory: name for name, record in comparisons.items() for run in record.runs}
    if as_json:
        click.echo(json.dumps([{**asdict(row), "comparison": owners.get(row.run)} for row in rows]))
    elif rows:
        _print_runs(rows, comparisons, owners)
    else:
        click.echo("no runs here: fednar keeps runs in ./runs")


def _print_runs(
    rows: list["RunSummary"], comparisons: Mapping[str, "ComparisonRecord"], owners: Mapping[str | None, str]
) -> None:
    """Prints one line per run. ``owners`` has the comparison of each run that belongs to one."""
    from rich.table import Table

    table = Table()
    for name in ("run", "rounds", "primary metric", "trained with", "state"):
        table.add_column(name, justify="right" if name == "rounds" else "left", no_wrap=name == "run")
    for row in _group(rows, owners):
        value, name = _describe_value(row), f"  {row.run}" if row.run in owners else row.run
        if row.run in comparisons:
            table.add_row(name, "–", value, "–", comparisons[row.run].state)
        else:
            table.add_row(name, f"{row.rounds}/{row.of}", value, _describe_settings(row), _describe_state(row))
    console = build_console(stderr=False)
    console.print(table)
    if any(not row.finished and row.run not in comparisons and row.run not in owners for row in rows):
        console.print("resume one with: fednar run --resume RUN", soft_wrap=True)
    if any(not record.finished for record in comparisons.values()):
        console.print("resume a comparison with: fednar compare --resume COMPARISON", soft_wrap=True)


def _group(rows: list["RunSummary"], owners: Mapping[str | None, str]) -> list["RunSummary"]:
    """Returns the rows with the runs of each comparison below it, in the order in which they were trained."""
    position = {row.run: i for i, row in enumerate(rows)}  # newest first
    order = {run: i for i, run in enumerate(owners)}

    def rank(row: "RunSummary") -> tuple[int, int]:
        owner = owners.get(row.run)
        return (position[row.run], -1) if owner not in position else (position[owner], order[row.run])

    return sorted(rows, key=rank)


def _describe_settings(row: "RunSummary") -> str:
    """Describes what tells the runs of an experiment apart. A regularizer that does not clip has no A."""
    parts = [row.regularizer]
    if row.regularizer != "none":
        parts.append(f"λ={row.weight_decay:g}")
    if row.regularizer in ("fednar", "decoupled"):
        parts.append(f"A={row.clip_bound:g}")
    return " ".join([*parts, f"seed={row.seed}"])


def _describe_value(row: "RunSummary") -> str:
    if row.test_metric is None or row.test_value is None:
        return "–"
    name = row.test_metric.removeprefix("test_")
    return f"test {name.replace('_', ' ')} {format_metric_value(name, row.test_value)}"


def _describe_state(row: "RunSummary") -> str:
    if row.finished:
        return "finished"
    return "no checkpoint" if row.resumes_from_round is None else f"resumes from round {row.resumes_from_round}"


@click.command()
@click.argument("names", nargs=-1, metavar="[RUN …]")
@as_json
@click.option("--uri", help="The tracking store. Default: the one that the run was recorded in.")
def sync(names: tuple[str, ...], as_json: bool, uri: str | None) -> None:
    """Send MLflow what it missed. Without RUN, do so for all runs in ./runs.

    A run may name a tracking store that your settings do not name, and that none of your own runs was recorded in. Such
    a run is sent there only if --uri confirms the address.
    """
    announce("looking for what MLflow missed")
    quiet_libraries()
    from fednar_ray.tracking.run_lookup import find_run, list_runs
    from fednar_ray.tracking.sync import SyncReport
    from fednar_ray.tracking.sync import sync as send_missing

    reports, problems = [], []
    for kept in [find_run(name) for name in names] or list_runs():
        try:
            report = send_missing(kept.directory, uri)
        except TrackingUnavailable as error:
            report = SyncReport(directory=kept.directory, problem=str(error))
            problems.append(f"{kept.name}: {error}")
        else:
            if report.problem is not None and names:
                problems.append(f"{kept.name}: {report.problem}")
        reports.append({"run": kept.name, **asdict(report)})
        if not as_json:
            click.echo(f"{kept.name}: {report}")
    if as_json:
        click.echo(json.dumps(reports, default=str))
    if problems:
        raise BadInput("; ".join(problems))
