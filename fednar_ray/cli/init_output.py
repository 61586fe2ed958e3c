"""Prints what ``fednar init`` found in the tables, and what to do next."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fednar_ray.experiments.starter.guess import Guess
    from fednar_ray.experiments.starter.survey import ColumnSurvey, TablesSurvey

SHOWN = 8  # names in a list
KINDS = {
    "number": ("number", "numbers"),
    "boolean": ("true or false", "true or false"),
    "category": ("category", "categories"),
    "date": ("date", "dates"),
}
"""How one column of a kind is called, and how several are."""


def print_found(survey: "TablesSurvey", found: "Guess", settings: dict[str, dict[str, object]]) -> None:
    """Prints the clients, the label, the task and the columns, and what was chosen for them."""
    label = survey.find_label(found.label)
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
    lines += [("warning", text) for column in (*inputs, label) for text in column.alike]
    for topic, text in lines:
        click.echo(f"{topic:10}{text}")


def _describe_clients(survey: "TablesSurvey", found: "Guess") -> str:
    if survey.is_folder:
        return f"{found.clients}: {_shorten([f'{name} ({rows} rows)' for name, rows in survey.rows.items()])}"
    column = None if found.groups is None else survey.find_label(found.groups)
    if column is None:
        return f"{found.clients}, of rows divided at random; --groups COLUMN divides them by a column"
    levels = sorted(column.levels.items(), key=lambda item: str(item[0]))
    each = [f"{_format_level(level)} ({rows} rows)" for level, rows in levels]
    return f"{found.clients}, by {column.name}: {_shorten(each)}"


def _describe_levels(label: "ColumnSurvey", rows: int) -> str:
    if label.is_numeric and len(label.levels) > SHOWN:
        return f"{min(label.levels):g} to {max(label.levels):g}"
    return _shorten([f"{_format_level(level)} ({count / rows:.0%})" for level, count in label.levels.items()])


def _format_level(level: object) -> str:
    return f"{level:g}" if isinstance(level, float) else str(level)


def _iter_kinds(inputs: "list[ColumnSurvey]") -> "list[str]":
    """Returns one line per kind of column, with the names."""
    by_kind: dict[str, list[str]] = {}
    for column in inputs:
        by_kind.setdefault(column.kind, []).append(column.name)
    return [f"{len(names)} {KINDS[kind][len(names) > 1]}: {_shorten(names)}" for kind, names in by_kind.items()]


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def print_next(file: Path) -> None:
    """Prints the commands that come next."""
    click.echo("next:")
    for command, why in (
        ("data inspect", "what each client holds"),
        ("run", "train"),
        ("suggest", "which clip bound fits the steps of the newest run"),
        ("compare", "FedNAR against the usual way, over three seeds"),
    ):
        words = command if command == "suggest" else f"{command} {file}"
        click.echo(f"  fednar {words}".ljust(42) + f"  # {why}")
