"""Reads rows to predict, in the same way as the rows that a run was trained on, but without labels."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fednar_ray.config.data import FolderSettings
from fednar_ray.core.errors import DataError
from fednar_ray.data.examples import Array
from fednar_ray.data.sources.arrow_columns import name_row, to_numpy
from fednar_ray.data.sources.client_rows import Floats, RowChecker
from fednar_ray.data.sources.tables import FORMATS, Table, find_extension, read_columns

LABEL = "\0label"  # stands in for the label, which rows to predict need not have
FRAME = Path("the data frame")  # the place of a frame's values in messages


def read_rows(path: Path, columns: Sequence[str], imputes: bool) -> Floats:
    """Reads the inputs of a file, [n, columns]. NaN is a missing value.

    Args:
        path: The file.
        columns: The names of the columns, in the order in which they are returned. Other columns are ignored.
        imputes: Whether missing values are replaced later. Otherwise they are refused.

    Raises:
        DataError: The file cannot be read, has no such column or no rows, or a value is not a number or missing. The
            message names the file, the line and the column.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if find_extension(path) is None:
        raise DataError(f"{path}: is not a {FORMATS} file")
    table, _ = read_columns(path, columns, columns[0])
    return _check(table, columns, imputes)


def read_frame(frame: Any, columns: Sequence[str], imputes: bool) -> Floats:
    """Reads the inputs of a pandas data frame as ``read_rows`` reads those of a file."""
    import pyarrow as pa

    names = [str(name) for name in frame.columns]
    missing = [name for name in columns if name not in names]
    if missing:
        raise DataError(f"{FRAME}: has no column {', '.join(missing)}; it has {', '.join(names)}")
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise DataError(f"{FRAME}: has column {', '.join(twice)} more than once; give each a different name")
    try:
        found = {name: pa.chunked_array([pa.array(frame[name], from_pandas=True)]) for name in columns}
    except pa.ArrowException as error:
        raise DataError(f"{FRAME}: {error}; numbers are needed") from None
    arrays: Mapping[str, Array] = {name: to_numpy(FRAME, name, column) for name, column in found.items()}
    return _check(Table(path=FRAME, columns=arrays, find_cell=name_row), columns, imputes)


def _check(table: Table, columns: Sequence[str], imputes: bool) -> Floats:
    rows = len(table.columns[columns[0]])
    checker = RowChecker(
        path=table.path,
        table=replace(table, columns={**table.columns, LABEL: np.zeros(rows)}),
        features=columns,
        settings=FolderSettings(label=LABEL, task="regression", missing="mean"),
        show_values=True,
    )
    x, _ = checker.select_rows()
    if not imputes:
        _refuse_missing(table, x, columns)
    return x


def _refuse_missing(table: Table, x: Floats, columns: Sequence[str]) -> None:
    """Raises DataError that names the first missing value of each column that has one."""
    found = []
    for name, column in zip(columns, x.T, strict=True):
        gaps = np.flatnonzero(np.isnan(column))
        if len(gaps):
            place = table.find_cell(int(gaps[0]), name)[0]
            more = f" ({len(gaps) - 1} more like it in this column)" if len(gaps) > 1 else ""
            found.append(f"{table.path}, {place}, column {name}: the value is missing{more}")
    if found:
        remedy = "the run does not impute: fill these values, leave the rows out, or train with data.missing=mean"
        raise DataError("\n".join([*found, remedy]))
