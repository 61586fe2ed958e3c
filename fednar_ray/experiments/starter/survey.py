"""Surveys tables: which clients they are, and what kind of values each column holds, as training would read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fednar_ray.config.tables import CsvSettings
from fednar_ray.core.errors import BadInput, DataError, format_names
from fednar_ray.core.spelling import describe_alike
from fednar_ray.data.sources.agreement import agree_on_kind
from fednar_ray.data.sources.arrow_columns import find_text
from fednar_ray.data.sources.cell_kinds import Column, find_decimal_commas
from fednar_ray.data.sources.tables import (
    FORMATS,
    SPREADSHEETS,
    convert_column,
    derive_client_name,
    find_extension,
    list_tables,
    read_arrow,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSurvey:
    """A column over all tables.

    Attributes:
        name: Its name in the header.
        kind: number, boolean, date or category; empty if no row has a value.
        levels: The number of rows of each distinct value, most frequent first. Missing values are not counted. They are
            numbers, or the texts of a category.
        missing: The number of rows without a value.
        mixture: Why training cannot read the column, in words; empty if it can.
        alike: Levels that are probably meant as one, in words.
    """

    name: str
    kind: str
    levels: Mapping[Any, int]
    missing: int
    mixture: str = ""
    alike: tuple[str, ...] = ()

    @property
    def is_numeric(self) -> bool:
        """Whether every value is a number, or true or false."""
        return self.kind in ("number", "boolean")

    @property
    def is_whole(self) -> bool:
        """Whether every value is a whole number."""
        return self.is_numeric and all(float(level).is_integer() for level in self.levels)


@dataclass(frozen=True, slots=True, kw_only=True)
class TablesSurvey:
    """What ``fednar init`` finds in a directory of tables, or in one table.

    Attributes:
        path: The directory or the file, as given.
        rows: The number of rows of each file, by client name. One file has one entry.
        columns: The columns that all files have, in the order of the first file, as inputs.
        labels: The same columns as labels, whose texts name classes even if they are yes and no, or dates.
        only_some: Columns that only some files have → the names of these files.
    """

    path: Path
    rows: Mapping[str, int]
    columns: tuple[ColumnSurvey, ...]
    labels: tuple[ColumnSurvey, ...]
    only_some: Mapping[str, tuple[str, ...]]

    @property
    def is_folder(self) -> bool:
        """Whether each client has its own file."""
        return self.path.is_dir()

    def find(self, name: str) -> ColumnSurvey | None:
        """Finds a column, as an input, by its exact name."""
        return next((column for column in self.columns if column.name == name), None)

    def find_label(self, name: str) -> ColumnSurvey | None:
        """Finds a column, as a label or as the groups, by its exact name."""
        return next((column for column in self.labels if column.name == name), None)


def find_tables(path: Path) -> list[Path]:
    """Finds the tables at ``path``: the file itself, or those in a directory. The list is empty if there are none.

    Raises:
        BadInput: There is nothing at ``path``, or it is a file of another format.
    """
    if path.is_dir():
        return [each for each in list_tables(path)[0] if each.is_file()]
    if not path.exists():
        raise BadInput(f"{path}: there is no such file or directory")
    if find_extension(path) is None:
        raise BadInput(f"{path}: is not a {FORMATS} file; export it as CSV")
    return [path]


def survey_tables(path: Path, written: CsvSettings | None = None) -> TablesSurvey:
    """Reads all tables at ``path`` and describes their columns.

    Args:
        path: A directory or a file.
        written: How text files are written, see ``data.csv``. What is null is detected, file by file.

    Raises:
        BadInput: There is no table, tables cannot be read or have no rows, or they share no columns. The message lists
            all that is wrong.
    """
    files = find_tables(path)
    if not files:
        others = list_tables(path)[1]
        here = f"; it holds {format_names(others)}" if others else "; it is empty"
        hint = " Export spreadsheets as CSV." if any(name.lower().endswith(SPREADSHEETS) for name in others) else ""
        raise BadInput(f"{path}: has no {FORMATS} file{here}. Put one table per client there, or name one table.{hint}")
    tables, problems = {}, []
    for file in files:
        try:
            tables[derive_client_name(file)] = _read(file, written)
        except BadInput as problem:
            problems.append(str(problem))
    if problems:
        raise DataError("\n".join(problems))
    return _summarize(path, tables)


_Views = Mapping[str, tuple[Column, Column]]
"""The columns of a file by name, each as an input and as a label."""


def _read(path: Path, written: CsvSettings | None) -> _Views:
    """Reads a table. Raises DataError if it cannot be used."""
    if (find_extension(path) or "").lower() == ".npz":
        raise DataError(f"{path}: holds arrays; write its file by hand, as `fednar config data.npz` says")
    table, _ = read_arrow(path, written=written)
    names = table.column_names
    if len(names) < 2:
        raise DataError(f"{path}: has only one column, {names[0]}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the header names {', '.join(twice)} twice; give each column a different name")
    if not table.num_rows:
        raise DataError(f"{path}: has a header and no rows; remove the file, or add the client's rows")
    return {name: _convert(path, name, table.column(name)) for name in names}


def _convert(path: Path, name: str, column: Any) -> tuple[Column, Column]:
    as_input = convert_column(path, name, column, None, is_label=False)
    if as_input.kind in ("number", "category"):
        return as_input, as_input
    return as_input, convert_column(path, name, column, None, is_label=True)


def _summarize(path: Path, tables: Mapping[str, _Views]) -> TablesSurvey:
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    shared = [name for name in names if all(name in table for table in tables.values())]
    if len(shared) < 2:
        each = "; ".join(f"{name} has {format_names(list(table))}" for name, table in list(tables.items())[:3])
        raise DataError(f"{path}: the tables share no columns: {each}. All clients' tables need the same columns")
    columns, labels = (
        tuple(_describe(name, {file: table[name][view] for file, table in tables.items()}) for name in shared)
        for view in (0, 1)
    )
    return TablesSurvey(
        path=path,
        rows={name: len(table[shared[0]][0].values) for name, table in tables.items()},
        columns=columns,
        labels=labels,
        only_some={
            name: tuple(file for file, table in tables.items() if name in table) for name in names if name not in shared
        },
    )


def _describe(name: str, parts: Mapping[str, Column]) -> ColumnSurvey:
    mixture = _find_mixture(parts)
    levels: dict[Any, int] = {}
    by_file: dict[str, dict[str, int]] = {}
    missing = 0
    for file, part in ({} if mixture else parts).items():
        there = part.values[~np.isnan(part.values)]
        missing += len(part.values) - len(there)
        for value, count in zip(*np.unique(there, return_counts=True), strict=True):
            level = part.levels[int(value)] if part.kind == "category" else float(value)
            levels[level] = levels.get(level, 0) + int(count)
            if isinstance(level, str):
                by_file.setdefault(level, {})[file] = int(count)
    return ColumnSurvey(
        name=name,
        kind="empty" if not levels else agree_on_kind([part.kind for part in parts.values()]),
        levels=dict(sorted(levels.items(), key=lambda item: -item[1])),
        missing=missing,
        mixture=mixture,
        alike=tuple(describe_alike(name, by_file)),
    )


def _find_mixture(parts: Mapping[str, Column]) -> str:
    """Returns why training cannot read a column, in words; empty if it can."""
    words = {"number": "a number", "boolean": "a number", "date": "a date", "category": "text", "mixed": "text"}
    files: dict[str, list[str]] = {}
    for file, part in parts.items():
        if part.kind != "empty":
            files.setdefault(words[part.kind], []).append(file)
    odd = next((f" ({text!r})" for part in parts.values() if (text := _find_odd_text(part)) is not None), "")
    if len(files) > 1:
        return "is " + " and ".join(
            f"{kind} in {format_names(names)}{odd if kind == 'text' else ''}"
            for kind, names in sorted(files.items(), key=lambda item: item[0] == "text")
        )
    commas = [file for file, part in parts.items() if len(find_decimal_commas(part))]
    if commas:
        return f"has numbers with a decimal comma in {format_names(commas)}{odd}, where others have a decimal point"
    mixed = [file for file, part in parts.items() if part.kind == "mixed"]
    return f"has text among its numbers in {format_names(mixed)}{odd}" if mixed else ""


def _find_odd_text(part: Column) -> str | None:
    """Returns the first text of a column of texts that is no number; None if it has none."""
    if part.kind == "category":
        return part.levels[int(part.values[~np.isnan(part.values)][0])]
    rows: Sequence[int] = find_text(part.values).tolist() if part.kind == "mixed" else []
    return str(part.values[rows[0]]) if rows else None
