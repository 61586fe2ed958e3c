"""Tables from .csv, .tsv, .parquet and .npz files as arrays of numbers, and where in a file a bad value is."""

import bz2
import codecs
import csv
import gzip
import logging
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fednar_ray.core.errors import DataError, first_line
from fednar_ray.data.examples import Array
from fednar_ray.data.sources.arrays import read_npz

log = logging.getLogger("fednar_ray")

Floats = npt.NDArray[np.float64]

PACKED: Mapping[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""How a text file is opened, by its last ending."""
SEPARATORS = {".csv": ",", ".tsv": "\t"}
FORMATS = ".csv, .tsv, .parquet or .npz"
MISSING_IN_TEXT = ["", "?", "NA", "N/A", "NaN", "nan", "null", "NULL"]
TRUE, FALSE = ["1", "true", "True", "TRUE"], ["0", "false", "False", "FALSE"]
NUMBER = r"^\s*[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:inf|infinity|nan))\s*$"
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins as that of UTF-16 does
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def find_ending(path: Path) -> str | None:
    """The part of a file's name that tells its format, as ``.CSV`` or ``.csv.gz``; None where it is no table's."""
    lower = path.name.lower()
    known = [".parquet", ".npz", *(kind + packed for kind in SEPARATORS for packed in PACKED)]
    return next((path.name[-len(ending) :] for ending in known if lower.endswith(ending)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns of a file, all with one row per example."""

    path: Path
    columns: Mapping[str, Array]
    find_cell: Callable[[int, str], tuple[str, str | None]]
    """Where the value of a row and a column is, as ``line 7``, and how it is written there, where that is known."""

    def bad_values(self, column: str, rows: npt.NDArray[np.int64], why: str, *, show_values: bool) -> DataError:
        """An error that names the first of the rows, its value, and how many more there are."""
        place, text = self.find_cell(int(rows[0]), column)
        value = repr(text if text is not None else self.columns[column][rows[:1]].tolist()[0])
        more = f" ({len(rows) - 1} more like it in this column)" if len(rows) > 1 else ""
        shown = value[:60] if show_values else "the value"
        return DataError(f"{self.path}, {place}, column {column}: {shown} {why}{more}")


def read_columns(path: Path, features: Sequence[str] | None, label: str) -> tuple[Table, tuple[str, ...]]:
    """The columns ``features`` and ``label`` of a file, and the names of the features.

    Args:
        path: The file.
        features: Columns or arrays that are inputs; None: all columns but the label, of .npz files the array ``x``.
        label: The column or array to predict.

    Returns:
        The columns, in which text of a .csv, .tsv or .parquet file that is not a number is still text; NaN is missing.

    Raises:
        DataError: It names the file, where it cannot be read, lacks a column, or has one that holds no numbers.
    """
    ending = (find_ending(path) or "").lower()
    if ending == ".npz":
        names = tuple(features or ("x",))
        return Table(path=path, columns=read_npz(path, [*names, label]), find_cell=_row_of_data), names
    found, find_cell = _read_parquet(path) if ending == ".parquet" else _read_text(path, ending)
    names = tuple(features) if features is not None else tuple(name for name in found.column_names if name != label)
    _check_header(path, found.column_names, (*names, label), named=features is not None)
    columns = {name: _to_numpy(path, name, found.column(name)) for name in dict.fromkeys((*names, label))}
    return Table(path=path, columns=columns, find_cell=find_cell), names


def _row_of_data(row: int, column: str) -> tuple[str, None]:
    return f"row {row + 1}", None


def _check_header(path: Path, header: Sequence[str], wanted: Sequence[str], *, named: bool) -> None:
    missing = [name for name in wanted if name not in header]
    if missing:
        hint = _explain_separator(header) or _explain_spelling(missing, header)
        raise DataError(f"{path}: has no column {', '.join(missing)}; it has {', '.join(header)}{hint}")
    for name in wanted:
        places = [str(i + 1) for i, other in enumerate(header) if other == name]
        if len(places) > 1:
            times = "twice" if len(places) == 2 else f"{len(places)} times"
            what = f"the header names {name} {times}" if name else "the header has columns without a name"
            raise DataError(f"{path}: {what} (columns {' and '.join(places)}); give each column a name of its own")
        if not name and not named:
            raise DataError(f"{path}: column {places[0]} has no name; name it, or name the inputs in data.features")


def _explain_separator(header: Sequence[str]) -> str:
    """What may be wrong with a header that is one name."""
    separator = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
    return "" if separator is None else f"; is it separated by {separator!r}? Write it with commas, and 1,5 as 1.5"


def _explain_spelling(missing: Sequence[str], header: Sequence[str]) -> str:
    """Which columns have the names that are missing but for blanks and capitals."""
    spelled = {name.strip().casefold(): name for name in header}
    found = [(name, spelled[name.strip().casefold()]) for name in missing if name.strip().casefold() in spelled]
    renamed = " and ".join(f"{other!r} as {name!r}" for name, other in found)
    return f"; write {renamed}, as all files must spell their columns alike" if found else ""


# ——— text ———


def _read_text(path: Path, ending: str) -> tuple[Any, Callable[[int, str], tuple[str, str | None]]]:
    """The table of a .csv or .tsv file: columns as numbers where they can be, else as text."""
    import pyarrow as pa

    file = _TextFile(path, ending)
    try:
        file.check()
        table = file.read()
        text = [name for name, column in zip(table.column_names, table.columns, strict=True) if _is_text(column.type)]
        if text:
            table = file.read(as_text=text)
    except UnicodeError as error:
        raise DataError(f"{path}: cannot be read as {file.encoding}: {error}; save it as UTF-8") from None
    except (pa.ArrowException, *DAMAGED) as error:
        raise DataError(f"{path}: cannot be read: {file.explain(error)}") from None
    return table, file.find_cell


class _TextFile:
    """A .csv or .tsv file, which may be packed."""

    def __init__(self, path: Path, ending: str) -> None:
        self._path, kind = path, ending[:4]
        self._open, self._separator = PACKED[ending[4:]], SEPARATORS[kind]
        self.encoding = "UTF-8"

    def check(self) -> None:
        """Finds out the encoding. Raises DataError for a file that is empty, or holds no text."""
        stat = self._path.stat()
        self.encoding = _find_encoding(self._path, self._open, stat.st_size, stat.st_mtime_ns)

    def read(self, as_text: Sequence[str] = ()) -> Any:
        """The table; columns ``as_text`` are not turned into numbers. Where types change on the way, all are text."""
        import pyarrow as pa
        from pyarrow import csv as arrow

        options = arrow.ConvertOptions(
            null_values=MISSING_IN_TEXT, strings_can_be_null=True, column_types=dict.fromkeys(as_text, pa.string())
        )
        parse = arrow.ParseOptions(delimiter=self._separator, newlines_in_values=True)
        encoding = "utf-8" if self.encoding == "utf-8-sig" else self.encoding  # Arrow skips the mark itself
        try:
            with self._open(self._path, "rb") as file:
                return arrow.read_csv(file, arrow.ReadOptions(encoding=encoding), parse, options)
        except pa.ArrowInvalid:  # Arrow takes a column's type from its first megabyte
            header = next(self._records(), (0, []))[1]
            if as_text or not header:
                raise
            return self.read(as_text=header)

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """The lines that are not blank, with the number of each, the first being 1."""
        encoding = "utf-8-sig" if self.encoding == "utf-8" else self.encoding
        with self._open(self._path, "rt", encoding=encoding, newline="") as file:
            lines = csv.reader(file, delimiter=self._separator)
            before = 0
            for record in lines:
                if record:
                    yield before + 1, record
                before = lines.line_num

    def find_cell(self, row: int, column: str) -> tuple[str, str | None]:
        """The line of a row, and what is written in its column."""
        with suppress(csv.Error, StopIteration):
            records = self._records()
            _, header = next(records)
            line, record = next(found for index, found in enumerate(records) if index == row)
            return f"line {line}", record[header.index(column)]
        return _row_of_data(row, column)

    def explain(self, error: Exception) -> str:
        """What is wrong, with the line where that can be found out."""
        with suppress(csv.Error, StopIteration, UnicodeError, *DAMAGED):
            records = self._records()
            _, header = next(records)
            line, record = next(found for found in records if len(found[1]) != len(header))
            return f"line {line} has {len(record)} values, and the header {len(header)}{_explain_separator(header)}"
        return first_line(error)


@lru_cache(maxsize=1024)  # a file is read several times, and its encoding told of once
def _find_encoding(path: Path, opener: Callable[..., Any], size: int, changed: int) -> str:
    with opener(path, "rb") as file:
        start = file.read(4096)
    if not start.strip():
        raise DataError(f"{path}: cannot be read: the file is empty")
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    if marked is not None:
        return marked
    if b"\0" in start:
        raise DataError(f"{path}: cannot be read: it holds bytes that are no text; save it as UTF-8")
    for encoding in ("utf-8", "cp1252", "latin-1"):
        with opener(path, "rb") as file:
            if _can_decode(file, encoding):
                if encoding != "utf-8":
                    log.warning("%s: is not UTF-8; read as %s, as Excel on Windows writes it", path, encoding)
                return encoding
    raise AssertionError("every byte is a character of Latin-1")


def _can_decode(file: IO[bytes], encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in iter(lambda: file.read(1 << 20), b""):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


# ——— Parquet, and Arrow's types ———


def _read_parquet(path: Path) -> tuple[Any, Callable[[int, str], tuple[str, str | None]]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path).read(), _row_of_data
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from None


def _is_text(kind: Any) -> bool:
    """Is it a type that a column of a text file has which is not all numbers?"""
    import pyarrow as pa

    types = pa.types
    return not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind))


def _to_numpy(path: Path, name: str, column: Any) -> Array:
    """float64 with NaN for what is missing; text that is not all numbers as objects. Other types raise DataError."""
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
    elif types.is_decimal(column.type) or not _is_text(column.type):
        column = compute.cast(column, pa.float64(), safe=False)  # a whole number beyond 2^53 is rounded
    else:
        remedy = "store it as numbers, or leave it out of data.features"
        raise DataError(f"{path}: column {name} holds {column.type}, and numbers are needed; {remedy}")
    numbers: Array = column.to_numpy()
    return numbers


def _parse_text(column: Any) -> Any:
    """Text as float64 with null for what is missing, where all of it is numbers; else as it is."""
    import pyarrow as pa
    from pyarrow import compute

    trimmed = compute.utf8_trim_whitespace(column)
    missing = compute.is_in(trimmed, value_set=pa.array(MISSING_IN_TEXT, type=column.type))
    filled = compute.if_else(missing, pa.scalar(None, column.type), trimmed)
    if compute.all(compute.match_substring_regex(filled, NUMBER)).as_py() is not False:
        return filled.cast(pa.float64())
    if compute.all(compute.is_in(filled, value_set=pa.array([*TRUE, *FALSE, None], column.type))).as_py():
        true = compute.is_in(filled, value_set=pa.array(TRUE, column.type)).cast(pa.float64())
        return compute.if_else(compute.is_valid(filled), true, pa.scalar(None, pa.float64()))
    return column


def find_text(column: Array) -> npt.NDArray[np.int64]:
    """The rows of an array of objects whose text is neither a number nor missing."""
    import pyarrow as pa
    from pyarrow import compute

    text = pa.array(column.tolist(), pa.string())
    trimmed = compute.utf8_trim_whitespace(text)
    fine = compute.or_kleene(
        compute.match_substring_regex(trimmed, NUMBER), compute.is_in(trimmed, value_set=pa.array(MISSING_IN_TEXT))
    )
    rows: npt.NDArray[np.int64] = np.flatnonzero(~compute.fill_null(fine, True).to_numpy(zero_copy_only=False))
    return rows
