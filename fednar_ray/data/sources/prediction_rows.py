"""Reads rows to predict, in the same way as the rows that a run was trained on, but without labels."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fednar_ray.config.tables import CsvSettings
from fednar_ray.core.errors import DataError, format_names
from fednar_ray.core.fednar_table_schema import ColumnSchema, TableSchema
from fednar_ray.data.sources.arrow_columns import name_row, to_numpy
from fednar_ray.data.sources.client_rows import LARGEST
from fednar_ray.data.sources.tables import Table, find_extension, read_arrow

Floats = npt.NDArray[np.float64]

FRAME = Path("the data frame")  # the place of a frame's values in messages


class ReadRows(NamedTuple):
    """Rows of a table as the model takes them."""

    inputs: Floats  # [n, columns]; NaN is a missing value
    bad: npt.NDArray[np.bool_]  # [n], the rows that do not fit the schema and were left out; their inputs are undefined
    problems: tuple[str, ...]  # what is wrong with them, one line per column


def read_rows(
    path: Path, schema: TableSchema, imputes: bool, written: CsvSettings | None = None, *, skip_bad: bool = False
) -> ReadRows:
    """Reads the inputs of a file.

    Args:
        path: The file. Columns that the schema does not name are ignored.
        schema: The columns that the model takes.
        imputes: Whether the model replaces missing values. Otherwise they are refused.
        written: How a text file is written. What is null, or all if it is None, is detected.
        skip_bad: Whether rows with a value that does not fit its column are marked, and not refused.

    Raises:
        DataError: The file cannot be read, has no such column or no rows, or a value does not fit its column. The
            message names the file, the line and the column, counts the bad values, and lists all that is wrong.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    extension = (find_extension(path) or "").lower()
    if extension in ("", ".npz"):
        raise DataError(f"{path}: is not a table with a header: write the rows as .csv, .tsv or .parquet")
    categories = [column.name for column in schema.columns if column.kind == "category"]
    found, find_cell = read_arrow(path, categories, written)
    _check_names(path, found.column_names, schema.names)
    columns = {c.name: _convert(path, c.name, found.column(c.name), c.kind) for c in schema.columns}
    return _encode(Table(path=path, columns=columns, find_cell=find_cell), schema, imputes, skip_bad=skip_bad)


def read_frame(frame: Any, schema: TableSchema, imputes: bool) -> ReadRows:
    """Reads the inputs of a pandas data frame as ``read_rows`` reads those of a file."""
    _check_names(FRAME, list(frame.columns), schema.names)
    columns = {name: frame[name].reset_index(drop=True) for name in schema.names}
    return _encode(Table(path=FRAME, columns=columns, find_cell=name_row), schema, imputes, skip_bad=False)


def _check_names(path: Path, names: list[str], wanted: Sequence[str]) -> None:
    """Raises DataError unless each wanted column is there once."""
    missing = [name for name in wanted if name not in names]
    if missing:
        shown = list(map(str, names))
        raise DataError(f"{path}: has no column {', '.join(missing)}; it has {', '.join(shown)}")
    twice = [name for name in wanted if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: has column {', '.join(twice)} more than once; give each a different name")


def _convert(path: Path, name: str, column: Any, kind: str) -> Any:
    """Converts an Arrow column to a Series of numbers, texts or dates."""
    import pandas as pd
    import pyarrow as pa

    if pa.types.is_temporal(column.type):
        return column.to_pandas()
    if kind == "category":
        return pd.Series(column.to_pylist(), dtype=object)  # 01 stays 01
    return pd.Series(to_numpy(path, name, column))


def _encode(table: Table, schema: TableSchema, imputes: bool, *, skip_bad: bool) -> ReadRows:
    """Converts a table whose columns are Series to the raw matrix. Raises DataError with all that is wrong."""
    import pandas as pd

    count = len(table.columns[schema.names[0]])
    if not count:
        raise DataError(f"{table.path}: has no rows")
    found, problems, bad = {}, [], np.zeros(count, dtype=bool)
    for column in schema.columns:
        cells = table.columns[column.name]
        try:
            found[column.name] = column.encode(cells)
        except ValueError as error:
            rows = _find_bad_cells(column, cells)
            problems.append(_describe(table, column, error, rows))
            bad[rows] = True
            if skip_bad and len(rows):
                found[column.name] = column.encode(pd.Series(cells).mask(bad, None))
    for wrong, why in ((_find_infinite(found), "is infinite, or more than float32 can hold"),
                       ({} if imputes else _find_missing(found, bad), "is missing")):  # fmt: skip
        problems += _iter_problems(table, wrong, why, show_values=why != "is missing")
        bad |= np.any([np.zeros(count, dtype=bool), *wrong.values()], axis=0)
        if why == "is missing" and any(rows.any() for rows in wrong.values()):
            problems.append(
                "the run does not impute: fill these values, leave the rows out, or train with data.missing=mean"
            )
    if problems and (not skip_bad or len(found) < len(schema.columns)):
        raise DataError("\n".join(problems))
    return ReadRows(np.stack(list(found.values()), axis=1), bad, tuple(problems))


def _find_infinite(columns: Mapping[str, Floats]) -> dict[str, npt.NDArray[np.bool_]]:
    return {name: np.abs(values) > LARGEST for name, values in columns.items()}


def _find_missing(columns: Mapping[str, Floats], bad: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[np.bool_]]:
    """Marks missing values by column, but not those of rows that are left out already."""
    return {name: np.isnan(values) & ~bad for name, values in columns.items()}


def _describe(table: Table, column: ColumnSchema, error: ValueError, rows: npt.NDArray[np.int64]) -> str:
    """Returns what is wrong with the cells of a column, where the first one is, and how many there are."""
    if not len(rows):  # the whole column has a type that no cell can have
        return f"{table.path}: {error}"
    why = {
        "number": "is not a number; write numbers as 1234.5, and leave missing cells empty",
        "date": "is not a date; dates are written 2020-01-31",
        "boolean": "is not a boolean; booleans are true, false, yes, no, 1 or 0",
        "category": f"is an unknown level; the model knows {format_names(column.levels)}",
    }[column.kind]
    return table.describe_bad_values(column.name, rows, why, show_values=True)


def _find_bad_cells(column: ColumnSchema, cells: Any) -> npt.NDArray[np.int64]:
    """Finds the rows of a Series whose cells are not of the column's kind."""
    known: dict[str, bool] = {}
    for row, text in enumerate(map(repr, cells)):
        if text not in known:
            try:
                column.encode(cells.iloc[[row]])
                known[text] = True
            except ValueError:
                known[text] = False
    return np.flatnonzero([not known[text] for text in map(repr, cells)])


def _iter_problems(
    table: Table, bad: Mapping[str, npt.NDArray[np.bool_]], why: str, *, show_values: bool = True
) -> Iterator[str]:
    """Yields one line per column with bad cells, which ``bad`` marks by column."""
    for name, marked in bad.items():
        if marked.any():
            yield table.describe_bad_values(name, np.flatnonzero(marked), why, show_values=show_values)
