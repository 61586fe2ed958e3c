"""Decides what the texts of a column are: numbers, booleans, dates or the levels of a category."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fednar_ray.core.fednar_table_schema import format_level, parse_boolean, parse_date
from fednar_ray.data.examples import Array
from fednar_ray.data.sources.arrow_columns import is_number
from fednar_ray.data.sources.text_format import DECIMAL_COMMA, DECIMAL_POINT

Rows = npt.NDArray[np.int64]

THOUSANDS = r"[+-]?[1-9]\d{0,2}(,\d{3})+$"

PARSERS: dict[str, Callable[[str], float | None]] = {"boolean": parse_boolean, "date": parse_date}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a file.

    Attributes:
        kind: number, boolean, date or category; empty if all values are missing; mixed if texts of several kinds occur.
        values: Numbers [n…]; of a category, indices of its levels; of a mixed column, its texts. NaN is missing.
        levels: The sorted texts of a category.
    """

    kind: str
    values: Array
    levels: tuple[str, ...] = ()


def build_category(cells: Sequence[object]) -> Column:
    """Builds a category from cells of any type."""
    texts = [format_level(cell) for cell in cells]
    levels = sorted({text for text in texts if text is not None})
    codes: dict[str | None, float] = {None: np.nan, **{level: float(i) for i, level in enumerate(levels)}}
    return Column(kind="category", values=np.array([codes[text] for text in texts]), levels=tuple(levels))


def find_decimal_commas(column: Column) -> Rows:
    """Finds the rows of texts like 1,5 in a column of texts.

    None are found if the column also has texts that are no numbers at all, or beside numbers only such as 1,234, whose
    comma may separate thousands.
    """
    texts = _list_texts(column)
    other = {text for text in texts if text is not None and not is_number(text)}
    if not other or not all(re.match(DECIMAL_COMMA, text) for text in other):
        return np.empty(0, dtype=np.int64)
    if column.kind == "mixed" and all(re.match(THOUSANDS, text) for text in other):
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero([text in other for text in texts])


def find_decimal_points(column: Column) -> Rows:
    """Finds the rows of numbers with a decimal point, such as 1.5."""
    if column.kind in ("category", "mixed"):
        return np.flatnonzero(
            [text is not None and re.match(DECIMAL_POINT, text) is not None for text in _list_texts(column)]
        )
    there = np.isfinite(column.values) & (column.kind == "number")
    return np.flatnonzero(there & (column.values != np.round(column.values)))


def _list_texts(column: Column) -> list[str | None]:
    """Lists the texts of a category or a mixed column, of which None is missing; empty for other kinds."""
    if column.kind == "category":
        return [None if np.isnan(code) else column.levels[int(code)] for code in column.values]
    return list(map(format_level, column.values.tolist())) if column.kind == "mixed" else []


def find_kind(cells: Array, wanted: str | None, *, is_label: bool) -> Column:
    """Determines the kind of a column of texts.

    Args:
        cells: The texts [n]; None is missing.
        wanted: The kind that the settings name; None: it follows from the texts.
        is_label: Whether the column is the label, whose texts name classes even if they are yes and no, or dates.
    """
    if wanted == "category":
        return build_category(cells.tolist())
    found = {text for text in map(format_level, cells.tolist()) if text is not None}
    if not found:
        return Column(kind="empty", values=np.full(len(cells), np.nan))
    for kind, parse in PARSERS.items():
        if wanted in (None, kind) and (not is_label or wanted == kind):
            numbers = {text: parse(text) for text in found}
            if all(number is not None for number in numbers.values()):
                values = [np.nan if (text := format_level(cell)) is None else numbers[text] for cell in cells.tolist()]
                return Column(kind=kind, values=np.array(values, dtype=np.float64))
    if wanted is not None or any(is_number(text) for text in found):
        return Column(kind="mixed", values=cells)
    return build_category(cells.tolist())
