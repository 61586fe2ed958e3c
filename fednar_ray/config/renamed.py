"""Keys that have another name than in earlier versions: a file that still has one is told what to write."""

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
"""The old name of a key of the experiment → its name now. A section's name stands for all of its keys."""

PROBLEM = "renamed"
"""The type of the problems that ``under_new_names`` finds."""

Place = tuple[str, ...]


def under_new_names(experiment: Any) -> tuple[Any, list[InitErrorDetails]]:
    """Finds the renamed keys of an experiment section.

    Args:
        experiment: The section as it was read; anything but a mapping has no keys.

    Returns:
        The section with its values under the new names, so that all else that is wrong with it can be found as well;
        and one problem per renamed key.
    """
    problems: list[InitErrorDetails] = []
    for old, new in RENAMED.items():
        found = list(_find(experiment, tuple(old.split("."))))
        if found:
            experiment = _move(experiment, tuple(old.split(".")), tuple(new.split(".")))
        problems += [_problem(place, new + ".".join(("", *place[old.count(".") + 1 :]))) for place in found]
    return experiment, problems


def _find(section: Any, keys: Place) -> Iterator[Place]:
    """The place of a key; the places of its keys where it is a section."""
    for key in keys:
        if not isinstance(section, Mapping) or key not in section:
            return
        section = section[key]
    if len(keys) == 1 and isinstance(section, Mapping) and section:
        yield from ((*keys, str(key)) for key in section)
    else:
        yield keys


def _move(section: Mapping[str, Any], old: Place, new: Place) -> dict[str, Any]:
    """A copy with a value under its new name in the same section, unless there is one already."""
    if len(old) > 1:
        return {**section, old[0]: _move(section[old[0]], old[1:], new[1:])}
    moved = {key: value for key, value in section.items() if key != old[0]}
    return {new[0]: section[old[0]], **moved}


def _problem(place: Place, new: str) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError(PROBLEM, "is now {new}", {"new": new}), loc=place, input=None)
