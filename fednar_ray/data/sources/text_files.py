"""Reads .csv and .tsv files of any usual encoding, compressed or not, as Arrow tables."""

import bz2
import codecs
import csv
import gzip
import logging
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from fednar_ray.core.errors import DataError, first_line
from fednar_ray.data.sources.arrow_columns import MISSING_IN_TEXT, FindCell, is_numeric, name_row

log = logging.getLogger("fednar_ray")

OPENERS: Mapping[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""The function that opens a text file, by the extension of its compression."""
SEPARATORS = {".csv": ",", ".tsv": "\t"}
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # tested before UTF-16, whose mark is the start of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: Path, extension: str, categories: Sequence[str] = ()) -> tuple[Any, FindCell]:
    """Reads a .csv or .tsv file.

    Args:
        path: The file.
        extension: Its extension in lower case, with that of its compression: ``.csv.gz``.
        categories: Columns that stay text even if all their values are numbers.

    Returns:
        The Arrow table, in which a column is text unless all its values are numbers, and a function that finds a cell.

    Raises:
        DataError: The file is empty, damaged, not text, or has rows of different lengths. The message names the file.
    """
    import pyarrow as pa

    file = _TextFile(path, extension)
    try:
        file.detect_encoding()
        table = file.read()
        text = [name for name, column in zip(table.column_names, table.columns, strict=True) if _is_other(column)]
        text += [name for name in categories if name in table.column_names and name not in text]
        if text:
            table = file.read(as_text=text)
    except UnicodeError as error:
        raise DataError(f"{path}: cannot be read as {file.encoding}: {error}; save it as UTF-8") from None
    except (pa.ArrowException, *DAMAGED) as error:
        raise DataError(f"{path}: cannot be read: {file.explain(error)}") from None
    return table, file.find_cell


def _is_other(column: Any) -> bool:
    """Returns whether Arrow read a column as something else than numbers, such as text or dates."""
    return not is_numeric(column.type)


def explain_separator(header: Sequence[str]) -> str:
    """Returns a hint that the separator may be wrong, if the whole header was read as one name; else nothing."""
    separator = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
    return "" if separator is None else f"; is it separated by {separator!r}? Write it with commas, and 1,5 as 1.5"


class _TextFile:
    """A .csv or .tsv file, which may be compressed."""

    def __init__(self, path: Path, extension: str) -> None:
        self._path, kind = path, extension[:4]
        self._open, self._separator = OPENERS[extension[4:]], SEPARATORS[kind]
        self.encoding = "UTF-8"

    def detect_encoding(self) -> None:
        """Sets ``encoding``. Raises DataError if the file is empty or is not text."""
        stat = self._path.stat()
        self.encoding = _find_encoding(self._path, self._open, stat.st_size, stat.st_mtime_ns)

    def read(self, as_text: Sequence[str] = ()) -> Any:
        """Reads the table.

        Columns ``as_text`` stay text. If the values of a column change their type after the first megabyte, all columns
        stay text.
        """
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
        except pa.ArrowInvalid:  # Arrow decides a column's type from its first megabyte
            header = next(self._iter_records(), (0, []))[1]
            if as_text or not header:
                raise
            return self.read(as_text=header)

    def _iter_records(self) -> Iterator[tuple[int, list[str]]]:
        """Yields the records that are not blank, each with the number of its first line, from 1."""
        encoding = "utf-8-sig" if self.encoding == "utf-8" else self.encoding
        with self._open(self._path, "rt", encoding=encoding, newline="") as file:
            lines = csv.reader(file, delimiter=self._separator)
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


@lru_cache(maxsize=1024)  # a file is read several times, but its encoding should be logged once
def _find_encoding(path: Path, opener: Callable[..., Any], size: int, changed: int) -> str:
    """Returns a file's encoding. ``size`` and ``changed`` (ns) let the cache notice a file that was rewritten."""
    with opener(path, "rb") as file:
        start = file.read(4096)
    if not start.strip():
        raise DataError(f"{path}: cannot be read: the file is empty")
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    if marked is not None:
        return marked
    if b"\0" in start:
        raise DataError(f"{path}: cannot be read: it holds bytes that are not text; save it as UTF-8")
    for encoding in ("utf-8", "cp1252", "latin-1"):
        with opener(path, "rb") as file:
            if _can_decode(file, encoding):
                if encoding != "utf-8":
                    log.warning("%s: is not UTF-8; read as %s, the encoding of Excel on Windows", path, encoding)
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
