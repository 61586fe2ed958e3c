"""``fednar suggest``: say which clip bounds are worth trying, from the step norms of a run."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fednar_ray.cli.completion import complete_run
from fednar_ray.cli.options import as_json
from fednar_ray.cli.output import build_console, quiet_libraries
from fednar_ray.core.stages import announce
from fednar_ray.report.tables import Column, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from fednar_ray.experiments.suggestion import ClipBoundSuggestion

SHOWN_LEVELS = {0.1: "10 %", 0.5: "median", 0.9: "90 %", 0.99: "99 %", 1.0: "largest"}


@click.command()
@click.argument("run", required=False, shell_complete=complete_run)
@as_json
@click.option("--output", type=click.Path(path_type=Path), help="Where to draw. Default: RUN's clip_bound.png.")
def suggest(run: str | None, as_json: bool, output: Path | None) -> None:
    """Suggest a clip bound A from the step norms of a run.

    RUN is a run's name, id or directory, or the name of an experiment, which stands for its newest run. Without RUN,
    the newest run in ./runs is taken. Runs of comparisons and searches are taken only if they are named exactly. A
    short run is enough.
    """
    announce("reading the run")
    quiet_libraries()
    from fednar_ray.experiments.suggestion import suggest as suggest_bound

    found = suggest_bound(run, output=output)
    if as_json:
        click.echo(json.dumps({**asdict(found), "summary": found.summary, "commands": found.commands}, default=str))
    else:
        _print(found)


def _print(found: "ClipBoundSuggestion") -> None:
    console = build_console(stderr=False)
    _print_quantiles(console, found)
    for line in (
        found.summary,
        f"worth trying: A from {found.low:g} to {found.high:g}",
        *found.notes,
        f"picture: {found.plot}",
        f"try next ({found.choice}):",
        *(f"  {command}" for command in found.commands),
    ):
        console.print(line, soft_wrap=True, markup=False)


def _print_quantiles(console: "Console", found: "ClipBoundSuggestion") -> None:
    columns = [Column("round"), *(Column(name, right=True) for name in SHOWN_LEVELS.values())]
    rows = [
        {"round": name, **{text: f"{quantiles[level]:.3g}" for level, text in SHOWN_LEVELS.items()}}
        for name, quantiles in found.quantiles.items()
    ]
    print_table(console, columns, rows, title=f"{found.run}: norms ‖v‖ of single steps")
