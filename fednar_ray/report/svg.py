"""Draws figures as SVG that is part of a page: it takes the page's colors and fonts, and fits its width."""

import re
from collections.abc import Callable
from io import StringIO
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, PAGE = "#010203", "#010204", "#010205"
COLORS = {
    INK: "var(--ink, currentColor)",
    FAINT: "var(--faint, currentColor)",
    PAGE: "var(--page, transparent)",
    "#d1495b": "var(--red, #d1495b)",
    "#30638e": "var(--blue, #3f88c5)",
    "#6a994e": "var(--green, #6a994e)",
    "#7f7f7f": "var(--gray, #8c8c8c)",
    "#9a9a9a": "var(--gray, #8c8c8c)",
}
"""Colors in figures → the style sheet's, which depend on the reader's color scheme; a notebook, which has none of
these names, takes the second."""
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fednar_ray",
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
WIDTH, HEIGHT = 4.6, 2.75  # inches; two figures are side by side on a wide screen
MARGINS = {"left": 0.14, "right": 0.97, "bottom": 0.17, "top": 0.95}
"""Fixed, because a layout that measures all texts would take as long as the drawing."""
FONT = re.compile(r'font: ([\d.]+)px [^;"]*')
METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
UNUSED_ID = re.compile(r' id="[a-z]+[A-Za-z0-9]*_\d+"')  # groups' ids, which would be repeated on a page


def draw(build: Callable[[Axes], None], label: str, *, height: float = HEIGHT, left: float = MARGINS["left"]) -> Markup:
    """Draws a figure of one panel.

    Args:
        build: Draws into the axes.
        label: What the figure shows, for readers that cannot see it.
        height: Of the figure in inches; it is 4.6 inches wide.
        left: The share of the width that the labels of the vertical axis get.

    Returns:
        The SVG element.
    """

    def build_figure() -> Figure:
        figure = Figure(figsize=(WIDTH, height))
        figure.subplots_adjust(**{**MARGINS, "left": left, "bottom": MARGINS["bottom"] * HEIGHT / height})
        build(figure.subplots())
        return figure

    return render(build_figure, label)


def render(build: Callable[[], Figure], label: str) -> Markup:
    """Renders a figure of any layout. ``build`` is called with the style of pages, which it should not override."""
    with rc_context(STYLE):
        text = StringIO()
        build().savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(_adapt(text.getvalue(), label))  # noqa: S704 - matplotlib escapes the texts of a figure


def _adapt(document: str, label: str) -> str:
    """Turns a document of matplotlib's into an element of a page."""
    opening, _, content = document[document.index("<svg") :].partition(">")
    box = opening[opening.index('viewBox="') :].split('"')[1]
    content = METADATA.sub("", UNUSED_ID.sub("", content))
    for color, variable in COLORS.items():
        content = content.replace(color, variable)
    content = FONT.sub(r"font-size: \1px", content)
    return f'<svg role="img" aria-label="{escape(label)}" viewBox="{box}">{content.strip()}'
