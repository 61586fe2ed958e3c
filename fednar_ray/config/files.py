"""Experiment files: YAML with dotted overrides, read into validated settings.

A file has an ``experiment`` section, and may have ``compare`` (read by ``fednar compare``) and ``search``
(read by ``fednar tune``).
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import ValidationError

from fednar_ray.config import checks
from fednar_ray.config.experiment import Experiment
from fednar_ray.config.settings import CompareSettings
from fednar_ray.errors import ConfigError

_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)  # an impossible date or number is a ValueError
SECTIONS = ("experiment", "compare", "search")


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A file, read and validated; ``search`` is left as it is for the tuner."""

    experiment: Experiment
    compare: CompareSettings
    search: Mapping[str, Any]


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, not a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if repr(key) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            seen.add(repr(key))
        return super().construct_mapping(node, deep)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a file, with ``key.path=value`` overrides. Raises ConfigError with every problem at once."""
    return load_document(path, overrides).experiment


def load_document(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """Read a file with all its sections. Raises ConfigError with every problem at once."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError((f"{path}: cannot be read: {reason}",)) from None
    return parse_document(text, str(path), overrides)


def with_overrides(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """The experiment with ``key.path=value`` overrides. Raises ConfigError with every problem at once."""
    return parse_document(dump(experiment), "experiment", overrides).experiment if overrides else experiment


def embedded(name: str, overrides: Sequence[str] = ()) -> Document:
    """A file that ships inside the package: ``digits`` or ``compare``."""
    text = (resources.files("fednar_ray") / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_document(text, f"{name}.yaml (embedded)", overrides)


def parse_document(text: str, origin: str, overrides: Sequence[str] = ()) -> Document:
    """Parse a file's text; ``origin`` names it in errors."""
    raw = _parse_yaml(text, origin)
    problems = [f"{key}: unknown section{checks.nearest(str(key), SECTIONS)}" for key in raw if key not in SECTIONS]
    if "experiment" not in raw:
        problems.append(f"{origin}: has no experiment section")
    for override in overrides:
        problems.extend(_apply(raw, override))
    experiment, compare, search = ({} if raw.get(name) is None else raw[name] for name in SECTIONS)
    if not isinstance(search, dict):
        problems.append(f"search: {search!r} should be a section with keys")
    try:
        validated = Experiment.model_validate(experiment)
    except ValidationError as error:
        problems.extend(checks.describe(error, root="experiment"))
    try:
        comparison = CompareSettings.model_validate(compare)
    except ValidationError as error:
        details = checks.as_details(error, CompareSettings)
        problems.extend(checks.describe(ValidationError.from_exception_data("compare", details), "compare."))
    if problems:
        raise ConfigError(tuple(problems))
    return Document(_with_absolute_paths(validated), comparison, search)


def _parse_yaml(text: str, origin: str) -> dict[str, Any]:
    try:
        raw = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except _UNREADABLE as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"{origin}, line {mark.line + 1}, column {mark.column + 1}" if mark else origin
        raise ConfigError((f"{place}: invalid YAML: {problem or error}",)) from None
    if not isinstance(raw, dict):
        raise ConfigError((f"{origin}: a mapping with an experiment section is needed",))
    return raw


def _apply(raw: dict[str, Any], override: str) -> list[str]:
    """Set one ``key.path=value`` in place; what is wrong with it comes back."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return [f"{override}: an override reads key.path=value"]
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except _UNREADABLE:
        return [f"{path}: {text!r}: the value is not YAML"]
    target: Any = raw
    for key in keys[:-1] if keys[0] in SECTIONS else ["experiment", *keys[:-1]]:
        target[key] = {} if target.get(key) is None else target[key]
        target = target[key]
        if not isinstance(target, dict):
            return [f"{path}: {key} holds a value, not a section"]
    target[keys[-1]] = value
    return []


def _with_absolute_paths(experiment: Experiment) -> Experiment:
    """Relative paths become absolute when they are read: jobs and trials change directory."""
    uri, trace, storage = experiment.tracking.uri, experiment.availability.trace, experiment.checkpoint.storage
    sections = {
        "tracking": {"uri": uri and _absolute(uri)},
        "availability": {"trace": trace and os.path.abspath(trace)},
        "checkpoint": {"storage": storage and _absolute(storage)},
    }
    return experiment.model_copy(
        update={name: getattr(experiment, name).model_copy(update=values) for name, values in sections.items()}
    )


def _absolute(place: str) -> str:
    """A path, or a SQLite file, as an absolute one; other addresses as they are."""
    if place.startswith("sqlite:///") and not place.startswith("sqlite:////"):
        return "sqlite:///" + os.path.abspath(place.removeprefix("sqlite:///"))
    return place if "://" in place or place.startswith("databricks") else os.path.abspath(place)


def dump(experiment: Experiment) -> str:
    """The experiment as a file that reads back to the same settings."""
    return yaml.safe_dump({"experiment": experiment.model_dump(mode="json", exclude_none=True)}, sort_keys=False)


def digest(experiment: Experiment) -> str:
    """SHA-256 of all settings, as hexadecimal digits."""
    return hashlib.sha256(dump(experiment).encode()).hexdigest()


def dotted(experiment: Experiment) -> dict[str, Any]:
    """Settings by dotted key; those that are not set are left out."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    walk("", experiment.model_dump(mode="json", exclude_none=True))
    return flat
