"""Tables for a terminal: none is wider than it, and none cuts what it shows."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment
    from rich.table import Table

GAP = 2  # spaces between two columns


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: Its heading, and its key in the rows.
        right: Whether its cells are aligned to the right.
        least: The width that its cells are left with at least if they are text that may wrap; None: they never wrap.
    """

    name: str
    right: bool = False
    least: int | None = None


def print_table(
    console: "Console",
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, str]],
    *,
    title: str | None = None,
    repeated: int = 1,
) -> None:
    """Prints a table, below each other as several ones if the columns do not fit beside each other.

    Args:
        console: Where to print it.
        columns: The columns.
        rows: The cells of each row, by the names of the columns. A cell may have several lines.
        title: A line above it.
        repeated: How many of the first columns each of the tables has: those that say what a row is.
    """
    if title is not None:
        console.print("\n".join(textwrap.wrap(title, console.width)), style="bold", markup=False)
    widths = {column.name: _measure(column, rows) for column in columns}
    others = max((_get_least(column, widths) for column in columns[repeated:]), default=0)
    name = columns[0].name  # of what a row is, which is folded if nothing fits beside it
    widths[name] = min(widths[name], max(console.width - GAP - others, len(name)))
    for index, group in enumerate(_split(columns, widths, repeated, console.width)):
        if index:
            console.print()
        console.print(_WithoutTrailingSpaces(_build(group, rows, widths, console.width)))


@dataclass(frozen=True, slots=True)
class _WithoutTrailingSpaces:
    """What rich prints of a table, whose cells rich fills with spaces, also at the end of a line."""

    table: "Table"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[Segment]":
        from rich.segment import Segment

        for line in console.render_lines(self.table, options, pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                yield from line[:-1]
                yield line[-1]._replace(text=line[-1].text.rstrip())
            yield Segment.line()


def _measure(column: Column, rows: Sequence[Mapping[str, str]]) -> int:
    """Returns the width of a column's longest line. A heading wraps, so that only its longest word counts."""
    from rich.cells import cell_len

    cells = [line for row in rows for line in row[column.name].splitlines()]
    return max(cell_len(text) for text in (*column.name.split(), *cells))


def _split(
    columns: Sequence[Column], widths: Mapping[str, int], repeated: int, room: int
) -> Iterator[Sequence[Column]]:
    """Yields the columns of each table: the repeated ones, and as many others as fit beside them."""
    first = list(columns[:repeated])
    group = list(first)
    for column in columns[repeated:]:
        if group[len(first) :] and _add_up([*group, column], widths) > room:
            yield group
            group = list(first)
        group.append(column)
    yield group


def _add_up(columns: Sequence[Column], widths: Mapping[str, int]) -> int:
    """Returns the least width of a table."""
    return sum(_get_least(column, widths) for column in columns) + GAP * (len(columns) - 1)


def _get_least(column: Column, widths: Mapping[str, int]) -> int:
    return widths[column.name] if column.least is None else min(widths[column.name], column.least)


def _build(
    columns: Sequence[Column], rows: Sequence[Mapping[str, str]], widths: Mapping[str, int], room: int
) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    spare = room - _add_up(columns, widths)
    for column in columns:
        least = _get_least(column, widths)
        wanted = max(widths[column.name], cell_len(column.name))
        width = min(wanted, least + max(spare, 0), room)
        spare -= width - least
        heading = Text("\n".join(textwrap.wrap(column.name, width)))
        table.add_column(heading, justify="right" if column.right else "left", width=width, overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[column.name], overflow="fold") for column in columns))
    return table
