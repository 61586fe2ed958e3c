"""Builds HTML pages from templates: what a page consists of, and how it is rendered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = "templates"


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """A number that is shown large, with its name and a remark."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class PageFigure:
    """A figure with its title, its SVG and a sentence that says how to read it."""

    title: str
    svg: Markup
    caption: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. Numbers are aligned to the right."""

    name: str
    number: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A table; rows whose index is in ``marked`` stand out."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """How something was made: facts by name, all settings as YAML, and when it was finished."""

    rows: Sequence[tuple[str, str | Markup]] = ()
    settings: str = ""
    finished: str = ""


def link_to_mlflow(name: str, url: str | None) -> tuple[str, str | Markup]:
    """Returns the row that says where MLflow shows something: a link, or the command that opens MLflow's UI.

    Args:
        name: The name, as ``fednar ui`` takes it.
        url: The page in the UI; None if MLflow is a file.
    """
    link = Markup('<a href="{}">{}</a>').format(url, url) if url is not None else f"fednar ui {name}"
    return "in MLflow", link


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What every page has; ``content`` is what the template of its kind shows."""

    kind: str  # run, comparison or search
    title: str
    answer: Sequence[str]  # the first sentence is the answer
    made: Made
    content: Mapping[str, Any] = field(default_factory=dict)

    def render(self) -> str:
        """Returns the HTML, which contains all that it needs."""
        template = _load_templates().get_template(f"{self.kind}.html.j2")
        shown = {"kind": self.kind.capitalize(), "title": self.title, "answer": self.answer, "made": self.made}
        return template.render({**shown, **self.content})


@cache
def _load_templates() -> Environment:
    return Environment(
        loader=PackageLoader("fednar_ray.report", TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
