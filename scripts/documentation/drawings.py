"""Renders the mermaid drawings of the documentation to SVG, so that the built site needs no network.

Run by ``scripts/docs draw``, which downloads mermaid from npm. The name of a picture holds the hash of its source:
a drawing that was edited and not rendered again is an error when the site is built.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from snippets import DOCS, iter_blocks, list_pages

MERMAID = re.compile(r"^```mermaid\n(?P<source>.+?)^```$", re.MULTILINE | re.DOTALL)
PAGE = """<script src="{library}"></script><pre id="out"></pre><script>
mermaid.initialize({{startOnLoad: false, theme: "neutral", htmlLabels: false, flowchart: {{htmlLabels: false}}}});
mermaid.render("drawing", {source}).then(drawn => {{ document.getElementById("out").innerHTML = drawn.svg; }});
</script>"""


def locate_picture(source: str) -> Path:
    """Returns the path of the picture of a drawing."""
    return DOCS / "images" / f"drawing-{hashlib.sha256(source.strip().encode()).hexdigest()[:12]}.svg"


def list_sources() -> list[str]:
    """Returns the source of every drawing in the documentation."""
    return [block.text for page in list_pages() for block in iter_blocks(page) if block.language == "mermaid"]


def render(source: str, library: Path, chromium: str) -> str:
    """Draws one mermaid source in headless Chromium and returns the SVG."""
    with tempfile.TemporaryDirectory() as directory:
        page = Path(directory) / "page.html"
        page.write_text(PAGE.format(library=library.resolve().as_uri(), source=json.dumps(source)), encoding="utf-8")
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom")
        command = [chromium, *options, f"--user-data-dir={directory}/profile", page.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    found = re.search(r'<pre id="out">(<svg.*?</svg>)</pre>', dom, re.DOTALL)
    if found is None or "Syntax error" in found[1]:
        sys.exit(f"mermaid cannot draw:\n{source}")
    return found[1].replace("<br>", "<br/>")


def main() -> None:
    """Renders drawings without a picture, and deletes the pictures of removed drawings."""
    parser = argparse.ArgumentParser(prog="scripts/docs draw", description=__doc__)
    parser.add_argument("library", type=Path, help="mermaid.min.js")
    library = parser.parse_args().library
    chromium = shutil.which("chromium") or sys.exit("chromium is needed: apt-get install chromium")
    wanted = {locate_picture(source): source for source in list_sources()}
    for path in set((DOCS / "images").glob("drawing-*.svg")) - set(wanted):
        path.unlink()
    for path, source in wanted.items():
        if not path.exists():
            path.write_text(render(source, library, chromium) + "\n", encoding="utf-8")
            print(f"wrote {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
