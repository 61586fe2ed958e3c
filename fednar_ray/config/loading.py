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

from pydantic_core import ValidationError

from fednar_ray.config import problems, yaml_text
from fednar_ray.config.base import Settings
from fednar_ray.config.comparison import CompareSettings
from fednar_ray.config.experiment import Experiment
from fednar_ray.config.search import SearchSettings
from fednar_ray.core.credentials import refusal, secret_in, secrets_within
from fednar_ray.core.errors import ConfigError, shown, shown_text
from fednar_ray.core.store_uris import absolute_uri

SECTIONS = ("experiment", "compare", "search")
PATHS = (
    "tracking.uri", "availability.trace", "checkpoint.storage", "model.weights", "data.directory", "data.path",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A file, read and validated."""

    experiment: Experiment
    compare: CompareSettings
    search: SearchSettings | None
    raw: Mapping[str, Any]  # the experiment section as it was written, with the overrides
    relative: Mapping[str, str]  # by key, the paths that were written relative to the working directory

    def varied(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment with other values by dotted key; defaults follow them. Raises ConfigError."""
        return varied(self.raw, values)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a file, with ``key.path=value`` overrides. Raises ConfigError with every problem at once."""
    return load_document(path, overrides).experiment


def load_document(path: str | Path, overrides: Sequence[str] = (), *, to_search: bool = False) -> Document:
    """Read a file with all its sections. Raises ConfigError with every problem at once.

    ``to_search``: its search section is there, and goes with the experiment.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(yaml_text.LIMIT_CHARACTERS + 1)  # one too many is refused; there may be no end to it
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or bytes that are no UTF-8
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError((f"{shown_text(path)}: cannot be read: {reason}",)) from None
    return parse_document(text, str(path), overrides, to_search=to_search)


def with_overrides(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """The experiment with ``key.path=value`` overrides. Raises ConfigError with every problem at once."""
    return parse_document(dump(experiment), "experiment", overrides).experiment if overrides else experiment


def embedded(name: str, overrides: Sequence[str] = (), *, to_search: bool = False) -> Document:
    """A file that ships inside the package: ``digits`` or ``compare``."""
    text = (resources.files("fednar_ray.config") / "defaults" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_document(text, f"{name}.yaml (embedded)", overrides, to_search=to_search)


def parse_document(text: str, origin: str, overrides: Sequence[str] = (), *, to_search: bool = False) -> Document:
    """Parse a file's text, as ``load_document``; ``origin`` names it in errors."""
    raw = _parse_yaml(text, origin)
    wrong: list[str] = []
    for override in overrides:
        wrong.extend(_apply(raw, override))
    _check_secrets(raw)
    unknown = [key for key in raw if key not in SECTIONS][: problems.LIMIT_PROBLEMS]
    wrong += [f"{shown_text(key)}: unknown section{problems.nearest(str(key), SECTIONS)}" for key in unknown]
    if "experiment" not in raw:
        wrong.append(f"{origin}: has no experiment section")
    experiment, compare, search = ({} if raw.get(name) is None else raw[name] for name in SECTIONS)
    validated = comparison = None
    try:
        validated = Experiment.model_validate(experiment)
    except ValidationError as error:
        wrong.extend(problems.describe(error, root="experiment"))
    try:
        comparison = CompareSettings.model_validate(compare)
    except ValidationError as error:
        wrong.extend(_described(error, "compare", CompareSettings))
    searched = None
    if "search" in raw:
        searched, problems_of_search = _search(search, experiment, validated if to_search else None)
        wrong.extend(problems_of_search)
    if to_search and "search" not in raw:
        hint = "so there is nothing to tune; see tune_configs/digits.yaml"
        wrong.append(f"search: {origin} has no such section, {hint}")
    if wrong:
        raise ConfigError(tuple(wrong))
    assert validated is not None
    assert comparison is not None
    absolute = _with_absolute_paths(validated)
    return Document(absolute, comparison, searched, _located(experiment, absolute), _relative_paths(validated))


def _described(error: ValidationError, section: str, model: type[Settings]) -> tuple[str, ...]:
    details = problems.as_details(error.errors(include_url=False), model)
    return problems.describe(ValidationError.from_exception_data(section, details), f"{section}.")


def _search(
    given: Any, raw: Mapping[str, Any], experiment: Experiment | None
) -> tuple[SearchSettings | None, Sequence[str]]:
    """The search section, and what is wrong with it, by itself and with the experiment where there is a valid one."""
    try:
        search = SearchSettings.model_validate(given)
    except ValidationError as error:
        return None, _described(error, "search", SearchSettings)
    if experiment is None:
        return search, ()
    return search, tuple(search.problems(experiment, lambda values: varied(raw, values)))


def varied(raw: Mapping[str, Any], values: Mapping[str, Any]) -> Experiment:
    """An experiment section with other values by dotted key. Raises ConfigError with every problem at once."""
    section = _copy(raw)
    wrong = [problem for key, value in values.items() for problem in _set(section, key.split("."), value)]
    if wrong:
        raise ConfigError(tuple(wrong))
    try:
        return _with_absolute_paths(Experiment.model_validate(section))
    except ValidationError as error:
        raise ConfigError(problems.describe(error, root="experiment")) from None


def _located(raw: Mapping[str, Any], absolute: Experiment) -> dict[str, Any]:
    """The section as written, with the absolute paths."""
    section, paths = _copy(raw), dotted(absolute)
    for key in PATHS:
        if key in paths:
            _set(section, key.split("."), paths[key])
    return section


def _copy(section: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are new, values shared."""
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in section.items()}


def _parse_yaml(text: str, origin: str) -> dict[str, Any]:
    try:
        raw = yaml_text.parse(text)
    except yaml_text.NotYaml as error:
        place = f"{origin}, {error.place}" if error.place else origin
        raise ConfigError((f"{place}: invalid YAML: {error.reason}",)) from None
    if not isinstance(raw, dict):
        raise ConfigError((f"{origin}: a mapping with an experiment section is needed",))
    return raw


def _check_secrets(raw: Mapping[str, Any]) -> None:
    """Raises ConfigError, which repeats no value, where an address carries a password or another secret."""
    found = [(".".join(map(shown_text, place)), what) for place, what in secrets_within(raw)][: problems.LIMIT_PROBLEMS]
    if found:
        raise ConfigError(tuple(refusal(place.removeprefix("experiment."), what) for place, what in found))


def _apply(raw: dict[str, Any], override: str) -> list[str]:
    """Set one ``key.path=value`` in place; what is wrong with it comes back. Raises ConfigError for a secret."""
    path, equals, text = override.partition("=")
    found = secret_in(override)
    if found is not None:
        raise ConfigError((refusal("an override" if secret_in(path) or "://" in path else shown_text(path), found),))
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) > yaml_text.LIMIT_DEPTH:
        return [f"{shown_text(override)}: an override reads key.path=value"]
    try:
        value = yaml_text.parse(text)
    except yaml_text.NotYaml as error:
        return [f"{shown_text(path)}: {shown(text)}: the value is not YAML: {error.reason}"]
    if keys[0] not in SECTIONS:
        keys = ["experiment", *keys]
    if keys[0] == "search" and keys[1:2] in (["space"], ["baseline"]) and len(keys) > 2:
        keys = [*keys[:2], ".".join(keys[2:])]  # a searched key has dots of its own
    return _set(raw, keys, value)


def _set(target: Any, keys: Sequence[str], value: Any) -> list[str]:
    """Set one value in place; what is wrong with it comes back."""
    for key in keys[:-1]:
        target[key] = {} if target.get(key) is None else target[key]
        target = target[key]
        if not isinstance(target, dict):
            place = ".".join(keys).removeprefix("experiment.")
            return [f"{shown_text(place)}: {shown_text(key)} holds a value, not a section"]
    target[keys[-1]] = value
    return []


def _with_absolute_paths(experiment: Experiment) -> Experiment:
    """Relative paths become absolute when they are read: jobs and trials change directory."""
    for key in PATHS:
        section, name = key.split(".")
        settings = getattr(experiment, section)
        place = getattr(settings, name, None)
        if place:
            changed = settings.model_copy(update={name: _absolute(place)})
            experiment = experiment.model_copy(update={section: changed})
    return experiment


def _relative_paths(experiment: Experiment) -> dict[str, str]:
    places = dotted(experiment)
    return {key: places[key] for key in PATHS if places.get(key) and is_relative(places[key])}


def is_relative(place: str) -> bool:
    """Does a path, or the address of a store, depend on the working directory?"""
    return _absolute(place) != place and not os.path.isabs(place)


def _absolute(place: str) -> str:
    """A path, or the address of a local store, as an absolute one; other addresses as they are."""
    if place.startswith(("sqlite:", "sqlite+", "file:")):
        return absolute_uri(place)
    return place if "://" in place or place.startswith("databricks") else os.path.abspath(place)


def dump(experiment: Experiment) -> str:
    """The experiment as a file that reads back to the same settings."""
    return yaml_text.write({"experiment": experiment.model_dump(mode="json", exclude_none=True)})


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
