"""Reads tables from .csv, .tsv, .parquet and .npz files as arrays of numbers, and locates bad values in them."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.config.tables import CsvSettings, TabularSettings
from fednar_ray.core.errors import DataError
from fednar_ray.data.examples import Array
from fednar_ray.data.sources.arrays import read_npz
from fednar_ray.data.sources.arrow_columns import FindCell, is_date, name_row, read_parquet, to_numpy
from fednar_ray.data.sources.cell_kinds import Column, build_category, find_kind
from fednar_ray.data.sources.text_files import OPENERS, SEPARATORS, explain_separator, read_text

FORMATS = ".csv, .tsv, .parquet or .npz"
SPREADSHEETS = (".xlsx", ".xls", ".ods")
"""Endings of files that are no tables until they are exported."""


# ——— files ———


def find_extension(path: Path) -> str | None:
    """Returns the part of a file's name that tells its format, such as ``.CSV`` or ``.csv.gz``; None if not a table."""
    lower = path.name.lower()
    known = [".parquet", ".npz", *(kind + packed for kind in SEPARATORS for packed in OPENERS)]
    return next((path.name[-len(extension) :] for extension in known if lower.endswith(extension)), None)


def derive_client_name(path: Path) -> str:
    """Returns the name of the client whose file this is: the file's name without its extension."""
    return path.name.removesuffix(find_extension(path) or "")


def list_tables(directory: Path) -> tuple[list[Path], list[str]]:
    """Lists the tables in a directory, ordered by client name, and the names of all other files and directories."""
    paths, others = [], []
    for path in sorted(directory.iterdir()):
        if path.name[0] != "." and find_extension(path) is not None:
            paths.append(path)
        else:
            others.append(path.name + ("/" if path.is_dir() else ""))
    return sorted(paths, key=derive_client_name), others


# ——— columns ———


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns of a file. Each has one row per example."""

    path: Path
    columns: Mapping[str, Array]
    find_cell: FindCell
    kinds: Mapping[str, Column] = field(default_factory=dict)  # of files with named columns

    def describe_bad_values(self, column: str, rows: npt.NDArray[np.int64], why: str, *, show_values: bool) -> str:
        """Builds the message about bad values of a column.

        Args:
            column: The column.
            rows: The rows of the bad values, from 0; at least one.
            why: What is wrong with them: "is not a number".
            show_values: Whether the message shows the first value.

        Returns:
            The file, the place and the value of the first bad value, and how many more there are.
        """
        place, text = self.find_cell(int(rows[0]), column)
        value = repr(text if text is not None else self.columns[column][rows[:1]].tolist()[0])
        more = f" ({len(rows) - 1} more like it in this column)" if len(rows) > 1 else ""
        shown = value[:60] if show_values else "the value"
        return f"{self.path}, {place}, column {column}: {shown} {why}{more}"


def read_columns(path: Path, settings: TabularSettings, groups: str | None = None) -> tuple[Table, tuple[str, ...]]:
    """Reads the inputs and the label of a file.

    Args:
        path: The file.
        settings: The ``data`` section. Without ``features``, all columns but the label and the excluded ones are
            inputs, of .npz files the array ``x``.
        groups: A column that is read as a category and is no input, of files with named columns.

    Returns:
        The columns, and the names of the inputs. NaN is a missing value. Text that is not a number is still text.

    Raises:
        DataError: The file cannot be read, has no such column, or a column's type cannot be converted to numbers. The
            message names the file.
    """
    features, label, types = settings.features, settings.label, settings.types
    if (find_extension(path) or "").lower() == ".npz":
        names = tuple(features or ("x",))
        return Table(path=path, columns=read_npz(path, [*names, label]), find_cell=name_row), names
    others = () if groups is None else (groups,)
    types = {**types, **dict.fromkeys(others, "category")}
    categories = [name for name, kind in types.items() if kind == "category"]
    found, find_cell = read_arrow(path, categories, settings.csv)
    left_out = {label, *settings.exclude, *others}
    names = tuple(features) if features is not None else tuple(n for n in found.column_names if n not in left_out)
    _check_header(path, found.column_names, (*names, label, *others), named=features is not None)
    kinds = {
        name: convert_column(path, name, found.column(name), types.get(name), is_label=name == label)
        for name in dict.fromkeys((*names, label, *others))
    }
    columns = {name: column.values for name, column in kinds.items()}
    return Table(path=path, columns=columns, find_cell=find_cell, kinds=kinds), names


def read_arrow(path: Path, categories: Sequence[str] = (), written: CsvSettings | None = None) -> tuple[Any, FindCell]:
    """Reads a file with named columns as an Arrow table.

    Args:
        path: A .csv, .tsv or .parquet file.
        categories: Columns of text files that stay text even if all their values are numbers.
        written: How text files are written. What is null, or all if it is None, is detected.

    Returns:
        The table, and a function that finds a cell in the file.

    Raises:
        DataError: The file cannot be read. The message names it.
    """
    extension = (find_extension(path) or "").lower()
    return read_parquet(path) if extension == ".parquet" else read_text(path, extension, categories, written)


def convert_column(path: Path, name: str, column: Any, wanted: str | None, *, is_label: bool) -> Column:
    """Converts an Arrow column, and determines its kind.

    Args:
        path: The file, for messages.
        name: The column's name, for messages.
        column: The column as ``read_arrow`` returns it.
        wanted: The kind that the settings name; None: it follows from the values.
        is_label: Whether the column is the label; see ``find_kind``.

    Raises:
        DataError: The column has a type that is neither numbers, dates, booleans nor text, such as lists.
    """
    import pyarrow as pa

    if wanted == "category":
        return build_category(column.to_pylist())
    values = to_numpy(path, name, column)
    if values.dtype == object:
        return find_kind(values, wanted, is_label=is_label)
    kind = "date" if is_date(column.type) else "boolean" if pa.types.is_boolean(column.type) else "number"
    return Column(kind="empty" if np.isnan(values).all() else wanted or kind, values=values)


def _check_header(path: Path, header: Sequence[str], wanted: Sequence[str], *, named: bool) -> None:
    """Checks that the header has each wanted column once. ``named``: whether the settings name the inputs."""
    missing = [name for name in wanted if name not in header]
    if missing:
        hint = explain_separator(header) or _explain_spelling(missing, header)
        raise DataError(f"{path}: has no column {', '.join(missing)}; it has {', '.join(header)}{hint}")
    for name in wanted:
        places = [str(i + 1) for i, other in enumerate(header) if other == name]
        if len(places) > 1:
            times = "twice" if len(places) == 2 else f"{len(places)} times"
            what = f"the header names {name} {times}" if name else "the header has columns without a name"
            raise DataError(f"{path}: {what} (columns {' and '.join(places)}); give each column a different name")
        if not name and not named:
            raise DataError(f"{path}: column {places[0]} has no name; name it, or name the inputs in data.features")


def _explain_spelling(missing: Sequence[str], header: Sequence[str]) -> str:
    """Returns a hint if the header has the missing names with other blanks or capitals, or names like them."""
    spelled = {name.strip().casefold(): name for name in header}
    found = [(name, spelled[name.strip().casefold()]) for name in missing if name.strip().casefold() in spelled]
    if found:
        renamed = " and ".join(f"{other!r} as {name!r}" for name, other in found)
        return f"; write {renamed}, because all files must use the same names"
    close = [other for name in missing for other in difflib.get_close_matches(name, header, n=1)]
    return f"; did you mean {' and '.join(dict.fromkeys(close))}?" if close else ""
