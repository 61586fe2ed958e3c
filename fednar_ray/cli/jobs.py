"""``fednar jobs``, ``logs`` and ``stop``: the jobs of a Ray cluster."""

import json
import sys
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

import click

from fednar_ray.cli.options import as_json
from fednar_ray.core.errors import Interrupted

if TYPE_CHECKING:
    from fednar_ray.cluster.jobs import Jobs, JobSummary

dashboard_address = click.option(
    "--address", metavar="URL", help="The cluster's dashboard, http://head:8265. Default: RAY_API_SERVER_ADDRESS."
)


@click.command()
@dashboard_address
@as_json
def jobs(address: str | None, as_json: bool) -> None:
    """List the jobs of a Ray cluster, newest first."""
    from fednar_ray.cluster.jobs import Jobs

    found = Jobs(address).list_jobs()
    if as_json:
        click.echo(json.dumps([asdict(job) for job in found]))
        return
    for job in found:
        click.echo(_format_job(job))
    if not found:
        click.echo("no jobs")


def _format_job(job: "JobSummary") -> str:
    started = "" if job.started is None else datetime.fromtimestamp(job.started / 1000).isoformat(" ", "seconds")
    code = "" if job.exit_code is None else f"exit code {job.exit_code}"
    return f"{job.job_id:32}{job.status:11}{code:14}{started:21}{job.command}".rstrip()


@click.command()
@click.argument("job_id", metavar="ID")
@dashboard_address
@click.option("--follow", is_flag=True, help="Print until the job ends, and exit with the job's exit code.")
def logs(job_id: str, address: str | None, follow: bool) -> None:
    """Print what a job has printed."""
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
