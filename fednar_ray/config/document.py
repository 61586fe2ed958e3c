"""The validated sections of an experiment file: ``experiment``, which every file has, ``compare`` and ``search``."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import ValidationError

from fednar_ray.config import problems
from fednar_ray.config.comparison import CompareSettings
from fednar_ray.config.dotted_keys import SECTIONS, copy_sections, set_value
from fednar_ray.config.experiment import Experiment
from fednar_ray.config.overrides import apply_override
from fednar_ray.config.paths import find_relative_paths, insert_paths, make_paths_absolute
from fednar_ray.config.search import SearchSettings
from fednar_ray.core.credentials import describe_secret, find_secrets
from fednar_ray.core.errors import ConfigError, format_text


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """The validated contents of an experiment file."""

    experiment: Experiment
    compare: CompareSettings
    search: SearchSettings | None
    raw: Mapping[str, Any]  # the experiment section before validation, with the overrides and absolute paths
    relative: Mapping[str, str]  # dotted key → the path, if the file gives a relative one

    @property
    def search_name(self) -> str:
        """The name of the document's search: ``search.name``, or the experiment's name. Empty without a search."""
        return "" if self.search is None else self.search.name or self.experiment.name

    def build_variant(self, values: Mapping[str, Any]) -> Experiment:
        """Builds the experiment with other values.

        Args:
            values: Dotted key → value, as in ``{"algorithm.name": "fedadam"}``. Keys that the file leaves out get the
                defaults that belong to these values.

        Raises:
            ConfigError: The values are invalid. It lists every problem.
        """
        return build_variant(self.raw, values)


def build_variant(raw: Mapping[str, Any], values: Mapping[str, Any]) -> Experiment:
    """Builds an experiment from its section with other values by dotted key.

    Args:
        raw: The section before validation.
        values: Dotted key → value.

    Raises:
        ConfigError: The values are invalid. It lists every problem.
    """
    section = copy_sections(raw)
    wrong = [problem for key, value in values.items() for problem in set_value(section, key.split("."), value)]
    if wrong:
        raise ConfigError(tuple(wrong))
    try:
        return make_paths_absolute(Experiment.model_validate(section))
    except ValidationError as error:
        raise ConfigError(problems.describe(error, root="experiment")) from None


def validate_sections(raw: dict[str, Any], origin: str, overrides: Sequence[str] = (), *, to_search: bool) -> Document:
    """Validates the sections of a document. Raises ConfigError, which lists every problem."""
    wrong: list[str] = []
    for override in overrides:
        wrong.extend(apply_override(raw, override))
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
        wrong.extend(problems.describe_section(error, CompareSettings, "compare."))
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
    absolute = make_paths_absolute(validated)
    return Document(absolute, comparison, searched, insert_paths(experiment, absolute), find_relative_paths(validated))


def _check_secrets(raw: Mapping[str, Any]) -> None:
    """Raises ConfigError if a value contains a password or another secret. The error does not repeat the value."""
    found = [(".".join(map(format_text, place)), what) for place, what in find_secrets(raw)][: problems.LIMIT_PROBLEMS]
    if found:
        raise ConfigError(tuple(describe_secret(place.removeprefix("experiment."), what) for place, what in found))


def _validate_search(
    given: Any, raw: Mapping[str, Any], experiment: Experiment | None
) -> tuple[SearchSettings | None, Sequence[str]]:
    """Returns the search section, and its problems: by itself, and with the experiment unless that is None."""
    try:
        search = SearchSettings.model_validate(given)
    except ValidationError as error:
        return None, problems.describe_section(error, SearchSettings, "search.")
    if experiment is None:
        return search, ()
    return search, tuple(search.find_problems(experiment, lambda values: build_variant(raw, values)))
