"""Reads .csv and .tsv files of any usual encoding, compressed or not, as Arrow tables."""

import bz2
import csv
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from fednar_ray.config.tables import CsvSettings
from fednar_ray.core.errors import DataError, first_line
from fednar_ray.data.sources.arrow_columns import MISSING_IN_TEXT, FindCell, is_numeric, name_row
from fednar_ray.data.sources.text_format import (
    SAMPLED,
    find_decimal_point,
    find_encoding,
    find_separator,
    has_decimal_commas,
    replace_decimal_commas,
)

OPENERS: Mapping[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""The function that opens a text file, by the extension of its compression."""
SEPARATORS = {".csv": ",", ".tsv": "\t"}
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)


def read_text(
    path: Path, extension: str, categories: Sequence[str] = (), written: CsvSettings | None = None
) -> tuple[Any, FindCell]:
    """Reads a .csv or .tsv file.

    Args:
        path: The file.
        extension: Its extension in lower case, with that of its compression: ``.csv.gz``.
        categories: Columns that stay text even if all their values are numbers.
        written: How the file is written. What is None, or all if it is None, is detected.

    Returns:
        The Arrow table, in which a column is text unless all its values are numbers, and a function that finds a cell.

    Raises:
        DataError: The file is empty, damaged, not text, or has rows of different lengths, or its separator cannot be
            detected. The message names the file.
    """
    import pyarrow as pa

    file = _TextFile(path, extension, written or CsvSettings())
    try:
        file.detect_format()
        table = file.read()
        text = [name for name, column in zip(table.column_names, table.columns, strict=True) if _is_other(column)]
        if text and file.detect_decimal(table.column_names):
            table = file.read()
            text = [name for name, column in zip(table.column_names, table.columns, strict=True) if _is_other(column)]
        text += [name for name in categories if name in table.column_names and name not in text]
        if text:
            table = file.convert_numbers(file.read(as_text=text), categories)
    except UnicodeError as error:
        remedy = "save it as UTF-8, or set data.csv.encoding"
        raise DataError(f"{path}: cannot be read as {file.encoding}: {error}; {remedy}") from None
    except (pa.ArrowException, *DAMAGED) as error:
        raise DataError(f"{path}: cannot be read: {file.explain(error)}") from None
    return table, file.find_cell


def _is_other(column: Any) -> bool:
    """Returns whether Arrow read a column as something else than numbers, such as text or dates."""
    return not is_numeric(column.type)


def explain_separator(header: Sequence[str]) -> str:
    """Returns a hint that the separator may be wrong, if the whole header was read as one name; else nothing."""
    separator = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
    return "" if separator is None else f"; is it separated by {separator!r}? Set data.csv.separator"


class _TextFile:
    """A .csv or .tsv file, which may be compressed."""

    def __init__(self, path: Path, extension: str, written: CsvSettings) -> None:
        self._path, kind = path, extension[:4]
        self._open, self._separator = OPENERS[extension[4:]], SEPARATORS[kind]
        self._written, self._decimal = written, written.decimal or "."
        self.encoding = "UTF-8"

    def detect_format(self) -> None:
        """Sets ``encoding`` and the separator. Raises DataError if the file is empty, not text, or none fits."""
        stat, written = self._path.stat(), self._written
        self.encoding = written.encoding or find_encoding(self._path, self._open, stat.st_size, stat.st_mtime_ns)
        self._separator = written.separator or find_separator(self._path, self._sample, self._separator)

    def detect_decimal(self, names: Sequence[str]) -> bool:
        """Returns whether the numbers in columns ``names`` turn out to be written as 1,5, and from now on reads so."""
        if self._written.decimal is not None or self._separator == ",":
            return False
        if has_decimal_commas(self.read(as_text=names).columns):
            self._decimal = ","
        return self._decimal == ","

    def convert_numbers(self, table: Any, categories: Sequence[str]) -> Any:
        """Writes 1,5 as 1.5 in columns that stayed text, if the file writes it so. ``categories`` stay unchanged.

        Raises:
            DataError: A number is written as 1.5 in such a file, where it could also mean 15. The message has one line
                per column.
        """
        if self._decimal == ".":
            return table
        problems = []
        for i, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
            if name not in categories and _is_other(column):
                row = find_decimal_point(column)
                if row is not None:
                    place = f"{self._path}, {self.find_cell(row, name)[0]}, column {name}"
                    remedy = (
                        f"correct it, or data.csv.decimal; if it is no number, set data.types: {{{name}: category}}"
                    )
                    problems.append(f"{place}: has a decimal point, but numbers are written with a comma; {remedy}")
                    continue
                table = table.set_column(i, name, replace_decimal_commas(column))
        if problems:
            raise DataError("\n".join(problems))
        return table

    def _sample(self, separator: str) -> list[list[str]]:
        """Returns the first records as a separator splits them; nothing if they cannot be split."""
        try:
            return [record for _, record in islice(self._iter_records(separator), SAMPLED)]
        except csv.Error:
            return []

    def read(self, as_text: Sequence[str] = ()) -> Any:
        """Reads the table.

        Columns ``as_text`` stay text. If the values of a column change their type after the first megabyte, all columns
        stay text.
        """
        import pyarrow as pa
        from pyarrow import csv as arrow

        options = arrow.ConvertOptions(
            null_values=MISSING_IN_TEXT,
            strings_can_be_null=True,
            column_types=dict.fromkeys(as_text, pa.string()),
            decimal_point=self._decimal,
        )
        parse = arrow.ParseOptions(delimiter=self._separator, newlines_in_values=True)
        encoding = "utf-8" if self.encoding == "utf-8-sig" else self.encoding  # Arrow skips the mark itself
        try:
            with self._open(self._path, "rb") as file:
                return arrow.read_csv(file, arrow.ReadOptions(encoding=encoding), parse, options)
        except pa.ArrowInvalid:  # Arrow decides a column's type from its first megabyte
            header = next(self._iter_records(), (0, []))[1]
            if as_text or not header:
                raise
            return self.read(as_text=header)

    def _iter_records(self, separator: str | None = None) -> Iterator[tuple[int, list[str]]]:
        """Yields the records that are not blank, each with the number of its first line, from 1."""
        encoding = "utf-8-sig" if self.encoding == "utf-8" else self.encoding
        with self._open(self._path, "rt", encoding=encoding, newline="") as file:
            lines = csv.reader(file, delimiter=separator or self._separator)
            before = 0
            for record in lines:
                if record:
                    yield before + 1, record
                before = lines.line_num

    def find_cell(self, row: int, column: str) -> tuple[str, str | None]:
        """Returns the line of a row, from 0, and the text in its column."""
        with suppress(csv.Error, StopIteration):
            records = self._iter_records()
            _, header = next(records)
            line, record = next(found for index, found in enumerate(records) if index == row)
            return f"line {line}", record[header.index(column)]
        return name_row(row, column)

    def explain(self, error: Exception) -> str:
        """Describes why the file cannot be read. It names the line if a line has the wrong number of values."""
        with suppress(csv.Error, StopIteration, UnicodeError, *DAMAGED):
            records = self._iter_records()
            _, header = next(records)
            line, record = next(found for found in records if len(found[1]) != len(header))
            counts = f"line {line} has {len(record)} values, but the header has {len(header)}"
            return f"{counts}{explain_separator(header)}"
        return first_line(error)
