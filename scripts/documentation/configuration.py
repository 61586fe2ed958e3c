"""Generates the page of the configuration from the models that validate it."""

import ast
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from comments import load_comments
from pydantic import BaseModel

from fednar_ray.config import CompareSettings, Experiment, SearchSettings
from fednar_ray.config.algorithm import ALGORITHM_VARIANTS
from fednar_ray.config.base import Settings
from fednar_ray.config.data import DATA_VARIANTS
from fednar_ray.config.model import MODEL_VARIANTS
from fednar_ray.config.scheduler import SCHEDULER_VARIANTS
from fednar_ray.config.variants import Variants

INTRODUCTION = """# Configuration

An experiment file is YAML with an `experiment` section, and may have `compare` (read by `fednar compare`) and `search`
(read by `fednar tune`). On the command line `key=value` sets a key by its dotted name, as in the tables below; a value
is YAML. Keys that do not start with `compare.` or `search.` belong to the experiment: `regularizer.clip_bound=5`.

Unknown keys, values out of range and contradictions are refused before anything starts, all at once. Relative paths
become absolute when they are read. A key that is not given, or is `null`, takes its default.
"""
VARIANTS = (DATA_VARIANTS, MODEL_VARIANTS, ALGORITHM_VARIANTS, SCHEDULER_VARIANTS)
LIMITS = {"ge": "≥", "minimum": "≥", "gt": ">", "exclusiveMinimum": ">", "le": "≤", "maximum": "≤", "lt": "<",
          "exclusiveMaximum": "<"}  # fmt: skip
PLAIN = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}
LARGEST = 2**31 - 1  # a limit that is never reached


def build_configuration_page() -> str:
    """Returns the page in Markdown: one table per section."""
    parts = [
        INTRODUCTION,
        *iter_section("experiment", Experiment, ""),
        *iter_section("compare", CompareSettings, "compare."),
    ]
    return "\n".join([*parts, *iter_section("search", SearchSettings, "search.")])


def iter_section(title: str, model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yields a section's keys, those of its kinds if it has several, and then the sections within it."""
    variants = next((each for each in VARIANTS if issubclass(model, each.base)), None)
    model = model if variants is None else variants.base
    yield f"## {title}\n"
    yield f"{format_text(inspect.getdoc(model) or '')}\n"
    if variants is not None:
        yield from iter_kind_key(variants, prefix)
    yield from iter_table(model, list(model.model_fields), prefix)
    inner = find_sections(model)
    if variants is not None:
        yield from iter_kinds(variants, prefix)
        for kind in dict.fromkeys(variants.by_name.values()):
            inner |= find_sections(kind)
    for name, (held, below) in inner.items():
        yield from iter_section(f"{prefix}{name}{below}", held, f"{prefix}{name}{below}.")


def find_sections(model: type[BaseModel]) -> dict[str, tuple[type[Settings], str]]:
    """Returns the sections within a section, by key."""
    return {name: held for name, field in model.model_fields.items() if (held := find_held_section(field.annotation))}


def iter_table(model: type[BaseModel], keys: Sequence[str], prefix: str) -> Iterator[str]:
    """Yields a table of keys, without those that are sections."""
    schema, symbols, inner = model.model_json_schema(), load_symbols(model), find_sections(model)
    shown = [key for key in keys if key not in inner or inner[key][1]]
    if shown:
        yield "| key | values | default | |\n|---|---|---|---|"
        yield from (*(build_row(prefix, key, schema["properties"][key], symbols) for key in shown), "")


def iter_kind_key(variants: Variants, prefix: str) -> Iterator[str]:
    """Yields a table with the key that names the kind of a section."""
    names = ", ".join(format_code(name) for name in variants.by_name if name not in variants.stand_ins)
    yield "| key | values | default | |\n|---|---|---|---|"
    default = format_code(variants.default)
    yield f"| `{prefix}{variants.key}` | {names} | {default} | Which kind; each kind has its own keys. |"
    yield ""


def iter_kinds(variants: Variants, prefix: str) -> Iterator[str]:
    """Yields the keys that each kind of a section reads beyond those of all kinds."""
    names: dict[type[Settings], list[str]] = {}
    for name, kind in variants.by_name.items():
        names.setdefault(kind, []).append(name)
    for kind, own in names.items():
        named = [f"`{variants.key}: {name}`" for name in own if name not in variants.stand_ins]
        yield f"{' or '.join(named or [f'`{own[0]}`'])}: {format_text(inspect.getdoc(kind) or '')}\n"
        yield from iter_table(kind, list(variants.list_settings(own[0])), prefix)


def find_held_section(annotation: Any) -> tuple[type[Settings], str] | None:
    """Returns the section in ``SpeedSettings | None``, or below each name in ``Mapping[str, SiloSettings] | None``."""
    if get_origin(annotation) in (Union, UnionType):
        return next((held for one in get_args(annotation) if (held := find_held_section(one))), None)
    if get_origin(annotation) is Annotated:
        return find_held_section(get_args(annotation)[0])
    named = get_args(annotation)[-1] if get_origin(annotation) is Mapping else annotation
    if isinstance(named, type) and issubclass(named, Settings):
        return named, "" if named is annotation else ".NAME"
    return None


def build_row(prefix: str, name: str, entry: Mapping[str, Any], symbols: Mapping[str, str]) -> str:
    """Returns the row of one key."""
    default = format_code(entry["default"]) if "default" in entry else "must be given"
    description = "; ".join(part for part in (symbols.get(name, ""), entry.get("description", "")) if part)
    return f"| `{prefix}{name}` | {describe_values(entry)} | {default} | {format_text(description)} |"


def describe_values(entry: Mapping[str, Any]) -> str:
    """Returns the values that a key takes, in words."""
    if "anyOf" in entry:
        parts = (describe_values(part) for part in entry["anyOf"] if part.get("type") != "null")
        return " or ".join(dict.fromkeys(parts))
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if entry.get("type") == "array":
        return f"a list: {describe_values(entry.get('items', {}))}"
    limits = [f"{LIMITS[key]} {value}" for key, value in entry.items() if key in LIMITS and value != LARGEST]
    return " ".join([PLAIN.get(entry.get("type", ""), "a mapping"), ", ".join(limits)]).strip().replace("≥ ", "≥\u00a0")


def format_code(value: Any) -> str:
    """Formats a default."""
    return f"`{format_yaml(value)}`"


def format_yaml(value: Any) -> str:
    """Formats a value as a file would give it."""
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{key}: {format_yaml(inner)}" for key, inner in value.items() if inner is not None) + "}"
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(format_yaml, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def format_text(description: str) -> str:
    """Turns a docstring into Markdown for a table."""
    return description.replace("``", "`").replace("|", "\\|").replace("\n\n", "<br>").replace("\n", " ")


def load_symbols(model: type[BaseModel]) -> dict[str, str]:
    """Returns the comment beside each field: the paper's symbol."""
    found: dict[str, str] = {}
    for each in reversed([base for base in model.__mro__ if issubclass(base, Settings) and base is not Settings]):
        path = Path(inspect.getfile(each))
        beside, nodes = load_comments(path), ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        body = next(node.body for node in nodes if isinstance(node, ast.ClassDef) and node.name == each.__name__)
        fields = [node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
        found |= {node.target.id: beside[node.lineno] for node in fields if node.lineno in beside}  # type: ignore[union-attr]
    return found
