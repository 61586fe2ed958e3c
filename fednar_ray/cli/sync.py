"""``fednar sync``: send MLflow what it missed of the runs in ./runs."""

import json
import sys
from dataclasses import asdict

import click

from fednar_ray.cli.completion import complete_run
from fednar_ray.cli.options import as_json
from fednar_ray.cli.output import quiet_libraries
from fednar_ray.core.errors import BadInput, TrackingUnavailable
from fednar_ray.core.stages import announce


@click.command()
@click.argument("names", nargs=-1, metavar="[RUN …]", shell_complete=complete_run)
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
        if problems:  # they are in the reports
            click.echo("\n".join(problems), err=True)
            sys.exit(2)
    elif problems:
        raise BadInput("; ".join(problems))
