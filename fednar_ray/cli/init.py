"""``fednar init``: write a commented experiment file for the user's own tables."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fednar_ray.cli.csv_option import csv_option, parse_csv
from fednar_ray.cli.init_output import print_found, print_next
from fednar_ray.core.errors import BadInput
from fednar_ray.core.metric_names import METRICS_BY_TASK
from fednar_ray.core.stages import announce

if TYPE_CHECKING:
    from fednar_ray.config.source_base import TaskName
    from fednar_ray.experiments.starter.survey import TablesSurvey


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--label", metavar="COLUMN", help="The column to predict. Default: a column named label, target, y, "
              "outcome, class or alike, otherwise the last column.")  # fmt: skip
@click.option("--task", type=click.Choice(tuple(METRICS_BY_TASK)), help="Default: guessed from the label's values.")
@click.option("--groups", metavar="COLUMN", help="For one table: the column whose values are the clients. Default: a "
              "column named hospital, site, client or alike; without one, rows are divided at random.")  # fmt: skip
@csv_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write. Default: NAME.yaml here.")
@click.option("--force", is_flag=True, help="Overwrite the file if it exists.")
def init(
    path: Path | None,
    label: str | None,
    task: "TaskName | None",
    groups: str | None,
    csv: tuple[str, ...],
    output: Path | None,
    force: bool,
) -> None:
    """Look at your tables, and write a commented experiment file that runs on them.

    PATH is a folder with one table per client, or one table. Without PATH, the current directory; if it has no tables,
    the file trains on handwritten digits, to start from.
    """
    announce("looking for tables")
    from fednar_ray.experiments.starter.survey import find_tables, survey_tables

    if path is None and not find_tables(Path()):
        _write_digits(output, force)
        return
    given, written = path or Path(), parse_csv(csv)
    if given.is_dir() and len(tables := find_tables(given)) == 1:
        given = tables[0]  # one table is divided into clients
    file = output or Path(f"{_name_experiment(given)}.yaml")
    _check_free(file, force)
    announce("reading the tables")
    survey = survey_tables(given, written)
    _write_for_tables(survey, label, task, groups, file, written.model_dump(exclude_unset=True))


def _write_for_tables(
    survey: "TablesSurvey",
    label: str | None,
    task: "TaskName | None",
    groups: str | None,
    file: Path,
    csv: dict[str, str | None],
) -> None:
    from fednar_ray.config.loading import parse_document
    from fednar_ray.experiments.starter.guess import build_notes, build_settings, guess
    from fednar_ray.experiments.starter.writing import write_experiment

    found = guess(survey, label, task, groups)
    name = _name_experiment(survey.path)
    settings = build_settings(survey, found, name, csv)
    notes = build_notes(survey, found)
    header = (
        f"Written by fednar init {survey.path}. Train with: fednar run {file}\nExplain a key with: fednar config KEY"
    )
    text = write_experiment(settings, header, notes)
    parse_document(text, str(file))  # a file that is not valid is never written
    print_found(survey, found, settings)
    _write(file, text)
    print_next(file)


def _write_digits(output: Path | None, force: bool) -> None:
    from fednar_ray.config import load_embedded
    from fednar_ray.experiments.starter.writing import write_experiment

    file = output or Path("digits.yaml")
    header = f"Handwritten digits over 20 clients with skewed labels, to start from. Train with: fednar run {file}"
    _check_free(file, force)
    click.echo("no tables here: the file trains on handwritten digits; for your own tables: fednar init FOLDER")
    _write(file, write_experiment(load_embedded("digits").raw, header))
    print_next(file)


def _check_free(file: Path, force: bool) -> None:
    """Raises BadInput if the file exists and may not be overwritten."""
    if file.exists() and not force:
        raise BadInput(f"{file} exists; overwrite it with --force, or write another with -o FILE")


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{file} cannot be written: {error.strerror}") from None
    click.echo(f"wrote {file}")


def _name_experiment(path: Path) -> str:
    """Returns a name that experiments may have, from the name of the folder or the file."""
    stem = path.resolve().name
    if path.is_file():
        from fednar_ray.data.sources.tables import derive_client_name

        stem = derive_client_name(path.resolve())
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100] or "tables"
