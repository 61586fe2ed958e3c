"""What MkDocs does not do by itself: pages made from the package, and a look at what a browser would fetch."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from commands import commands_page
from configuration import configuration_page
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video)\b[^>]*?\ssrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b(?![^>]*rel=["']?(?:canonical|alternate))[^>]*?\shref=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|(?:url\(|@import )["']?(?:https?:)?//[^"')\s]+"""
)


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/commands.md": commands_page,
    "reference/configuration.md": configuration_page,
    "reference/changes.md": lambda: top_level("CHANGELOG.md"),
    "reference/contributing.md": lambda: top_level("CONTRIBUTING.md"),
}
"""The pages that are no files in docs/."""


def top_level(name: str) -> str:
    """A page at the top of the repository, its links as they are from reference/."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](../")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    for path, content in PAGES.items():
        files.append(File.generated(config, path, content=content()))
    return files


def on_post_build(config: Any) -> None:
    """Refuse a site that needs a network."""
    site = Path(config["site_dir"])
    (site / "404.html").unlink()  # a server's, with addresses that are none in a directory of files
    for path in sorted((*site.rglob("*.html"), *site.rglob("*.css"))):
        if found := FETCHED.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path.relative_to(site)} fetches from a network: {found[0]}")
