"""``fednar report``: draw what is recorded of a run, a comparison or a search."""

import json
from contextlib import nullcontext
from pathlib import Path

import click

from fednar_ray.cli.options import as_json
from fednar_ray.cli.output import quiet_libraries


@click.command()
@click.argument("name")
@as_json
@click.option("--uri", help="The tracking store. Default: the one that NAME was recorded in, otherwise MLflow's own.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where to write the report. Default: the directory of NAME."
)
def report(name: str, as_json: bool, uri: str | None, output: Path | None) -> None:
    """Draw what is recorded of a run, a comparison or a search.

    NAME is its name, its directory, or its id in MLflow. A search gets a page with figures and tables. A run gets its
    curves, and the norms that the clip bound limits. A comparison gets its curves, and accuracy against weight decay.
    """
    quiet_libraries()
    from fednar_ray.report.redraw import redraw
    from fednar_ray.tuning.search_lock import hold_search
    from fednar_ray.tuning.trial_table import find_tracking_uri

    search_uri = find_tracking_uri(name)
    with hold_search(name) if search_uri is not None and output is None else nullcontext():
        written = redraw(name, uri, output, search_uri)
    if as_json:
        page = {} if written.page is None else {"page": str(written.page)}
        click.echo(json.dumps({**page, "files": list(map(str, written.files))}))
    elif written.page is not None:
        click.echo(f"report: {written.page}")
    else:
        click.echo("\n".join(map(str, written.files)))
