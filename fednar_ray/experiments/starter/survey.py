"""Surveys tables: which clients they are, and what kind of values each column holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fednar_ray.core.errors import BadInput, DataError, format_names
from fednar_ray.data.sources.arrow_columns import is_number, read_parquet, to_numpy
from fednar_ray.data.sources.tables import FORMATS, derive_client_name, find_extension, list_tables
from fednar_ray.data.sources.text_files import read_text

KINDS = ("number", "whole number", "true or false", "text", "date", "mixed")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSurvey:
    """A column over all tables.

    Attributes:
        name: Its name in the header.
        kind: One of ``KINDS``.
        levels: The number of rows of each distinct value, most frequent first. Missing values are not counted.
        missing: The number of rows without a value.
        mixture: For the kind mixed: which file holds what, in words.
    """

    name: str
    kind: str
    levels: Mapping[Any, int]
    missing: int
    mixture: str = ""

    @property
    def is_numeric(self) -> bool:
        """Whether every value is a number, or true or false."""
        return self.kind in ("number", "whole number", "true or false")


@dataclass(frozen=True, slots=True, kw_only=True)
class TablesSurvey:
    """What ``fednar init`` finds in a directory of tables, or in one table.

    Attributes:
        path: The directory or the file, as given.
        rows: The number of rows of each file, by client name. One file has one entry.
        columns: The columns that all files have, in the order of the first file.
        only_some: Columns that only some files have → the names of these files.
    """

    path: Path
    rows: Mapping[str, int]
    columns: tuple[ColumnSurvey, ...]
    only_some: Mapping[str, tuple[str, ...]]

    @property
    def is_folder(self) -> bool:
        """Whether each client has its own file."""
        return self.path.is_dir()

    def find(self, name: str) -> ColumnSurvey | None:
        """Finds a column by its exact name."""
        return next((column for column in self.columns if column.name == name), None)


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


def survey_tables(path: Path) -> TablesSurvey:
    """Reads all tables at ``path`` and describes their columns.

    Raises:
        BadInput: There is no table, tables cannot be read or have no rows, or they share no columns. The message lists
            all that is wrong.
    """
    files = find_tables(path)
    if not files:
        others = list_tables(path)[1]
        here = f"; it holds {format_names(others)}" if others else "; it is empty"
        raise BadInput(f"{path}: has no {FORMATS} file{here}. Put one table per client there, or name one table")
    frames, problems = {}, []
    for file in files:
        try:
            frames[derive_client_name(file)] = _read(file)
        except BadInput as problem:
            problems.append(str(problem))
    if problems:
        raise DataError("\n".join(problems))
    return _summarize(path, frames)


def _read(path: Path) -> pd.DataFrame:
    """Reads a table: numbers as float64, everything else as text or dates. Raises DataError if it cannot be used."""
    extension = (find_extension(path) or "").lower()
    if extension == ".npz":
        raise DataError(f"{path}: holds arrays; write its file by hand, as `fednar config data.npz` says")
    table, _ = read_parquet(path) if extension == ".parquet" else read_text(path, extension)
    names = table.column_names
    if len(names) < 2:
        raise DataError(f"{path}: has only one column, {names[0]}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the header names {', '.join(twice)} twice; give each column a different name")
    if not table.num_rows:
        raise DataError(f"{path}: has a header and no rows; remove the file, or add the client's rows")
    return pd.DataFrame({name: _convert(path, name, table.column(name)) for name in names})


def _convert(path: Path, name: str, column: Any) -> Any:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_boolean(kind):
        return column.to_pandas().astype(object)
    if pa.types.is_temporal(kind):
        return pd.Series(column.to_pandas(), dtype=object)
    return to_numpy(path, name, column)


def _summarize(path: Path, frames: Mapping[str, pd.DataFrame]) -> TablesSurvey:
    names = list(dict.fromkeys(name for frame in frames.values() for name in frame.columns))
    shared = [name for name in names if all(name in frame.columns for frame in frames.values())]
    if len(shared) < 2:
        each = "; ".join(f"{name} has {format_names(list(frame.columns))}" for name, frame in list(frames.items())[:3])
        raise DataError(f"{path}: the tables share no columns: {each}. All clients' tables need the same columns")
    return TablesSurvey(
        path=path,
        rows={name: len(frame) for name, frame in frames.items()},
        columns=tuple(_describe(name, {file: frame[name] for file, frame in frames.items()}) for name in shared),
        only_some={
            name: tuple(file for file, frame in frames.items() if name in frame.columns)
            for name in names
            if name not in shared
        },
    )


def _describe(name: str, parts: Mapping[str, pd.Series]) -> ColumnSurvey:
    values = pd.concat(list(parts.values()), ignore_index=True)
    present = values.dropna()
    mixture = _find_mixture(parts)
    return ColumnSurvey(
        name=name,
        kind="mixed" if mixture else _find_kind(present),
        levels=present.value_counts().to_dict(),
        missing=len(values) - len(present),
        mixture=mixture,
    )


def _find_mixture(parts: Mapping[str, pd.Series]) -> str:
    """Returns which file has numbers and which has text in a column, in words; empty if all files agree."""
    numeric: list[str] = []
    text: list[str] = []
    for file, part in parts.items():
        present = part.dropna()
        if len(present):
            (text if _find_kind(present) == "text" else numeric).append(file)
    if not numeric or not text:
        return ""
    cells = parts[text[0]].dropna().astype(str)
    odd = next(cell for cell in cells if not is_number(cell))
    return f"is a number in {format_names(numeric)} and text in {format_names(text)} ({odd!r})"


def _find_kind(present: pd.Series) -> str:
    """Returns which of ``KINDS`` the values of a column are. A column with numbers in one file alone is text."""
    if present.map(lambda value: isinstance(value, bool)).all() and len(present):
        return "true or false"
    try:
        numbers = present.astype(np.float64)
    except (TypeError, ValueError):
        return "date" if _are_dates(present) else "text"
    return "whole number" if (numbers == numbers.round()).all() else "number"


def _are_dates(present: pd.Series) -> bool:
    texts = present.astype(str)
    return bool(texts.str.match(r"\d{4}-\d{2}-\d{2}").all())
