"""The pages of runs, comparisons and searches in a browser: on a phone and a desktop, on light and dark."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from fednar_ray.report.search_report import write_report
from tests.end_to_end.test_browser import QUIET
from tests.report.test_pages import build_pages
from tests.report.test_search_report import build_sampled
from tests.support.servers import PATIENCE_SECONDS

CHROMIUM = shutil.which("chromium")
WIDTHS = {"phone": 390, "desktop": 1200}
SCHEMES = {"light": "1", "dark": "0"}  # as Chromium's setting preferredColorScheme counts them
MEASURE = """<!DOCTYPE html><body><pre id="found"></pre>%s<script>
onload = () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, label = page.querySelector("figure svg text");
    found[frame.name] = {
      width: page.documentElement.scrollWidth,
      ground: frame.contentWindow.getComputedStyle(page.documentElement).backgroundColor,
      ink: frame.contentWindow.getComputedStyle(page.body).color,
      label: frame.contentWindow.getComputedStyle(label).fill,
      boxes: [...page.querySelectorAll(".scroll")].map(each => ({
        cut: each.scrollWidth > each.clientWidth,
        shadows: frame.contentWindow.getComputedStyle(each).backgroundAttachment,
      })),
      figures: [...page.querySelectorAll("figure:not(.wide) svg")].map(each => each.getBoundingClientRect().right),
    };
  }
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script></body>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's package chromium is not installed")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Opens all pages at once in frames of each width, once per color scheme, and returns what they measure."""
    folder = tmp_path_factory.mktemp("pages")
    for name, text in build_pages().items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    write_report(build_sampled(40), folder / "search").page.rename(folder / "search.html")
    frames = "".join(
        f'<iframe name="{name} {size}" src="{name}.html" width="{width}" height="900" frameborder="0"></iframe>'
        for name in ("run", "comparison", "search")
        for size, width in WIDTHS.items()
    )
    (folder / "all.html").write_text(MEASURE % frames, encoding="utf-8")
    return {scheme: measure(folder, setting) for scheme, setting in SCHEMES.items()}


def measure(folder: Path, setting: str) -> dict[str, Any]:
    options = [f"--user-data-dir={folder / setting}", f"--blink-settings=preferredColorScheme={setting}"]
    command = [str(CHROMIUM), "--headless", *QUIET, *options, "--allow-file-access-from-files", "--dump-dom"]
    shown = subprocess.run(
        [*command, (folder / "all.html").as_uri()], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', shown.stdout, re.DOTALL)
    assert found is not None, shown.stdout[-500:]
    measured: dict[str, Any] = json.loads(unescape(found[1]))
    return measured


@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize("name", ["run", "comparison", "search"])
def test_a_page_fits_the_width_of_the_screen(name: str, size: str, measured: dict[str, dict[str, Any]]) -> None:
    found = measured["light"][f"{name} {size}"]
    assert found["width"] <= WIDTHS[size]
    assert found["figures"] or name == "search"
    assert all(right <= WIDTHS[size] for right in found["figures"])


@pytest.mark.parametrize("name", ["comparison", "search"])
def test_a_table_that_is_cut_on_a_phone_has_shadows_that_say_so(name: str, measured: dict[str, dict[str, Any]]) -> None:
    boxes = measured["light"][f"{name} phone"]["boxes"]
    assert any(box["cut"] for box in boxes)
    assert {box["shadows"] for box in boxes} == {"local, local, scroll, scroll, local, scroll"}


@pytest.mark.parametrize("name", ["run", "comparison", "search"])
def test_a_page_and_its_figures_follow_the_color_scheme(name: str, measured: dict[str, dict[str, Any]]) -> None:
    light, dark = (measured[scheme][f"{name} desktop"] for scheme in SCHEMES)
    for found, ground in ((light, "rgb(255, 255, 255)"), (dark, "rgb(15, 20, 26)")):
        assert found["ground"] == ground
        assert found["label"] == found["ink"] != ground
    assert light["ink"] != dark["ink"]
