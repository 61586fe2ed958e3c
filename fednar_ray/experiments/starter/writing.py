"""Writes an experiment file in which a comment says what each key means."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from fednar_ray.config import yaml_text
from fednar_ray.config.describe import Kind, Section, list_sections
from fednar_ray.config.examples import format_yaml

WIDTH = 110
INDENT = "  "


def write_experiment(settings: Mapping[str, Any], header: str, notes: Mapping[str, str] | None = None) -> str:
    """Returns the text of an experiment file.

    Args:
        settings: The ``experiment`` section.
        header: What the file starts with; it becomes a comment.
        notes: Dotted key → what to say besides the key's meaning.
    """
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    return "\n".join([*lines, "experiment:", *_iter_lines(settings, settings, "", notes or {}, 1)]) + "\n"


def _iter_lines(
    settings: Mapping[str, Any], section: Mapping[str, Any], prefix: str, notes: Mapping[str, str], depth: int
) -> Iterator[str]:
    indent = INDENT * depth
    for name, value in section.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from ("",) if depth == 1 else ()
            yield f"{indent}{name}:"
            yield from _iter_lines(settings, value, f"{key}.", notes, depth + 1)
            continue
        for text in (describe_key(key, settings), notes.get(key, "")):
            yield from textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        yield from _iter_value_lines(f"{indent}{name}: ", value)


def _iter_value_lines(start: str, value: Any) -> Iterator[str]:
    """Yields a key with its value. A long list takes several lines."""
    if not isinstance(value, list):
        yield start + _format(value)
        return
    line = f"{start}["
    for i, item in enumerate(value):
        text = _format(item) + (", " if i < len(value) - 1 else "]")
        if len(line) + len(text) > WIDTH:
            yield line.rstrip()
            line = " " * (len(start) + 1)
        line += text
    yield line


def describe_key(name: str, settings: Mapping[str, Any]) -> str:
    """Returns the meaning, the values and the default of a key, by the kind that its section has in ``settings``."""
    place = name.rpartition(".")[0] or "experiment"
    section = next(each for each in list_sections() if each.name == place)
    kind = _find_kind(section, settings)
    keys = (*section.keys, *(kind.keys if kind is not None else ()))
    key = next(key for key in keys if key.name == name)
    chosen = f" {_find_value(name, settings)}: {kind.meaning}" if kind is not None and key == section.keys[0] else ""
    default = "" if key.default is None else f"; default: {key.default}"
    return f"{key.meaning}{chosen} ({key.values}{default})".replace("`", "").replace("\u00a0", " ")


def _find_value(name: str, settings: Mapping[str, Any]) -> Any:
    """Returns the value of a key by its dotted name."""
    value: Any = settings
    for part in name.split("."):
        value = value[part]
    return value


def _find_kind(section: Section, settings: Mapping[str, Any]) -> Kind | None:
    """Returns the kind that a section has in ``settings``; None for sections without kinds."""
    chosen = settings.get(section.name, {})
    names = {chosen.get("source"), chosen.get("name")}
    return next((kind for kind in section.kinds if names & set(kind.names)), None)


def _format(value: Any) -> str:
    """Formats a value as YAML on one line, with quotes where text would be read as something else."""
    if isinstance(value, str):
        return value if value and _is_plain(value) else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return format_yaml(value)


def _is_plain(text: str) -> bool:
    """Returns whether YAML reads a text back unchanged without quotes, also inside a list."""
    try:
        return bool(yaml_text.parse(f"[{text}]") == [text])
    except yaml_text.NotYaml:
        return False
