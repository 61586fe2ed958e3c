"""Converts columns of Arrow tables, from Parquet and text files, to NumPy arrays of numbers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.core.errors import DataError, first_line
from fednar_ray.core.fednar_table_schema import MISSING
from fednar_ray.data.examples import Array

MISSING_IN_TEXT = [*MISSING]
"""The texts that mean a missing value."""
NUMBER = r"^\s*[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:inf|infinity|nan))\s*$"
"""Matches a text that is a number."""

FindCell = Callable[[int, str], tuple[str, str | None]]
"""Finds a cell in its file by row, from 0, and column. Returns its place, such as ``line 7``, and its text if known."""


def name_row(row: int, column: str) -> tuple[str, None]:
    """Returns a cell's place by the number of its row, for files that have no lines."""
    return f"row {row + 1}", None


def read_parquet(path: Path) -> tuple[Any, FindCell]:
    """Reads a Parquet file as an Arrow table. Raises DataError if it cannot be read."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path).read(), name_row
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from None


def is_numeric(kind: Any) -> bool:
    """Returns whether an Arrow type is one of numbers: integers, floats, booleans, or nothing but nulls."""
    import pyarrow as pa

    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind))


def is_date(kind: Any) -> bool:
    """Returns whether an Arrow type is one of dates or of moments in time."""
    import pyarrow as pa

    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))


def is_number(text: str) -> bool:
    """Returns whether a text is a number."""
    return re.match(NUMBER.replace("(?i:", "(?:"), text, re.IGNORECASE) is not None


def to_numpy(path: Path, name: str, column: Any) -> Array:
    """Converts a column of an Arrow table to a NumPy array.

    Args:
        path: The file, for messages.
        name: The column's name, for messages.
        column: Numbers, decimals, booleans, dates or text. It may be dictionary-encoded.

    Returns:
        float64 with NaN for missing values; dates become days since 1970-01-01. Text that is not all numbers becomes an
        array of objects, so that ``find_text`` can locate the cells that are not numbers.

    Raises:
        DataError: The column has another type, such as lists.
    """
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    types = pa.types
    if types.is_string_view(column.type):
        column = column.cast(pa.string())
    if types.is_string(column.type) or types.is_large_string(column.type):
        column = _parse_text(column)
        if not types.is_floating(column.type):
            return np.asarray(column.to_pylist(), dtype=object)
    elif is_date(column.type):
        micros = column.cast(pa.timestamp("us"), safe=False).to_numpy().astype("datetime64[us]")
        return np.where(np.isnat(micros), np.nan, micros.astype(np.int64) / 86_400_000_000)
    elif types.is_decimal(column.type) or is_numeric(column.type):
        column = compute.cast(column, pa.float64(), safe=False)  # a whole number beyond 2^53 is rounded
    else:
        remedy = "store it as numbers, or leave it out of data.features"
        raise DataError(f"{path}: column {name} holds {column.type}, but numbers are needed; {remedy}")
    numbers: Array = column.to_numpy()
    return numbers


def _parse_text(column: Any) -> Any:
    """Converts text to float64, with null for missing values, if all of it is numbers.

    Other text is returned unchanged.
    """
    import pyarrow as pa
    from pyarrow import compute

    trimmed = compute.utf8_trim_whitespace(column)
    missing = compute.is_in(trimmed, value_set=pa.array(MISSING_IN_TEXT, type=column.type))
    filled = compute.if_else(missing, pa.scalar(None, column.type), trimmed)
    if compute.all(compute.match_substring_regex(filled, NUMBER)).as_py() is not False:
        return filled.cast(pa.float64())
    return column


def find_text(column: Array) -> npt.NDArray[np.int64]:
    """Returns the rows of an array of objects whose text is neither a number nor missing."""
    import pyarrow as pa
    from pyarrow import compute

    text = pa.array(column.tolist(), pa.string())
    trimmed = compute.utf8_trim_whitespace(text)
    valid = compute.or_kleene(
        compute.match_substring_regex(trimmed, NUMBER), compute.is_in(trimmed, value_set=pa.array(MISSING_IN_TEXT))
    )
    rows: npt.NDArray[np.int64] = np.flatnonzero(~compute.fill_null(valid, True).to_numpy(zero_copy_only=False))
    return rows
