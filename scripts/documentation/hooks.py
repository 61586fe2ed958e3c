"""Hooks of MkDocs that fill in generated pages, programs and drawings, and check that pages fetch nothing."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from commands import build_commands_page
from configuration import build_configuration_page
from drawings import MERMAID, locate_picture
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from notebooks import render

ROOT = Path(__file__).resolve().parents[2]
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video)\b[^>]*?\ssrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b(?![^>]*rel=["']?(?:canonical|alternate))[^>]*?\shref=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|(?:url\(|@import )["']?(?:https?:)?//[^"')\s]+"""
)


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/commands.md": build_commands_page,
    "reference/configuration.md": build_configuration_page,
    "reference/changes.md": lambda: load_top_level("CHANGELOG.md"),
    "reference/contributing.md": lambda: load_top_level("CONTRIBUTING.md"),
    "notebooks/first-steps.md": lambda: render(ROOT / "docs" / "notebooks" / "first-steps.ipynb"),
}
"""The pages that are generated. In a plain checkout a file in docs/ says how to get each, so that no link is dead."""
PROGRAM = re.compile(r"^\[(?P<path>scripts/examples/\w+\.py)\]\(\.\./(?P=path)\)$", re.MULTILINE)
"""A line with nothing but the link to a program, which becomes the program."""


def load_top_level(name: str) -> str:
    """Returns a page from the top of the repository, with its links as they are seen from reference/."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](../")


def on_files(files: Files, config: Any) -> Files:
    """Puts the generated pages in the place of their files in docs/."""
    for path, content in PAGES.items():
        stub = files.get_file_from_path(path)
        assert stub is not None, f"docs/{path} is missing"
        files.remove(stub)
        files.append(File.generated(config, path, content=content()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Puts the rendered picture in the place of each mermaid drawing, and each program in the place of its link.

    Raises:
        PluginError: A picture is missing.
    """
    first = "/" not in page.file.src_uri  # what to do comes before the reference in results of the search
    page.meta.setdefault("search", {"boost": 2 if first else 0.3})

    def drawn(match: re.Match[str]) -> str:
        path = locate_picture(match["source"])
        if not path.exists():
            raise PluginError(f"{page.file.src_uri}: a drawing was edited; render it with scripts/docs draw")
        up = "../" * page.file.src_uri.count("/")
        return f"![Drawing]({up}images/{path.name}){{ .drawing }}"

    return PROGRAM.sub(_show_program, MERMAID.sub(drawn, markdown))


def _show_program(match: re.Match[str]) -> str:
    text = (ROOT / match["path"]).read_text(encoding="utf-8").rstrip()
    return f'```python title="{match["path"]}"\n{text}\n```'


def on_post_build(config: Any) -> None:
    """Raises PluginError if a page would fetch something from a network."""
    site = Path(config["site_dir"])
    (site / "404.html").unlink()  # it is for servers; its absolute addresses do not work in a directory of files
    for path in sorted((*site.rglob("*.html"), *site.rglob("*.css"))):
        if found := FETCHED.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path.relative_to(site)} fetches from a network: {found[0]}")
