"""The page of the configuration, made from the models that validate it."""

import ast
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from comments import comments
from pydantic import BaseModel

from fednar_ray.config import CompareSettings, Experiment, SearchSettings
from fednar_ray.config.model import MODEL_SETTINGS, PRESET_SETTINGS, SOURCE_SETTINGS, Settings
from fednar_ray.config.search import SCHEDULER_SETTINGS

INTRODUCTION = """# Configuration

An experiment file is YAML with an `experiment` section, and may have `compare` (read by `fednar compare`) and `search`
(read by `fednar tune`). On the command line `key=value` sets a key by its dotted name, as in the tables below; a value
is YAML. Names that do not begin with `compare.` or `search.` are the experiment's: `regularizer.clip_bound=5`.

Unknown keys, values out of range and contradictions are refused before anything starts, all at once. Relative paths
become absolute when they are read. What is not given takes the default; `null` is the same as not given.
"""
READ = "What each reads, and its defaults (where a value is `null`, it may be left out, or must be given):"
TABLES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "AlgorithmSettings": PRESET_SETTINGS,
    "DataSettings": SOURCE_SETTINGS,
    "ModelSettings": MODEL_SETTINGS,
    "SchedulerSettings": SCHEDULER_SETTINGS,
}
LIMITS = {"ge": "≥", "minimum": "≥", "gt": ">", "exclusiveMinimum": ">", "le": "≤", "maximum": "≤", "lt": "<",
          "exclusiveMaximum": "<"}  # fmt: skip
PLAIN = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}
LARGEST = 2**31 - 1  # a limit that nobody meets


def configuration_page() -> str:
    """Markdown: a table a section."""
    parts = [INTRODUCTION, *section("experiment", Experiment, ""), *section("compare", CompareSettings, "compare.")]
    return "\n".join([*parts, *section("search", SearchSettings, "search.")])


def section(title: str, model: type[BaseModel], prefix: str) -> Iterator[str]:
    """A section's own keys, then the sections within it."""
    schema, symbols = model.model_json_schema(), symbols_of(model)
    inner = {name: held for name, field in model.model_fields.items() if (held := held_section(field.annotation))}
    yield f"## {title}\n"
    yield f"{text(inspect.getdoc(model) or '')}\n"
    keys = {name: entry for name, entry in schema["properties"].items() if name not in inner or inner[name][1]}
    rows = [row(prefix, name, entry, symbols) for name, entry in keys.items()]
    if rows:
        yield "| key | values | default | |\n|---|---|---|---|"
        yield from (*rows, "")
    if model.__name__ in TABLES:
        yield READ + "\n\n| | |\n|---|---|"
        yield from (f"| `{name}` | {settings(read)} |" for name, read in TABLES[model.__name__].items())
        yield ""
    for name, (held, below) in inner.items():
        yield from section(f"{prefix}{name}{below}", held, f"{prefix}{name}{below}.")


def held_section(annotation: Any) -> tuple[type[Settings], str] | None:
    """The section in ``SpeedSettings | None``, or below every name in ``Mapping[str, SiteSettings] | None``."""
    for one in get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,):
        each = get_args(one)[0] if get_origin(one) is Annotated else one
        named = get_args(each)[-1] if get_origin(each) is Mapping else each
        if isinstance(named, type) and issubclass(named, Settings):
            return named, "" if named is each else ".NAME"
    return None


def row(prefix: str, name: str, entry: Mapping[str, Any], symbols: Mapping[str, str]) -> str:
    """One key."""
    default = code(entry["default"]) if "default" in entry else "must be given"
    said = "; ".join(part for part in (symbols.get(name, ""), entry.get("description", "")) if part)
    return f"| `{prefix}{name}` | {values(entry)} | {default} | {text(said)} |"


def values(entry: Mapping[str, Any]) -> str:
    """What a key takes, in words."""
    if "anyOf" in entry:
        parts = (values(part) for part in entry["anyOf"] if part.get("type") != "null")
        return " or ".join(dict.fromkeys(parts))
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if entry.get("type") == "array":
        return f"a list: {values(entry.get('items', {}))}"
    limits = [f"{LIMITS[key]} {value}" for key, value in entry.items() if key in LIMITS and value != LARGEST]
    return " ".join([PLAIN.get(entry.get("type", ""), "a mapping"), ", ".join(limits)]).strip().replace("≥ ", "≥\u00a0")


def settings(read: Mapping[str, Any]) -> str:
    """The settings that one preset, model or source reads."""
    plain = {key: value.model_dump() if isinstance(value, BaseModel) else value for key, value in read.items()}
    return ", ".join(f"`{key}: {yaml_of(value)}`" for key, value in plain.items()) or "nothing"


def code(value: Any) -> str:
    """A default."""
    return f"`{yaml_of(value)}`"


def yaml_of(value: Any) -> str:
    """A value as a file would give it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {yaml_of(inner)}" for key, inner in value.items() if inner is not None) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(yaml_of, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def text(said: str) -> str:
    """A docstring as Markdown within a table."""
    return said.replace("``", "`").replace("|", "\\|").replace("\n\n", "<br>").replace("\n", " ")


def symbols_of(model: type[BaseModel]) -> dict[str, str]:
    """The comment beside each field: the paper's symbol."""
    path = Path(inspect.getfile(model))
    beside = comments(path)
    classes = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef))
    body = next(node.body for node in classes if node.name == model.__name__)
    fields = [node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {node.target.id: beside[node.lineno] for node in fields if node.lineno in beside}  # type: ignore[union-attr]
