"""Decides what the texts of a column are: numbers, booleans, dates or the levels of a category."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fednar_ray.core.fednar_table_schema import format_level, parse_boolean, parse_date
from fednar_ray.data.examples import Array
from fednar_ray.data.sources.arrow_columns import is_number
from fednar_ray.data.sources.text_format import NUMBER_WITH_COMMA

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


def find_decimal_commas(column: Column) -> npt.NDArray[np.int64]:
    """Finds the rows of a category with numbers like 1,5; none if some of its levels are no numbers at all."""
    numbers = [re.match(NUMBER_WITH_COMMA, level) is not None for level in column.levels]
    if column.kind != "category" or not all(numbers) or not any("," in level for level in column.levels):
        return np.empty(0, dtype=np.int64)
    codes = [code for code, level in enumerate(column.levels) if "," in level]
    return np.flatnonzero(np.isin(column.values, codes))


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
