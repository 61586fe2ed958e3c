"""``fednar data``: look at the data of an experiment."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from fednar_ray.cli.options import arguments, as_json, read_document
from fednar_ray.cli.output import IMPORTS, START
from fednar_ray.core.errors import BadInput
from fednar_ray.core.stages import announce


@click.group()
def data() -> None:
    """Look at the data of an experiment."""


@data.command()
@arguments
@as_json
@click.option(
    "--figure", type=click.Path(path_type=Path), help="Where to draw the clients' labels. Default: ./NAME-data.png"
)
def inspect(arguments: tuple[str, ...], as_json: bool, figure: Path | None) -> None:
    """Show how the examples are spread over the clients.

    Shows how many examples of which label each client holds, how different the clients are, and the memory needed.

    key=value overrides a setting, for example data.partition.alpha=0.1
    """
    announce(START)
    experiment = read_document(arguments, "run").experiment
    if experiment.data is None:
        raise BadInput("data: missing; add a data section to the experiment")
    announce(IMPORTS)
    from fednar_ray.data.summary import format_summary, summarize
    from fednar_ray.execution.session import RaySession
    from fednar_ray.experiments.prepare import load_experiment_data
    from fednar_ray.report.plots import draw_federation

    with RaySession() as session:
        federation = load_experiment_data(experiment, session)
    summary = summarize(federation)
    drawn = draw_federation(
        federation.label_counts(),
        figure or Path(f"{experiment.name}-data.png"),
        federation.client_names,
        class_names=federation.class_names,
        labels=None if summary.labels is None else [own.quantiles for own in summary.labels],
    )
    if as_json:
        click.echo(json.dumps({**asdict(summary), "figure": str(drawn)}))
        return
    click.echo(f"{summary.name}, seed {experiment.seed}")
    for topic, text in format_summary(summary):
        click.echo(f"  {topic:20}{text}" if len(topic) < 20 else f"  {topic} {text}")
    click.echo(f"  {'figure':20}{drawn}")
