"""``fednar config``: what each key of an experiment file means."""

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from fednar_ray.cli.config_tables import iter_keys, show_all, show_key, show_kind, show_section, strip_markup
from fednar_ray.cli.options import as_json
from fednar_ray.cli.output import build_console
from fednar_ray.core.errors import BadInput, format_text

if TYPE_CHECKING:
    from rich.console import Console

    from fednar_ray.config.describe import Kind, Section

EXAMPLES = "fednar config regularizer.clip_bound, fednar config data.folder, or fednar config for all keys"


@click.command()
@click.argument("key", required=False)
@as_json
def config(key: str | None, as_json: bool) -> None:
    """Show what a key of an experiment file means, its values and its default.

    Without KEY, list all keys. KEY is the dotted name of a key (regularizer.clip_bound), of a section (regularizer), or
    of one kind of a section: a data source (data.folder), a model (model.mlp), a preset (algorithm.fedprox) or a
    scheduler (search.scheduler.asha).
    """
    from fednar_ray.config.describe import list_sections

    found = _Found(list_sections(), None if key is None else key.strip())
    if as_json:
        click.echo(json.dumps({"keys": list(found.iter_json())}, ensure_ascii=False))
    else:
        found.show(build_console(stderr=False))


class _Found:
    """What a name stands for: a section, a kind of one, a key, or everything if there is no name.

    Raises:
        BadInput: Nothing has this name. The message gives the nearest names.
    """

    def __init__(self, sections: Sequence["Section"], name: str | None) -> None:
        self._sections = sections
        self._name = name
        self.section = next((section for section in sections if section.name == name), None)
        self.kind = next(((s, kind) for s in sections for kind in s.kinds if name in _name_kind(s, kind)), None)
        self.keys = [(s, kind, key) for s in sections for kind, key in iter_keys(s) if key.name == name]
        if name is not None and not (self.section or self.kind or self.keys):
            raise BadInput(f"{format_text(name)}: there is no such key{_suggest(name, sections)}")

    def iter_json(self) -> Iterable[dict[str, Any]]:
        """Yields one object per key."""
        if self.section or self._name is None:
            chosen = [self.section] if self.section else self._sections
            keys = [(section, *each) for section in chosen for each in iter_keys(section)]
        elif self.kind:
            section, kind = self.kind
            keys = [(section, None, key) for key in section.keys] + [(section, kind, key) for key in kind.keys]
        else:
            keys = self.keys
        for section, kind_, key in keys:
            yield {
                "key": key.name,
                "section": section.name,
                "read_by": None if kind_ is None else list(kind_.names),
                "values": strip_markup(key.values),
                "default": key.default,
                "required": key.default is None,
                "meaning": strip_markup(key.meaning),
                "example": key.example,
            }

    def show(self, console: "Console") -> None:
        """Prints the descriptions as tables."""
        if self.section:
            show_section(console, self.section, self._sections)
        elif self.kind:
            show_kind(console, *self.kind, self._sections)
        elif self.keys:
            show_key(console, self.keys)
        else:
            show_all(console, self._sections)


def _name_kind(section: "Section", kind: "Kind") -> list[str]:
    return [f"{section.name}.{name}" for name in kind.names]


def _suggest(name: str, sections: Sequence["Section"]) -> str:
    """Returns the known names that are most like ``name``, and otherwise what can be asked."""
    known = [section.name for section in sections]
    known += [each for section in sections for kind in section.kinds for each in _name_kind(section, kind)]
    known += [key.name for section in sections for key in section.list_keys()]
    known = list(dict.fromkeys(known))
    last = name.rpartition(".")[2]
    same = [each for each in known if each.rpartition(".")[2] == last]
    close = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(
        last, [each.rpartition(".")[2] for each in known], n=1
    )
    found = same or [each for each in known if each in close or each.rpartition(".")[2] in close]
    return f"; did you mean {' or '.join(found[:5])}?" if found else f"; try {EXAMPLES}"
