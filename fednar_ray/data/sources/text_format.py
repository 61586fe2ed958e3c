"""Detects how a text file of a table is written: its encoding, its separator and its decimal sign."""

import codecs
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from fednar_ray.core.errors import DataError

log = logging.getLogger("fednar_ray")

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # tested before UTF-16, whose mark is the start of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
CANDIDATES = (",", ";", "\t", "|")
"""The separators that are detected."""
SAMPLED = 100  # records from which a separator is detected
DECIMAL_COMMA = r"^\s*([+-]?\d+),(\d+([eE][+-]?\d+)?)\s*$"
NUMBER_WITH_COMMA = r"^\s*[+-]?\d+(,\d+)?\s*$"
DECIMAL_POINT = r"^\s*[+-]?\d*\.\d+([eE][+-]?\d+)?\s*$"


@lru_cache(maxsize=1024)  # a file is read several times, but its encoding should be logged once
def find_encoding(path: Path, opener: Callable[..., Any], size: int, changed: int) -> str:
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


def find_separator(path: Path, sample: Callable[[str], Sequence[Sequence[str]]], default: str) -> str:
    """Detects the separator: the one that splits each record into the same number of values, more than one.

    Args:
        path: The file, for messages.
        sample: Returns the first records, header included, as a separator splits them.
        default: The separator of the file's extension, which is taken if it fits.

    Raises:
        DataError: No separator fits, or several do. A file that the default separates, or that has only one column, is
            not refused: whoever reads it can say what is wrong.
    """
    records = {mark: sample(mark) for mark in CANDIDATES}
    fitting = [mark for mark, found in records.items() if len({len(r) for r in found}) == 1 and len(found[0]) > 1]
    if default in fitting:
        return default
    if len(fitting) == 1:
        return fitting[0]
    separating = [mark for mark, found in records.items() if found and len(found[0]) > 1]
    if not fitting and (default in separating or not separating):
        return default
    names = " and ".join(map(repr, fitting))
    found = f"{names} would both separate its values" if fitting else "no separator gives all rows as many values"
    raise DataError(f"{path}: {found}; set data.csv.separator, or write it with commas")


def has_decimal_commas(columns: Sequence[Any]) -> bool:
    """Returns whether Arrow columns of text write numbers as 1,5: at least one does, and none writes 1.5."""
    from pyarrow import compute

    def matches(column: Any, pattern: str, combine: Callable[..., Any]) -> bool:
        return combine(compute.match_substring_regex(column, pattern)).as_py() is True

    return not any(matches(column, DECIMAL_POINT, compute.any) for column in columns) and any(
        matches(column, ",", compute.any) and matches(column, NUMBER_WITH_COMMA, compute.all) for column in columns
    )


def replace_decimal_commas(column: Any) -> Any:
    """Returns an Arrow column of text in which numbers like 1,5 are written as 1.5."""
    from pyarrow import compute

    return compute.replace_substring_regex(column, DECIMAL_COMMA, r"\1.\2")


def find_decimal_point(column: Any) -> int | None:
    """Returns the first row of an Arrow column of text with a number like 1.5; None if there is none."""
    from pyarrow import compute

    row = compute.index(compute.match_substring_regex(column, DECIMAL_POINT), True).as_py()
    return None if row < 0 else int(row)
