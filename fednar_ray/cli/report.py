"""``fednar report``: write the page of a run, a comparison or a search again."""

import json
from contextlib import nullcontext
from pathlib import Path

import click

from fednar_ray.cli.completion import complete_any
from fednar_ray.cli.options import as_json
from fednar_ray.cli.output import quiet_libraries
from fednar_ray.core.stages import announce


@click.command()
@click.argument("name", shell_complete=complete_any)
@as_json
@click.option("--uri", help="The tracking store. Default: the one that NAME was recorded in, otherwise MLflow's own.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where to write the report. Default: the directory of NAME."
)
def report(name: str, as_json: bool, uri: str | None, output: Path | None) -> None:
    """Write the page of a run, a comparison or a search again, from what is recorded.

    NAME is its name, its directory, or its id in MLflow.
    """
    announce(f"reading what is recorded of {name}")
    quiet_libraries()
    from fednar_ray.experiments.redraw import redraw
    from fednar_ray.tuning.search_lock import hold_search
    from fednar_ray.tuning.trial_table import find_tracking_uri

    search_uri = find_tracking_uri(name)
    with hold_search(name) if search_uri is not None and output is None else nullcontext():
        written = redraw(name, uri, output, search_uri)
    if as_json:
        click.echo(json.dumps({"page": str(written.page), "files": list(map(str, written.files))}))
    else:
        click.echo(f"report: {written.page}")
