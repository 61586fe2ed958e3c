"""Reads rows to predict, in the same way as the rows that a run was trained on, but without labels."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.core.errors import DataError
from fednar_ray.core.fednar_table_schema import ColumnSchema, TableSchema
from fednar_ray.data.sources.arrow_columns import name_row, read_parquet, to_numpy
from fednar_ray.data.sources.client_rows import LARGEST
from fednar_ray.data.sources.tables import Table, find_extension
from fednar_ray.data.sources.text_files import read_text

Floats = npt.NDArray[np.float64]

FRAME = Path("the data frame")  # the place of a frame's values in messages


def read_rows(path: Path, schema: TableSchema, imputes: bool) -> Floats:
    """Reads the inputs of a file, [n, columns]. NaN is a missing value.

    Args:
        path: The file. Columns that the schema does not name are ignored.
        schema: The columns that the model takes.
        imputes: Whether the model replaces missing values. Otherwise they are refused.

    Raises:
        DataError: The file cannot be read, has no such column or no rows, or a value does not fit its column. The
            message names the file, the line and the column, and lists all that is wrong.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    extension = (find_extension(path) or "").lower()
    if extension in ("", ".npz"):
        raise DataError(f"{path}: is not a table with a header: write the rows as .csv, .tsv or .parquet")
    categories = [column.name for column in schema.columns if column.kind == "category"]
    found, find_cell = read_parquet(path) if extension == ".parquet" else read_text(path, extension, categories)
    _check_names(path, found.column_names, schema.names)
    columns = {c.name: _convert(path, c.name, found.column(c.name), c.kind) for c in schema.columns}
    return _encode(Table(path=path, columns=columns, find_cell=find_cell), schema, imputes)


def read_frame(frame: Any, schema: TableSchema, imputes: bool) -> Floats:
    """Reads the inputs of a pandas data frame as ``read_rows`` reads those of a file."""
    _check_names(FRAME, list(frame.columns), schema.names)
    columns = {name: frame[name].reset_index(drop=True) for name in schema.names}
    return _encode(Table(path=FRAME, columns=columns, find_cell=name_row), schema, imputes)


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


def _encode(table: Table, schema: TableSchema, imputes: bool) -> Floats:
    """Converts a table whose columns are Series to the raw matrix."""
    cells = table.columns
    if not len(cells[schema.names[0]]):
        raise DataError(f"{table.path}: has no rows")
    found, problems = [], []
    for column in schema.columns:
        try:
            found.append(column.encode(cells[column.name]))
        except ValueError as error:
            problems.append(_describe(table, column, cells[column.name], error))
    if problems:
        raise DataError("\n".join(problems))
    x = np.stack(found, axis=1)
    _check_values(table, schema, x, imputes)
    return x


def _describe(table: Table, column: ColumnSchema, cells: Any, error: ValueError) -> str:
    """Returns what is wrong with the first bad cell of a column, and where it is."""
    for row in range(len(cells)):
        try:
            column.encode(cells.iloc[[row]])
        except ValueError as problem:
            why = str(problem).removeprefix(f"column {column.name}: ")
            if column.kind == "number":
                why = "is not a number; write numbers as 1234.5, and leave missing cells empty"
                return table.describe_bad_values(column.name, np.array([row]), why, show_values=True)
            return f"{table.path}, {table.find_cell(row, column.name)[0]}, column {column.name}: {why}"
    return f"{table.path}: {error}"


def _check_values(table: Table, schema: TableSchema, x: Floats, imputes: bool) -> None:
    """Raises DataError for infinite values, and for missing ones that the model does not replace."""
    problems = list(_iter_problems(table, schema, np.abs(x) > LARGEST, "is infinite, or more than float32 can hold"))
    if not imputes and np.isnan(x).any():
        problems += _iter_problems(table, schema, np.isnan(x), None)
        problems.append(
            "the run does not impute: fill these values, leave the rows out, or train with data.missing=mean"
        )
    if problems:
        raise DataError("\n".join(problems))


def _iter_problems(table: Table, schema: TableSchema, bad: npt.NDArray[np.bool_], why: str | None) -> Iterator[str]:
    """Yields the first bad cell of each column; ``why`` is None for missing values."""
    for name, column in zip(schema.names, bad.T, strict=True):
        rows = np.flatnonzero(column)
        if len(rows) and why is not None:
            yield table.describe_bad_values(name, rows, why, show_values=True)
        elif len(rows):
            more = f" ({len(rows) - 1} more like it in this column)" if len(rows) > 1 else ""
            yield f"{table.path}, {table.find_cell(int(rows[0]), name)[0]}, column {name}: the value is missing{more}"
