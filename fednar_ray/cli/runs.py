"""``fednar runs`` and ``fednar sync``: list the runs in ./runs, and send MLflow what it missed of them."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from fednar_ray.cli.options import as_json
from fednar_ray.cli.output import build_console, quiet_libraries
from fednar_ray.core.errors import BadInput, TrackingUnavailable
from fednar_ray.core.metric_names import format_metric_value

if TYPE_CHECKING:
    from fednar_ray.tracking.run_lookup import RunSummary


@click.command()
@as_json
def runs(as_json: bool) -> None:
    """List the runs in ./runs. Shows the round at which each can be resumed."""
    from fednar_ray.tracking.run_lookup import list_runs, summarize

    rows = [summarize(kept) for kept in list_runs()]
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
    elif rows:
        _print_runs(rows)
    else:
        click.echo("no runs here: fednar keeps runs in ./runs")


def _print_runs(rows: list["RunSummary"]) -> None:
    from rich.table import Table

    from fednar_ray.experiments.comparison.record import list_comparisons

    table = Table()
    for name in ("run", "rounds", "primary metric", "state"):
        table.add_column(name, justify="right" if name == "rounds" else "left")
    comparisons = {record.name: record for record in list_comparisons()}
    for row in rows:
        value = _describe_value(row)
        if row.run in comparisons:
            table.add_row(row.run, "–", value, comparisons[row.run].state)
        else:
            table.add_row(row.run, f"{row.rounds}/{row.of}", value, _describe_state(row))
    console = build_console(stderr=False)
    console.print(table)
    console.print("resume one with: fednar run --resume RUN", soft_wrap=True)
    if any(not record.finished for record in comparisons.values()):
        console.print("resume a comparison with: fednar compare --resume COMPARISON", soft_wrap=True)


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
