"""Reads experiment files, YAML with overrides by dotted key, as validated settings, and writes them.

A file has an ``experiment`` section, and may have the sections ``compare``, which ``fednar compare`` reads, and
``search``, which ``fednar tune`` reads.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic_core import ValidationError

from fednar_ray.config import yaml_text
from fednar_ray.config.document import Document, validate_sections
from fednar_ray.config.experiment import Experiment
from fednar_ray.core.errors import ConfigError, format_text

EMBEDDED = ("digits", "compare", "silos")
"""The files that ship with the package, by name."""


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
    return validate_sections(_parse_yaml(text, origin), origin, overrides, to_search=to_search)


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
    return validate_sections(sections, "the arguments", to_search=search is not None)


def _dump_given(experiment: Experiment) -> dict[str, Any]:
    """Returns the settings that were given; all of them, if some were changed later, past validation."""
    raw = experiment.model_dump(mode="json", exclude_unset=True)
    with suppress(ValidationError):
        if Experiment.model_validate(raw) == experiment:
            return raw
    return experiment.model_dump(mode="json", exclude_none=True)


def _parse_yaml(text: str, origin: str) -> dict[str, Any]:
    try:
        raw = yaml_text.parse(text)
    except yaml_text.NotYaml as error:
        place = f"{origin}, {error.place}" if error.place else origin
        raise ConfigError((f"{place}: invalid YAML: {error.reason}",)) from None
    if not isinstance(raw, dict):
        raise ConfigError((f"{origin}: should be a mapping with an experiment section",))
    return raw


def dump(experiment: Experiment) -> str:
    """Returns the experiment as the YAML text of a file, which ``load`` reads back as the same settings."""
    return yaml_text.write({"experiment": experiment.model_dump(mode="json", exclude_none=True)})


def compute_digest(experiment: Experiment) -> str:
    """Computes the SHA-256 of all settings, as hexadecimal digits."""
    return hashlib.sha256(dump(experiment).encode()).hexdigest()
