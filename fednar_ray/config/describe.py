"""Describes every key of an experiment file, from the settings classes that validate it.

``fednar config``, the comments of a file that ``fednar init`` writes, and the configuration page of the documentation
all show what is listed here. The meaning of a key is the docstring below its field.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from fednar_ray.config.algorithm import ALGORITHM_VARIANTS
from fednar_ray.config.base import Settings
from fednar_ray.config.comparison import CompareSettings
from fednar_ray.config.data import DATA_VARIANTS
from fednar_ray.config.examples import (
    Words,
    build_example,
    choose_kind,
    format_words,
    format_yaml,
    list_needs,
    list_required,
)
from fednar_ray.config.experiment import Experiment
from fednar_ray.config.model import MODEL_VARIANTS
from fednar_ray.config.privacy import BOUND_VARIANTS
from fednar_ray.config.scheduler import SCHEDULER_VARIANTS
from fednar_ray.config.search import SearchSettings
from fednar_ray.config.variants import Variants

VARIANTS = (DATA_VARIANTS, MODEL_VARIANTS, ALGORITHM_VARIANTS, BOUND_VARIANTS, SCHEDULER_VARIANTS)
LIMITS = {"ge": "≥", "minimum": "≥", "gt": ">", "exclusiveMinimum": ">", "le": "≤", "maximum": "≤", "lt": "<",
          "exclusiveMaximum": "<"}  # fmt: skip
PLAIN = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}
LARGEST = 2**31 - 1  # a limit that is never reached


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of an experiment file.

    Attributes:
        name: The dotted name, as on the command line: ``regularizer.clip_bound``.
        values: The values that it takes. Each part is text, or a literal value in backquotes.
        default: The default as a file would give it; None if the key must be given.
        meaning: What it does, in docstring markup: literal text is in double backquotes.
        example: Words of a command line that set the key, after the other keys that it needs.
    """

    name: str
    values: str
    default: str | None
    meaning: str
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of a section, such as the source ``folder`` of ``data``.

    Attributes:
        names: The values of the key that names the kind. Several kinds of data may share their settings.
        given_by: What a file writes to choose the kind: ``source: folder``, or the key that replaces a name.
        meaning: What the kind is.
        keys: The keys that it reads beyond those of every kind.
    """

    names: tuple[str, ...]
    given_by: tuple[str, ...]
    meaning: str
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section of an experiment file.

    Attributes:
        name: The dotted name: ``data.partition``. Sections below a name of the user's contain NAME.
        meaning: What it sets.
        keys: Its keys, without those that are sections. If it has kinds, these are the keys that every kind reads.
        kinds: Its kinds.
        short_form: The names of kinds that can stand for the whole section, such as asha for ``search.scheduler``.
    """

    name: str
    meaning: str
    keys: tuple[Key, ...]
    kinds: tuple[Kind, ...] = ()
    short_form: tuple[str, ...] = ()

    def list_keys(self) -> list[Key]:
        """Lists the keys of the section and of all its kinds. A key that several kinds read occurs several times."""
        return [*self.keys, *(key for kind in self.kinds for key in kind.keys)]


@lru_cache
def list_sections() -> tuple[Section, ...]:
    """Lists all sections, each before the sections within it."""
    return (
        *_iter_sections("experiment", Experiment, ""),
        *_iter_sections("compare", CompareSettings, "compare."),
        *_iter_sections("search", SearchSettings, "search."),
    )


def _iter_sections(
    name: str, model: type[BaseModel], prefix: str, needs: Words = MappingProxyType({})
) -> Iterator[Section]:
    """Yields a section and the sections within it. Without the settings in ``needs`` there is no such section."""
    variants = next((each for each in VARIANTS if issubclass(model, each.base)), None)
    base = model if variants is None else variants.base
    kinds: Sequence[type[BaseModel]] = () if variants is None else tuple(dict.fromkeys(variants.by_name.values()))
    keys = _build_keys(base, base.model_fields, prefix, needs)
    yield Section(
        name=name,
        meaning=inspect.getdoc(base) or "",
        keys=tuple(keys if variants is None else [_build_kind_key(variants, prefix, needs), *keys]),
        kinds=() if variants is None else tuple(_iter_kinds(variants, prefix, needs)),
        short_form=tuple(variants.by_name) if variants is not None and variants.short else (),
    )
    inner: dict[str, tuple[type[Settings], str, Words]] = {}
    for each in (base, *kinds):
        needed = needs if variants is None or each is base else choose_kind(variants, each, prefix, needs)
        for key, (section, below) in _find_sections(each).items():
            inner.setdefault(key, (section, below, {**needed, **list_needs(each, key)}))
    for key, (section, below, needed) in inner.items():
        place = f"{prefix}{key}{below}"
        yield from _iter_sections(place, section, f"{place}.", {**needed, **list_required(section, f"{place}.")})


def _find_sections(model: type[BaseModel]) -> dict[str, tuple[type[Settings], str]]:
    """Returns the sections within a section, by key."""
    return {name: held for name, field in model.model_fields.items() if (held := _find_section(field.annotation))}


def _find_section(annotation: Any) -> tuple[type[Settings], str] | None:
    """Returns the section in ``SpeedSettings | None``, or below each name in ``Mapping[str, SiloSettings] | None``."""
    if get_origin(annotation) in (Union, UnionType):
        return next((held for one in get_args(annotation) if (held := _find_section(one))), None)
    if get_origin(annotation) is Annotated:
        return _find_section(get_args(annotation)[0])
    named = get_args(annotation)[-1] if get_origin(annotation) is Mapping else annotation
    if isinstance(named, type) and issubclass(named, Settings):
        return named, "" if named is annotation else ".NAME"
    return None


def _build_keys(model: type[BaseModel], names: Iterable[str], prefix: str, needs: Words) -> list[Key]:
    """Builds the keys of a settings class, without those that are sections."""
    schema, inner = model.model_json_schema()["properties"], _find_sections(model)
    return [
        _build_key(prefix, name, schema[name], {**needs, **build_example(model, name, prefix)})
        for name in names
        if name not in inner or inner[name][1]
    ]


def _build_key(prefix: str, name: str, entry: Mapping[str, Any], example: Words) -> Key:
    default = format_yaml(entry["default"]) if "default" in entry else None
    return Key(
        name=f"{prefix}{name}",
        values=_describe_values(entry),
        default=default,
        meaning=entry.get("description", "").replace("\n", " "),
        example=format_words(example, last=f"{prefix}{name}"),
    )


def _build_kind_key(variants: Variants, prefix: str, needs: Words) -> Key:
    """Builds the key that names the kind of a section."""
    names = ", ".join(f"`{name}`" for name in variants.by_name if name not in variants.stand_ins)
    key, kind = f"{prefix}{variants.key}", variants.by_name[variants.example]
    example = format_words({**choose_kind(variants, kind, prefix, needs), key: variants.example}, last=key)
    return Key(name=key, values=names, default=variants.default, meaning=variants.meaning, example=example)


def _iter_kinds(variants: Variants, prefix: str, needs: Words) -> Iterator[Kind]:
    """Yields the kinds of a section. Names with the same settings are one kind."""
    names: dict[type[Settings], list[str]] = {}
    for name, kind in variants.by_name.items():
        names.setdefault(kind, []).append(name)
    for kind, own in names.items():
        given_by = [name if name in variants.stand_ins else f"{variants.key}: {name}" for name in own]
        keys = _build_keys(kind, variants.list_settings(own[0]), prefix, choose_kind(variants, kind, prefix, needs))
        yield Kind(names=tuple(own), given_by=tuple(given_by), meaning=inspect.getdoc(kind) or "", keys=tuple(keys))


def _describe_values(entry: Mapping[str, Any]) -> str:
    """Returns the values that a key takes, in words."""
    if "anyOf" in entry:
        parts = (_describe_values(part) for part in entry["anyOf"] if part.get("type") != "null")
        return " or ".join(dict.fromkeys(parts))
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if entry.get("type") == "array":
        return f"a list: {_describe_values(entry.get('items', {}))}"
    limits = [f"{LIMITS[key]} {value}" for key, value in entry.items() if key in LIMITS and value != LARGEST]
    return " ".join([PLAIN.get(entry.get("type", ""), "a mapping"), ", ".join(limits)]).strip().replace("≥ ", "≥\u00a0")
