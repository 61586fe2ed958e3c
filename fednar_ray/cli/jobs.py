"""``fednar jobs``, ``logs`` and ``stop``: the jobs of a Ray cluster."""

import json
import sys
import time
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

import click

from fednar_ray.cli.options import as_json
from fednar_ray.cli.output import build_console
from fednar_ray.core.errors import Interrupted
from fednar_ray.core.stages import announce
from fednar_ray.report.tables import Column, print_table

if TYPE_CHECKING:
    from fednar_ray.cluster.jobs import Jobs, JobSummary

COLUMNS = (
    Column("id"),
    Column("status"),
    Column("started"),
    Column("duration", right=True),
    Column("command", least=16),
)
ASKING = "asking the cluster"

dashboard_address = click.option(
    "--address", metavar="URL", help="The cluster's dashboard, http://head:8265. Default: RAY_API_SERVER_ADDRESS."
)


@click.command()
@dashboard_address
@as_json
def jobs(address: str | None, as_json: bool) -> None:
    """List the jobs of a Ray cluster, newest first."""
    announce(ASKING)
    from fednar_ray.cluster.jobs import Jobs

    found = Jobs(address).list_jobs()
    if as_json:
        click.echo(json.dumps([asdict(job) for job in found]))
        return
    if found:
        _print_jobs(found)
    else:
        click.echo("no jobs")


def _print_jobs(found: list["JobSummary"]) -> None:
    console = build_console(stderr=False)
    rows = [
        {
            "id": job.job_id,
            "status": _format_status(job),
            "started": _format_start(job),
            "duration": _format_duration(job),
            "command": job.command.removeprefix("fednar "),
        }
        for job in found
    ]
    print_table(console, COLUMNS, rows)
    console.print("print the output of one with: fednar logs ID", soft_wrap=True)


def _format_status(job: "JobSummary") -> str:
    return f"failed ({job.exit_code})" if job.status == "failed" and job.exit_code is not None else job.status


def _format_start(job: "JobSummary") -> str:
    return "–" if job.started is None else f"{datetime.fromtimestamp(job.started / 1000):%m-%d %H:%M}"


def _format_duration(job: "JobSummary") -> str:
    """Returns how long a job has run, in two units: 3m20s, 5h12m, 2d03h."""
    if job.started is None:
        return "–"
    minutes, seconds = divmod(round((job.ended or time.time() * 1000) - job.started) // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d{hours % 24:02}h"
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"


@click.command()
@click.argument("job_id", metavar="ID")
@dashboard_address
@click.option("--follow", is_flag=True, help="Print until the job ends, and exit with the job's exit code.")
def logs(job_id: str, address: str | None, follow: bool) -> None:
    """Print what a job has printed."""
    announce(ASKING)
    from fednar_ray.cluster.jobs import Jobs

    cluster = Jobs(address)
    if follow:
        sys.exit(follow_job(job_id, cluster))
    click.echo(cluster.read_logs(job_id), nl=False)


@click.command()
@click.argument("job_id", metavar="ID")
@dashboard_address
def stop(job_id: str, address: str | None) -> None:
    """Stop a job as Ctrl-C does. It writes a last checkpoint, and its run in MLflow becomes KILLED."""
    announce(ASKING)
    from fednar_ray.cluster.jobs import Jobs

    job = Jobs(address).stop(job_id)
    click.echo(f"job {job_id}: {job.status}")


def follow_job(job_id: str, cluster: "Jobs") -> int:
    """Prints what a job prints until it ends, and returns its exit code.

    Raises:
        Interrupted: Ctrl-C. The job keeps running.
    """
    from fednar_ray.cluster.jobs import describe_reattach

    def write(text: str) -> None:
        click.echo(text, nl=False)

    try:
        code = cluster.follow(job_id, write)
    except KeyboardInterrupt as interrupt:
        raise Interrupted(f"job {job_id} keeps running: {describe_reattach(job_id)}") from interrupt
    click.echo(f"job {job_id} ended with exit code {code}", err=True)
    return code
