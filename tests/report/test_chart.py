"""Charts for notebooks: valid SVG that a dark and a light page can show, and the same curves by matplotlib."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from fednar_ray.report.chart import Chart, Line, render_card

X = np.arange(5.0)


def build_chart(*lines: Line) -> Chart:
    return Chart(title="<digits>", x_label="round", y_label="test accuracy", lines=lines)


def test_a_chart_takes_the_color_of_the_page_and_fetches_nothing() -> None:
    svg = build_chart(Line(label="a & b", x=X, y=X, band=(X - 1, X + 1)), Line(label="b", x=X, y=X, dots=True)).to_svg()
    assert ElementTree.fromstring(svg.replace("xlink:", "")).tag == "svg"  # noqa: S314 - our own
    outside = re.sub(r"var\([^)]*\)", "", svg)
    assert not re.findall(r"#[0-9a-f]{6}", outside)
    assert "var(--ink, currentColor)" in svg
    assert "http" not in svg
    assert "a &amp; b" in svg
    assert "&lt;digits&gt;" in svg


@pytest.mark.parametrize("values", [[], [np.nan], [0.5], [0.0, 0.0], [-1.0, -1.0]])
def test_few_or_equal_values_are_drawn_or_left_out(values: list[float]) -> None:
    y = np.array(values)
    chart = build_chart(Line(label="a", x=np.arange(float(len(y))), y=y))
    svg = chart.to_svg()
    assert bool(svg) == bool(np.isfinite(y).any())
    assert "nan" not in svg
    chart.plot()


def test_differences_by_rounding_are_not_magnified() -> None:
    low, high = build_chart(Line(label="a", x=X, y=0.5 + 1e-9 * X)).plot().get_ylim()
    assert high - low > 0.04


def test_matplotlib_draws_the_same_values_into_given_axes() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    drawn = build_chart(Line(label="a", x=X, y=np.array([1, np.nan, 2, 3, 4.0]))).plot(axes)
    assert drawn is axes
    assert drawn.lines[0].get_xydata().tolist() == [[0, 1], [2, 2], [3, 3], [4, 4]]
    assert (drawn.get_xlabel(), drawn.get_ylabel(), drawn.get_title()) == ("round", "test accuracy", "<digits>")


def test_a_card_escapes_what_it_shows() -> None:
    html = render_card("<b>x</b>", [("a", "b"), ("<script>", "1 & 2")], build_chart(), ["<i>"])
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "1 &amp; 2" in html
    assert "&lt;b&gt;x" in html
