"""A chart of a few curves, drawn by matplotlib or as SVG for a notebook."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fednar_ray.report.plots import LEAST_SPAN, widen

COLORS = ("#d1495b", "#3f88c5", "#6a994e", "#b07aa1", "#e09f3e", "#8c8c8c")
"""Mid-tones, which are visible on white and on black."""
DASHES = (("-", ""), ("--", "6 3"))
"""The styles of lines, by turns, so that two curves that coincide are both visible: matplotlib's, and SVG's."""
WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 44, 36  # margins of the panel
MOST_LINES, LEGEND_COLUMNS = 6, 3  # in SVG, so that the legend stays readable

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
            style: Any = {"color": color, "linestyle": "" if line.dots else DASHES[index % len(DASHES)][0]}
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
        lines = [line.drop_missing() for line in self.lines[:MOST_LINES]]
        lines = [line for line in lines if len(line.x)]
        if not lines:
            return ""
        frame = _Frame.around(lines)
        parts = [*frame.draw_axes(self.x_label, self.y_label), *_draw_legend(lines)]
        for index, (line, color) in enumerate(zip(lines, _iter_colors(lines), strict=True)):
            parts += frame.draw_line(line, color, DASHES[index % len(DASHES)][1])
        style = f"max-width: {WIDTH}px; width: 100%; font: 11px sans-serif"
        label = escape(f"{self.title}: {self.y_label} by {self.x_label}")
        return (
            f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}" style="{style}" fill="currentColor" '
            f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
        )


def _iter_colors(lines: Sequence[Line]) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(len(lines))]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The panel of an SVG: from numbers to pixels."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @classmethod
    def around(cls, lines: Sequence[Line]) -> "_Frame":
        """Returns the frame that all lines fit into, with some space above and below."""
        x = np.concatenate([line.x for line in lines])
        y = np.concatenate([part for line in lines for part in (line.y, *(line.band or ()))])
        low, high = float(y.min()), float(y.max())
        space = max(0.05 * (high - low), (LEAST_SPAN * max(abs(low), abs(high)) - (high - low)) / 2) or 1.0
        x_low, x_high = float(x.min()), float(x.max())
        return cls(x_low, x_high if x_high > x_low else x_low + 1, low - space, high + space)

    def to_pixels(self, x: Values, y: Values) -> list[str]:
        """Returns points as ``x,y`` in pixels."""
        across = LEFT + (x - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)
        return [f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True)]

    def draw_line(self, line: Line, color: str, dashes: str) -> list[str]:
        """Draws a line with its band, or its dots."""
        points, parts = self.to_pixels(line.x, line.y), []
        if line.band is not None:
            low, high = (self.to_pixels(line.x, side) for side in line.band)
            parts.append(f'<polygon points="{" ".join([*low, *high[::-1]])}" fill="{color}" opacity="0.2"/>')
        if line.dots or len(points) == 1:
            parts += ['<circle cx="{}" cy="{}" r="3" fill="{}"/>'.format(*point.split(","), color) for point in points]
        else:
            style = f'fill="none" stroke="{color}" stroke-width="1.8" stroke-dasharray="{dashes}"'
            parts.append(f'<polyline points="{" ".join(points)}" {style}/>')
        return parts

    def draw_axes(self, x_label: str, y_label: str) -> list[str]:
        """Draws the two axes, with their ends as numbers and their labels."""
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        path = f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="currentColor" opacity="0.5"/>'
        numbers = [
            _write(LEFT - 4, TOP + 8, f"{self.y_high:.3g}", "end"),
            _write(LEFT - 4, bottom, f"{self.y_low:.3g}", "end"),
            _write(LEFT, bottom + 14, f"{self.x_low:g}"),
            _write(right, bottom + 14, f"{self.x_high:g}", "end"),
        ]
        middle = (TOP + bottom) / 2
        upright = f'<g transform="rotate(-90 14 {middle})">{_write(14, middle, y_label, "middle")}</g>'
        return [path, *numbers, _write((LEFT + right) / 2, bottom + 28, x_label, "middle"), upright]


def _write(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _draw_legend(lines: Sequence[Line]) -> list[str]:
    """Draws the labels in two rows above the panel, each behind a mark of its color."""
    step, parts = (WIDTH - LEFT - RIGHT) / LEGEND_COLUMNS, []
    for index, (line, color) in enumerate(zip(lines, _iter_colors(lines), strict=True)):
        x, y = LEFT + index % LEGEND_COLUMNS * step, 6 + index // LEGEND_COLUMNS * 17
        parts.append(f'<rect x="{x:g}" y="{y}" width="10" height="10" rx="2" fill="{color}"/>')
        parts.append(_write(x + 14, y + 9, line.label))
    return parts


def render_card(title: str, rows: Sequence[Sequence[str]], chart: Chart, notes: Sequence[str] = ()) -> str:
    """Returns HTML for a notebook: a title, a table whose first row has the names of the columns, and a chart."""
    head, *body = rows
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    table = f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"
    told = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f"<div><p><b>{escape(title)}</b></p>{table}{told}{chart.to_svg()}</div>"
