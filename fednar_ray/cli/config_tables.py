"""Prints the keys of an experiment file for ``fednar config``."""

import shlex
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from fednar_ray.config.describe import Key, Kind, Section


WIDE = 120  # columns of a terminal from which texts fit beside each other
ASK = "one section, kind or key in full: fednar config data, data.folder, regularizer.clip_bound"


def iter_keys(section: "Section") -> Iterable[tuple["Kind | None", "Key"]]:
    """Yields the keys of a section, each with the kind that reads it; None: every kind, or the section has none."""
    yield from ((None, key) for key in section.keys)
    yield from ((kind, key) for kind in section.kinds for key in kind.keys)


def strip_markup(text: str) -> str:
    """Returns a text without the backquotes of its markup."""
    return text.replace("`", "").replace("\u00a0", " ")


def show_all(console: "Console", sections: Sequence["Section"]) -> None:
    """Prints every key in one line: its name, its default, and the first sentence of its meaning."""
    from rich.table import Table

    if console.width < WIDE:
        for section in sections:
            console.print(f"[bold]{section.name}[/]  {_escape(_first_sentence(section.meaning))}")
            first = {key.name: key for _, key in reversed(list(iter_keys(section)))}  # kinds may share a key
            for name in dict.fromkeys(key.name for _, key in iter_keys(section)):
                _show_stacked(
                    console, name, f"default {_format_default(first[name])}", _first_sentence(first[name].meaning)
                )
        console.print(ASK)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    longest = max(len(key.name) for section in sections for _, key in iter_keys(section))
    table.add_column("key", no_wrap=True, min_width=longest + 2)
    table.add_column("default", no_wrap=True, overflow="ellipsis", min_width=14, max_width=14)
    table.add_column("meaning", no_wrap=True, overflow="ellipsis")
    for section in sections:
        table.add_row(f"[bold]{section.name}[/]", "", f"[bold]{_escape(_first_sentence(section.meaning))}[/]")
        shown: dict[str, tuple[str, str]] = {}
        for _, key in iter_keys(section):
            shown.setdefault(key.name, (_format_default(key), _first_sentence(key.meaning)))
        for name, (default, meaning) in shown.items():
            table.add_row(f"  {name}", _escape(default), _escape(meaning))
    console.print(table)
    console.print(ASK)


def _show_stacked(console: "Console", name: str, details: str, meaning: str) -> None:
    """Prints a key on a terminal that is too narrow for a table of texts: its meaning below it, in whole sentences."""
    from rich.padding import Padding

    console.print(Padding(f"{name}  [dim]{_escape(details)}[/]", (0, 0, 0, 2)))
    console.print(Padding(_escape(meaning), (0, 0, 0, 6)))


def show_section(console: "Console", section: "Section", sections: Sequence["Section"]) -> None:
    """Prints a section with its keys and kinds."""
    console.print(f"[bold]{section.name}[/]")
    console.print(_escape(strip_markup(section.meaning)), soft_wrap=True)
    _show_keys(console, section.keys)
    for kind in section.kinds:
        console.print(
            f"\n[bold]{_escape(' or '.join(kind.given_by))}[/]  {_escape(strip_markup(kind.meaning))}", soft_wrap=True
        )
        _show_keys(console, kind.keys)
    _show_inner(console, section, sections)


def show_kind(console: "Console", section: "Section", kind: "Kind", sections: Sequence["Section"]) -> None:
    """Prints one kind of a section with all keys that it reads."""
    console.print(f"[bold]{section.name}, {_escape(' or '.join(kind.given_by))}[/]")
    console.print(_escape(strip_markup(kind.meaning)), soft_wrap=True)
    _show_keys(console, [*kind.keys, *section.keys[1:]])
    _show_inner(console, section, sections)


def _show_inner(console: "Console", section: "Section", sections: Sequence["Section"]) -> None:
    """Prints the names of the sections within a section."""
    from fednar_ray.config.dotted_keys import SECTIONS

    if section.name == "experiment":
        inner = [each.name for each in sections if each.name.partition(".")[0] not in SECTIONS]
    else:
        inner = [each.name for each in sections if each.name.startswith(f"{section.name}.")]
    if inner:
        console.print(f"\nsections within: {', '.join(inner)}", soft_wrap=True)


def _show_keys(console: "Console", keys: Sequence["Key"]) -> None:
    from rich.table import Table

    if not keys:
        return
    if console.width < WIDE:
        for key in keys:
            details = f"{strip_markup(key.values)}; default {_format_default(key)}"
            _show_stacked(console, key.name, details, strip_markup(key.meaning))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("key", no_wrap=True)
    for column in ("values", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for key in keys:
        table.add_row(
            key.name, *map(_escape, (strip_markup(key.values), _format_default(key), strip_markup(key.meaning)))
        )
    console.print(table)


def show_key(console: "Console", found: Sequence[tuple["Section", "Kind | None", "Key"]]) -> None:
    """Prints one key in full: once for all kinds of its section that describe it alike."""
    alike: dict[tuple[str, ...], tuple[Key, list[str]]] = {}
    for _, kind, key in found:
        described = (key.meaning, key.values, _format_default(key))
        alike.setdefault(described, (key, []))[1].extend(() if kind is None else kind.names)
    console.print(f"[bold]{found[0][2].name}[/]")
    for key, names in alike.values():
        lines = [
            ("meaning", strip_markup(key.meaning)),
            ("values", strip_markup(key.values)),
            ("default", _format_default(key)),
            ("example", key.example),
        ]
        for topic, text in ([("read by", ", ".join(names))] if names else []) + lines:
            console.print(f"  {topic:10}{_escape(text)}", soft_wrap=True)
        if len(alike) > 1:
            console.print()
    *sections, last = found[0][2].name.split(".")
    value = shlex.split(found[0][2].example)[-1].partition("=")[2]
    nested = "".join(f"{section}: {{" for section in sections) + f"{last}: {value}" + "}" * len(sections)
    console.print(f"  in a file {_escape(nested)}", soft_wrap=True)


def _format_default(key: "Key") -> str:
    return "must be given" if key.default is None else key.default


def _first_sentence(text: str) -> str:
    """Returns a text up to the end of its first sentence."""
    words = strip_markup(text).split()
    ended = list(takewhile(lambda word: not word.endswith("."), words))
    return " ".join(words[: len(ended) + 1]).rstrip(".")


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
