"""Charts for notebooks: valid SVG that a dark and a light page can show, and the same curves by matplotlib."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from fednar_ray.report.chart import COLORS, MOST_LINES, WIDTH, Chart, Line, render_card

X = np.arange(5.0)


def build_chart(*lines: Line) -> Chart:
    return Chart(title="<digits>", x_label="round", y_label="test accuracy", lines=lines)


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314 - our own


def find(svg: str, kind: str) -> list[ElementTree.Element]:
    return parse(svg).findall(f".//{{http://www.w3.org/2000/svg}}{kind}")


def test_a_line_has_a_point_per_value_inside_of_the_panel() -> None:
    svg = build_chart(Line(label="fednar & others", x=X, y=np.array([0.1, 0.4, np.nan, 0.2, np.inf]))).to_svg()
    (line,) = find(svg, "polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert len(points) == 3  # values that are not finite are left out
    assert all(0 <= x <= WIDTH for x, _ in points)
    assert points[1][1] < points[2][1] < points[0][1]  # down is a larger number
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert "fednar & others" in [text.text for text in find(svg, "text")]


def test_a_chart_takes_the_color_of_the_page_and_fetches_nothing() -> None:
    svg = build_chart(Line(label="a", x=X, y=X, band=(X - 1, X + 1)), Line(label="b", x=X, y=X, dots=True)).to_svg()
    assert parse(svg).attrib["fill"] == "currentColor"
    colors = set(re.findall(r"#[0-9a-f]{6}", svg))
    assert colors == set(COLORS[:2])
    for color in colors:  # not close to black or white
        mean = sum(int(color[i : i + 2], 16) for i in (1, 3, 5)) / 3
        assert 80 < mean < 190
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert len(find(svg, "circle")) == len(X)
    assert len(find(svg, "polygon")) == 1


@pytest.mark.parametrize("values", [[], [np.nan], [0.5], [0.0, 0.0], [-1.0, -1.0]])
def test_few_or_equal_values_are_drawn_or_left_out(values: list[float]) -> None:
    y = np.array(values)
    chart = build_chart(Line(label="a", x=np.arange(float(len(y))), y=y))
    svg = chart.to_svg()
    assert bool(svg) == bool(np.isfinite(y).any())
    assert "nan" not in svg
    chart.plot()


def test_differences_by_rounding_are_not_magnified() -> None:
    y = 0.5 + 1e-9 * X
    (line,) = find(build_chart(Line(label="a", x=X, y=y)).to_svg(), "polyline")
    heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    assert max(heights) - min(heights) < 1


def test_more_lines_than_the_legend_holds_are_left_out_of_the_svg_only() -> None:
    chart = build_chart(*(Line(label=str(i), x=X, y=X + i) for i in range(9)))
    assert len(find(chart.to_svg(), "polyline")) == MOST_LINES
    assert len(chart.plot().lines) == 9


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
