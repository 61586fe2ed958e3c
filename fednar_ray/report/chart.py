"""A chart of a few curves, drawn by matplotlib or as SVG for a notebook."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fednar_ray.report.plots import widen
from fednar_ray.report.svg import draw

COLORS = ("#d1495b", "#30638e", "#6a994e", "#b07aa1", "#e09f3e", "#7f7f7f")
DASHES = ("-", "--")
"""The styles of lines, by turns, so that two curves that coincide are both visible."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve of a chart.

    Attributes:
        label: What it shows.
        x: Where its points lie, [n].
        y: Its values, [n]; NaN leaves a point out.
        band: The lowest and the highest values around it, [n] each; None for a single curve.
        dots: Whether its points are drawn alone, without a line between them.
    """

    label: str
    x: Values
    y: Values
    band: tuple[Values, Values] | None = None
    dots: bool = False

    def drop_missing(self) -> "Line":
        """Returns the line without the points that have no finite value."""
        kept = np.isfinite(self.y)
        band = None if self.band is None else (self.band[0][kept], self.band[1][kept])
        return Line(label=self.label, x=self.x[kept], y=self.y[kept], band=band, dots=self.dots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A panel with curves over whole numbers, such as rounds."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws the chart with matplotlib.

        Args:
            axes: The axes to draw into; None: new ones, which a notebook shows.

        Returns:
            The axes.
        """
        if axes is None:
            from matplotlib import pyplot  # only here, since it chooses a window system

            axes = pyplot.subplots(layout="constrained")[1]
        for index, (line, color) in enumerate(zip(self.lines, _iter_colors(self.lines), strict=True)):
            shown = line.drop_missing()
            style: Any = {"color": color, "linestyle": "" if line.dots else DASHES[index % len(DASHES)]}
            marker = "o" if line.dots or len(shown.x) == 1 else None
            axes.plot(shown.x, shown.y, label=line.label, marker=marker, **style)
            if shown.band is not None:
                axes.fill_between(shown.x, *shown.band, color=color, alpha=0.15, linewidth=0)
        axes.set(title=self.title, xlabel=self.x_label, ylabel=self.y_label)
        axes.grid(alpha=0.3)
        if all(np.array_equal(line.x, np.round(line.x)) for line in self.lines):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if self.lines:
            widen(axes)
        if self.lines:
            axes.legend(frameon=False)
        return axes

    def to_svg(self) -> str:
        """Returns the chart as an SVG element. Text and axes take the color of the page; nothing is fetched."""

        def build(axes: Axes) -> None:
            self.plot(axes)
            axes.set_title("")  # it is written above

        if not any(np.isfinite(line.y).any() for line in self.lines):
            return ""
        return draw(build, f"{self.title}: {self.y_label} by {self.x_label}")


def _iter_colors(lines: Sequence[Line]) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(len(lines))]


def describe_files(directory: Path, url: str | None) -> str:
    """Returns where the files of a result are, and how to open it in MLflow, as the last line of its card."""
    here = Path.cwd()
    shown = directory.relative_to(here) if directory.is_relative_to(here) else directory
    return f"files: {shown} · in MLflow: {url or f'fednar ui {directory.name}'}"


def render_card(title: str, rows: Sequence[Sequence[str]], chart: Chart, notes: Sequence[str] = ()) -> str:
    """Returns HTML for a notebook: a title, a table whose first row has the names of the columns, and a chart."""
    head, *body = rows
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    table = f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"
    told = "".join(f"<p>{escape(note)}</p>" for note in notes)
    figure = f'<div style="max-width: 520px">{chart.to_svg()}</div>'
    return f"<div><p><b>{escape(title)}</b></p>{table}{told}{figure}</div>"
