"""Reads experiment files: YAML with overrides by dotted key, as validated settings.

A file has an ``experiment`` section, and may have the sections ``compare``, which ``fednar compare`` reads, and
``search``, which ``fednar tune`` reads.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic_core import ValidationError

from fednar_ray.config import problems, yaml_text
from fednar_ray.config.base import Settings
from fednar_ray.config.comparison import CompareSettings
from fednar_ray.config.data import CsvSettings
from fednar_ray.config.experiment import Experiment
from fednar_ray.config.search import SearchSettings
from fednar_ray.core.credentials import describe_secret, find_secret, find_secrets
from fednar_ray.core.errors import ConfigError, format_text, format_value
from fednar_ray.core.store_uris import make_uri_absolute

SECTIONS = ("experiment", "compare", "search")
EMBEDDED = ("digits", "compare", "silos")
"""The files that ship with the package, by name."""
PATHS = (
    "tracking.uri", "availability.trace", "checkpoint.storage", "model.weights", "data.directory", "data.path",
    "data.test_path",
)  # fmt: skip
"""The keys of an experiment whose values are paths or store addresses."""


RESOLVED_SECTIONS = ("algorithm.", "regularizer.")  # their defaults follow from the name of the preset


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """The validated contents of an experiment file."""

    experiment: Experiment
    compare: CompareSettings
    search: SearchSettings | None
    raw: Mapping[str, Any]  # the experiment section before validation, with the overrides and absolute paths
    relative: Mapping[str, str]  # dotted key → the path, if the file gives a relative one

    def build_variant(self, values: Mapping[str, Any]) -> Experiment:
        """Builds the experiment with other values.

        Args:
            values: Dotted key → value, as in ``{"algorithm.name": "fedadam"}``. Keys that the file leaves out get the
                defaults that belong to these values.

        Raises:
            ConfigError: The values are invalid. It lists every problem.
        """
        return build_variant(self.raw, values)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Loads the experiment of a YAML or JSON file, or one that ships with the package.

    Args:
        path: The file; or ``digits``, ``compare`` or ``silos``, the experiments that ship with the package. A file of
            such a name in the working directory comes first.
        overrides: ``key=value`` texts, as on the command line: ``federation.rounds=5``. Values are YAML.

    Returns:
        The experiment. Relative paths in it are made absolute.

    Raises:
        ConfigError: The file cannot be read, or a setting is invalid. It lists every problem.

    Examples:
        >>> experiment = fr.load("digits", ["federation.rounds=5", "regularizer.name=fednar"])
    """
    return load_document(path, overrides).experiment


def load_document(path: str | Path, overrides: Sequence[str] = (), *, to_search: bool = False) -> Document:
    """Loads all sections of a YAML or JSON file, or of one that ships with the package.

    Args:
        path: The file, or the name of one that ships with the package.
        overrides: ``key=value`` texts. A key without a section name belongs to ``experiment``.
        to_search: Whether the file must have a ``search`` section that is valid for the experiment.

    Raises:
        ConfigError: The file cannot be read, or a setting is invalid. It lists every problem.
    """
    if str(path) in EMBEDDED and not os.path.isfile(path):
        return load_embedded(str(path), overrides, to_search=to_search)
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(yaml_text.LIMIT_CHARACTERS + 1)  # a longer file is refused, not read to its end
    except (OSError, ValueError) as error:  # ValueError: the path contains NUL, or the bytes are not UTF-8
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        known = "" if path.suffix or len(path.parts) > 1 else f"; the names {', '.join(EMBEDDED)} need no file"
        raise ConfigError((f"{format_text(path)}: cannot be read: {reason}{known}",)) from None
    return parse_document(text, str(path), overrides, to_search=to_search)


def apply_overrides(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """Returns an experiment with ``key=value`` overrides. Raises ConfigError, which lists every problem."""
    return parse_document(dump(experiment), "experiment", overrides).experiment if overrides else experiment


def load_embedded(name: str, overrides: Sequence[str] = (), *, to_search: bool = False) -> Document:
    """Loads a file that ships with the package.

    Args:
        name: The name of the file without its suffix, one of ``EMBEDDED``.
        overrides: ``key=value`` texts.
        to_search: Whether the file must have a ``search`` section.

    Raises:
        ConfigError: An override is invalid, or the file has no ``search`` section. It lists every problem.
    """
    text = (resources.files("fednar_ray.config") / "defaults" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_document(text, f"{name}.yaml (embedded)", overrides, to_search=to_search)


def parse_document(text: str, origin: str, overrides: Sequence[str] = (), *, to_search: bool = False) -> Document:
    """Parses the text of an experiment file.

    Args:
        text: YAML or JSON.
        origin: The name of the text in errors.
        overrides: ``key=value`` texts.
        to_search: Whether the text must have a ``search`` section that is valid for the experiment.

    Raises:
        ConfigError: The text or a setting is invalid. It lists every problem.
    """
    return _validate_sections(_parse_yaml(text, origin), origin, overrides, to_search=to_search)


def build_document(
    experiment: Experiment, *, compare: Mapping[str, Any] | None = None, search: Mapping[str, Any] | None = None
) -> Document:
    """Builds the document of an experiment and of the settings of a comparison or a search, as a file would have them.

    Args:
        experiment: The experiment. Settings that it leaves out keep the defaults of the variant that is trained.
        compare: The ``compare`` section.
        search: The ``search`` section; None: the document has none.

    Raises:
        ConfigError: A setting is invalid. It lists every problem.
    """
    sections = {"experiment": _dump_given(experiment), "compare": dict(compare or {})}
    if search is not None:
        sections["search"] = dict(search)
    return _validate_sections(sections, "the arguments", to_search=search is not None)


def _dump_given(experiment: Experiment) -> dict[str, Any]:
    """Returns the settings that were given; all of them, if some were changed later, past validation."""
    raw = experiment.model_dump(mode="json", exclude_unset=True)
    with suppress(ValidationError):
        if Experiment.model_validate(raw) == experiment:
            return raw
    return experiment.model_dump(mode="json", exclude_none=True)


def _validate_sections(raw: dict[str, Any], origin: str, overrides: Sequence[str] = (), *, to_search: bool) -> Document:
    """Validates the sections of a document. Raises ConfigError, which lists every problem."""
    wrong: list[str] = []
    for override in overrides:
        wrong.extend(_apply(raw, override))
    _check_secrets(raw)
    unknown = [key for key in raw if key not in SECTIONS][: problems.LIMIT_PROBLEMS]
    wrong += [f"{format_text(key)}: unknown section{problems.suggest(str(key), SECTIONS)}" for key in unknown]
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
        wrong.extend(_describe(error, "compare", CompareSettings))
    searched = None
    if "search" in raw:
        searched, problems_of_search = _validate_search(search, experiment, validated if to_search else None)
        wrong.extend(problems_of_search)
    if to_search and "search" not in raw:
        wrong.append(f"search: missing in {origin}; add a search section, as in tune_configs/digits.yaml")
    if wrong:
        raise ConfigError(tuple(wrong))
    assert validated is not None
    assert comparison is not None
    absolute = _make_paths_absolute(validated)
    return Document(
        absolute, comparison, searched, _insert_paths(experiment, absolute), _find_relative_paths(validated)
    )


def _describe(error: ValidationError, section: str, model: type[Settings]) -> tuple[str, ...]:
    details = problems.convert_errors(error.errors(include_url=False), model)
    return problems.describe(ValidationError.from_exception_data(section, details), f"{section}.")


def validate_csv(values: Mapping[str, Any], place: str) -> CsvSettings:
    """Validates how text files are written, given outside an experiment.

    Args:
        values: Keys of ``data.csv`` → value.
        place: What the place of a problem starts with, such as ``csv.``.

    Raises:
        ConfigError: A key does not exist, or its value is invalid. It lists every problem.
    """
    try:
        return CsvSettings.model_validate(dict(values))
    except ValidationError as error:
        details = problems.convert_errors(error.errors(include_url=False), CsvSettings)
        raise ConfigError(problems.describe(ValidationError.from_exception_data("csv", details), place)) from None


def _validate_search(
    given: Any, raw: Mapping[str, Any], experiment: Experiment | None
) -> tuple[SearchSettings | None, Sequence[str]]:
    """Returns the search section, and its problems: by itself, and with the experiment unless that is None."""
    try:
        search = SearchSettings.model_validate(given)
    except ValidationError as error:
        return None, _describe(error, "search", SearchSettings)
    if experiment is None:
        return search, ()
    return search, tuple(search.find_problems(experiment, lambda values: build_variant(raw, values)))


def build_variant(raw: Mapping[str, Any], values: Mapping[str, Any]) -> Experiment:
    """Builds an experiment from its section with other values by dotted key.

    Args:
        raw: The section before validation.
        values: Dotted key → value.

    Raises:
        ConfigError: The values are invalid. It lists every problem.
    """
    section = _copy(raw)
    wrong = [problem for key, value in values.items() for problem in _set(section, key.split("."), value)]
    if wrong:
        raise ConfigError(tuple(wrong))
    try:
        return _make_paths_absolute(Experiment.model_validate(section))
    except ValidationError as error:
        raise ConfigError(problems.describe(error, root="experiment")) from None


def _insert_paths(raw: Mapping[str, Any], absolute: Experiment) -> dict[str, Any]:
    """Returns a copy of the section with the absolute paths of ``absolute``."""
    section, paths = _copy(raw), flatten_settings(absolute)
    for key in PATHS:
        if key in paths:
            _set(section, key.split("."), paths[key])
    return section


def _copy(section: Mapping[str, Any]) -> dict[str, Any]:
    """Copies the nested mappings, and shares their values."""
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in section.items()}


def _parse_yaml(text: str, origin: str) -> dict[str, Any]:
    try:
        raw = yaml_text.parse(text)
    except yaml_text.NotYaml as error:
        place = f"{origin}, {error.place}" if error.place else origin
        raise ConfigError((f"{place}: invalid YAML: {error.reason}",)) from None
    if not isinstance(raw, dict):
        raise ConfigError((f"{origin}: should be a mapping with an experiment section",))
    return raw


def _check_secrets(raw: Mapping[str, Any]) -> None:
    """Raises ConfigError if a value contains a password or another secret. The error does not repeat the value."""
    found = [(".".join(map(format_text, place)), what) for place, what in find_secrets(raw)][: problems.LIMIT_PROBLEMS]
    if found:
        raise ConfigError(tuple(describe_secret(place.removeprefix("experiment."), what) for place, what in found))


def _apply(raw: dict[str, Any], override: str) -> list[str]:
    """Sets one ``key=value`` in ``raw``, and returns what is wrong with it. Raises ConfigError for a secret."""
    path, equals, text = override.partition("=")
    found = find_secret(override)
    if found is not None:
        raise ConfigError(
            (describe_secret("an override" if find_secret(path) or "://" in path else format_text(path), found),)
        )
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) > yaml_text.LIMIT_DEPTH:
        return [f"{format_text(override.strip())}: should be key=value, such as federation.rounds=5"]
    try:
        value = yaml_text.parse(text)
    except yaml_text.NotYaml as error:
        return [f"{format_text(path)}: {format_value(text)}: the value is not YAML: {error.reason}"]
    if keys[0] not in SECTIONS:
        keys = ["experiment", *keys]
    if keys[0] == "search" and keys[1:2] in (["space"], ["baseline"]) and len(keys) > 2:
        keys = [*keys[:2], ".".join(keys[2:])]  # a searched key is one key, although it contains dots
    return _set(raw, keys, value)


def _set(target: Any, keys: Sequence[str], value: Any) -> list[str]:
    """Sets one value in ``target``, and returns what is wrong with its place."""
    for key in keys[:-1]:
        target[key] = {} if target.get(key) is None else target[key]
        target = target[key]
        if not isinstance(target, dict):
            place = ".".join(keys).removeprefix("experiment.")
            return [f"{format_text(place)}: {format_text(key)} holds a value, not a section"]
    target[keys[-1]] = value
    return []


def _make_paths_absolute(experiment: Experiment) -> Experiment:
    """Makes relative paths absolute, since jobs and trials run in other working directories."""
    for key in PATHS:
        section, name = key.split(".")
        settings = getattr(experiment, section)
        place = getattr(settings, name, None)
        if place:
            changed = settings.model_copy(update={name: _make_absolute(place)})
            experiment = experiment.model_copy(update={section: changed})
    return experiment


def _find_relative_paths(experiment: Experiment) -> dict[str, str]:
    places = flatten_settings(experiment)
    return {key: places[key] for key in PATHS if places.get(key) and is_relative(places[key])}


def is_relative(place: str) -> bool:
    """Returns whether a path or the address of a store depends on the working directory."""
    return _make_absolute(place) != place and not os.path.isabs(place)


def _make_absolute(place: str) -> str:
    """Makes a path or the address of a local store absolute, and returns other addresses unchanged."""
    if place.startswith(("sqlite:", "sqlite+", "file:")):
        return make_uri_absolute(place)
    return place if "://" in place or place.startswith("databricks") else os.path.abspath(place)


def dump(experiment: Experiment) -> str:
    """Returns the experiment as the YAML text of a file, which ``load`` reads back as the same settings."""
    return yaml_text.write({"experiment": experiment.model_dump(mode="json", exclude_none=True)})


def compute_digest(experiment: Experiment) -> str:
    """Computes the SHA-256 of all settings, as hexadecimal digits."""
    return hashlib.sha256(dump(experiment).encode()).hexdigest()


def flatten_settings(experiment: Experiment) -> dict[str, Any]:
    """Returns dotted key → value for all settings but those that are None."""
    return _flatten(experiment.model_dump(mode="json", exclude_none=True))


def flatten_chosen_settings(experiment: Experiment) -> dict[str, Any]:
    """Returns dotted key → value for the settings that matter to a reader of results.

    Those are the settings that somebody set, and all settings of the algorithm and the regularizer, whose defaults
    follow from their names. Other defaults, and settings that are None, are left out.
    """
    everything = flatten_settings(experiment)
    chosen = _flatten(experiment.model_dump(mode="json", exclude_none=True, exclude_unset=True))
    keys = {"name", "seed", "federation.rounds", *chosen}
    return {key: value for key, value in everything.items() if key in keys or key.startswith(RESOLVED_SECTIONS)}


def _flatten(sections: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    walk("", sections)
    return flat
