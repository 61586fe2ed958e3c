"""Finds keys by their names in earlier versions, and reports their current names."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError

RENAMED: Mapping[str, str] = {
    "execution.cohort_width": "execution.vectorize",
    "execution.sites": "execution.silos",
    "corruption": "attacks",
    "data.standardise": "data.standardize",
    "data.normalisation": "data.normalization",
}
"""The old name of a key of the experiment → its current name. The name of a section stands for all of its keys."""

PROBLEM = "renamed"
"""The type of the problems that ``rename_keys`` finds."""

Place = tuple[str, ...]


def rename_keys(experiment: Any) -> tuple[Any, list[InitErrorDetails]]:
    """Finds the renamed keys of an experiment section.

    Args:
        experiment: The section before validation. Anything but a mapping has no keys.

    Returns:
        The section with its values under the current names, so that its other problems can be found as well; and one
        problem per renamed key.
    """
    problems: list[InitErrorDetails] = []
    for old, new in RENAMED.items():
        found = list(_find(experiment, tuple(old.split("."))))
        if found:
            experiment = _move(experiment, tuple(old.split(".")), tuple(new.split(".")))
        problems += [_build_problem(place, new + ".".join(("", *place[old.count(".") + 1 :]))) for place in found]
    return experiment, problems


def _find(section: Any, keys: Place) -> Iterator[Place]:
    """Yields the place of a key if it is there; of a section, the places of its keys."""
    for key in keys:
        if not isinstance(section, Mapping) or key not in section:
            return
        section = section[key]
    if len(keys) == 1 and isinstance(section, Mapping) and section:
        yield from ((*keys, str(key)) for key in section)
    else:
        yield keys


def _move(section: Mapping[str, Any], old: Place, new: Place) -> dict[str, Any]:
    """Returns a copy in which a value has its new name, unless the section already has a value of that name."""
    if len(old) > 1:
        return {**section, old[0]: _move(section[old[0]], old[1:], new[1:])}
    moved = {key: value for key, value in section.items() if key != old[0]}
    return {new[0]: section[old[0]], **moved}


def _build_problem(place: Place, new: str) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError(PROBLEM, "is now {new}", {"new": new}), loc=place, input=None)
