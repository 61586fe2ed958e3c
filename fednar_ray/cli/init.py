"""``fednar init``: write a commented experiment file for the user's own tables."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from fednar_ray.config.data import TaskName
from fednar_ray.core.errors import BadInput

if TYPE_CHECKING:
    from fednar_ray.experiments.starter.guess import Guess
    from fednar_ray.experiments.starter.survey import Column, TablesSurvey

SHOWN = 8  # names in a list


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--label", metavar="COLUMN", help="The column to predict. Default: a column named label, target, y, "
              "outcome, class or alike, otherwise the last column.")  # fmt: skip
@click.option("--task", type=click.Choice(get_args(TaskName)), help="Default: guessed from the label's values.")
@click.option("--groups", metavar="COLUMN", help="For one table: the column whose values are the clients. Default: a "
              "column named hospital, site, client or alike; without one, rows are divided at random.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write. Default: NAME.yaml here.")
@click.option("--force", is_flag=True, help="Overwrite the file if it exists.")
def init(
    path: Path | None, label: str | None, task: TaskName | None, groups: str | None, output: Path | None, force: bool
) -> None:
    """Look at your tables, and write a commented experiment file that runs on them.

    PATH is a folder with one table per client, or one table. Without PATH, the current directory; if it has no tables,
    the file trains on handwritten digits, to start from.
    """
    from fednar_ray.experiments.starter.survey import find_tables, survey_tables

    if path is None and not find_tables(Path()):
        _write_digits(output, force)
        return
    given = path or Path()
    if given.is_dir() and len(tables := find_tables(given)) == 1:
        given = tables[0]  # one table is divided into clients
    file = output or Path(f"{_name_experiment(given)}.yaml")
    _check_free(file, force)
    survey = survey_tables(given)
    _write_for_tables(survey, label, task, groups, file)


def _write_for_tables(
    survey: "TablesSurvey",
    label: str | None,
    task: TaskName | None,
    groups: str | None,
    file: Path,
) -> None:
    from fednar_ray.config.loading import parse_document
    from fednar_ray.experiments.starter.guess import build_settings, guess
    from fednar_ray.experiments.starter.writing import write_experiment

    found = guess(survey, label, task, groups)
    name = _name_experiment(survey.path)
    settings = build_settings(survey, found, name)
    notes = {
        "data.label": f"Chosen: {found.label_reason}.",
        "data.task": f"Chosen: {found.task_reason}.",
        "data.features": "".join(f"Left out: {each} {why}. " for each, why in found.left_out.items()),
    }
    header = (
        f"Written by fednar init {survey.path}. Train with: fednar run {file}\nExplain a key with: fednar config KEY"
    )
    text = write_experiment(settings, header, notes)
    parse_document(text, str(file))  # a file that is not valid is never written
    _print_found(survey, found, settings)
    _write(file, text)
    _print_next(file)


def _write_digits(output: Path | None, force: bool) -> None:
    from fednar_ray.config import load_embedded
    from fednar_ray.experiments.starter.writing import write_experiment

    file = output or Path("digits.yaml")
    header = f"Handwritten digits over 20 clients with skewed labels, to start from. Train with: fednar run {file}"
    _check_free(file, force)
    click.echo("no tables here: the file trains on handwritten digits; for your own tables: fednar init FOLDER")
    _write(file, write_experiment(load_embedded("digits").raw, header))
    _print_next(file)


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
        from fednar_ray.data.sources.tables import name_client

        stem = name_client(path.resolve())
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100] or "tables"


def _print_found(survey: "TablesSurvey", found: "Guess", settings: dict[str, dict[str, object]]) -> None:
    label = survey.find(found.label)
    assert label is not None
    rows = sum(survey.rows.values())
    inputs = [column for column in survey.columns if column.name in found.features]
    missing = {column.name: column.missing for column in (*inputs, label) if column.missing}
    lines = [
        ("clients", _describe_clients(survey, found)),
        ("rows", f"{rows:,}"),
        ("label", f"{found.label} ({found.label_reason}): {_describe_levels(label, rows)}"),
        ("task", f"{found.task} ({found.task_reason})"),
        *(("inputs", text) for text in _iter_kinds(inputs)),
        *(("left out", f"{name}: {why}") for name, why in found.left_out.items()),
    ]
    if missing:
        places = ", ".join(f"{name} {count}" for name, count in missing.items())
        lines.append(("missing", f"{places}; data.missing: {settings['data']['missing']}"))
    lines.append(("model", str(settings["model"]["name"])))
    for topic, text in lines:
        click.echo(f"{topic:10}{text}")


def _describe_clients(survey: "TablesSurvey", found: "Guess") -> str:
    if survey.is_folder:
        return f"{found.clients}: {_shorten([f'{name} ({rows} rows)' for name, rows in survey.rows.items()])}"
    column = None if found.groups is None else survey.find(found.groups)
    if column is None:
        return f"{found.clients}, of rows divided at random; --groups COLUMN divides them by a column"
    levels = sorted(column.levels.items(), key=lambda item: str(item[0]))
    return f"{found.clients}, by {column.name}: {_shorten([f'{level} ({rows} rows)' for level, rows in levels])}"


def _describe_levels(label: "Column", rows: int) -> str:
    if label.is_numeric and len(label.levels) > SHOWN:
        return f"{min(label.levels):g} to {max(label.levels):g}"
    return _shorten([f"{_format_level(level)} ({count / rows:.0%})" for level, count in label.levels.items()])


def _format_level(level: object) -> str:
    return f"{level:g}" if isinstance(level, float) else str(level)


def _iter_kinds(inputs: "list[Column]") -> "list[str]":
    """Returns one line per kind of column, with the names."""
    words = {"number": "numbers", "whole number": "numbers", "true or false": "true or false", "text": "categories",
             "date": "dates"}  # fmt: skip
    by_kind: dict[str, list[str]] = {}
    for column in inputs:
        by_kind.setdefault(words[column.kind], []).append(column.name)
    return [f"{len(names)} {kind}: {_shorten(names)}" for kind, names in by_kind.items()]


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _print_next(file: Path) -> None:
    click.echo("next:")
    for command, why in (
        ("data inspect", "what each client holds"),
        ("run", "train"),
        ("compare", "FedNAR against the usual way, over three seeds"),
    ):
        click.echo(f"  fednar {command} {file}".ljust(42) + f"  # {why}")
