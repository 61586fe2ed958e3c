"""``fednar doctor``: check the installation."""

import json
import sys

import click

from fednar_ray.cli.options import as_json, ray_address
from fednar_ray.cli.output import IMPORTS, quiet_libraries
from fednar_ray.core.stages import announce


@click.command()
@as_json
@ray_address
@click.option("--uri", help="The tracking store to check. Default: MLFLOW_TRACKING_URI, otherwise ./mlflow.db.")
def doctor(as_json: bool, address: str | None, uri: str | None) -> None:
    """Check versions, machine, Ray and tracking store. The exit code is 1 if anything is wrong."""
    announce(IMPORTS)
    from fednar_ray.cli.health import check_installation

    quiet_libraries()
    findings = []
    for finding in check_installation(address, uri):
        findings.append(finding)
        if not as_json:
            click.echo(f"{finding.verdict:8}{finding.topic:14}{finding.text}")
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings]))
    sys.exit(1 if any(finding.verdict == "wrong" for finding in findings) else 0)
