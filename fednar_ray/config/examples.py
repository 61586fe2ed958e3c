"""Formats the examples of settings as words of a command line, each complete with the other settings that it needs."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from fednar_ray.config import yaml_text
from fednar_ray.config.base import Example
from fednar_ray.config.variants import Variants

Words = Mapping[str, str]
"""Dotted key → value, as YAML."""


def build_example(model: type[BaseModel], name: str, prefix: str) -> Words:
    """Returns the example of a field with the settings that it needs; nothing if it has none."""
    example = _find_example(model, name)
    return {} if example is None else {**list_needs(model, name), f"{prefix}{name}": _format_value(example.value)}


def list_needs(model: type[BaseModel], name: str) -> Words:
    """Returns the settings that the example of a field needs."""
    example = _find_example(model, name)
    return {} if example is None else dict(word.split("=", 1) for word in example.needs)


def _find_example(model: type[BaseModel], name: str) -> Example | None:
    return next((each for each in model.model_fields[name].metadata if isinstance(each, Example)), None)


def _format_value(value: Any) -> str:
    """Formats a value as a file would give it, in quotes if it is text that reads as something else."""
    try:
        literal = not isinstance(value, str) or yaml_text.parse(value) == value
    except yaml_text.NotYaml:
        literal = False
    return format_yaml(value) if literal else json.dumps(value)


def list_required(model: type[BaseModel], prefix: str) -> Words:
    """Returns examples of the fields that must be given, with what they need."""
    required = (name for name, field in model.model_fields.items() if field.is_required())
    return {key: value for name in required for key, value in build_example(model, name, prefix).items()}


def choose_kind(variants: Variants, kind: type[BaseModel], prefix: str, needs: Words) -> Words:
    """Returns what chooses a kind of a section: its name, and examples of what it needs."""
    name = next(name for name, each in variants.by_name.items() if each is kind)
    named = {f"{prefix}{variants.key}": "null" if name in variants.stand_ins else name}
    return {**needs, **named, **build_example(kind, variants.key, prefix), **list_required(kind, prefix)}


def format_words(values: Words, last: str) -> str:
    """Formats settings as words of a command line."""
    ordered = {**{key: value for key, value in values.items() if key != last}, last: values.get(last, "")}
    return " ".join(f"{key.replace('NAME', 'clinic_a')}={shlex.quote(value)}" for key, value in ordered.items())


def format_yaml(value: Any) -> str:
    """Formats a value as a file would give it."""
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{key}: {format_yaml(inner)}" for key, inner in value.items() if inner is not None) + "}"
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(format_yaml, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)
