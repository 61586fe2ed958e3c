"""Settings by dotted key, such as ``federation.rounds``: all that an experiment has, and setting one of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from fednar_ray.config.experiment import Experiment
from fednar_ray.core.errors import format_text

SECTIONS = ("experiment", "compare", "search")
RESOLVED_SECTIONS = ("algorithm.", "regularizer.")  # their defaults follow from the name of the preset


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


def set_value(target: Any, keys: Sequence[str], value: Any) -> list[str]:
    """Sets one value in ``target``, and returns what is wrong with its place."""
    for key in keys[:-1]:
        target[key] = {} if target.get(key) is None else target[key]
        target = target[key]
        if not isinstance(target, dict):
            place = ".".join(keys).removeprefix("experiment.")
            return [f"{format_text(place)}: {format_text(key)} holds a value, not a section"]
    target[keys[-1]] = value
    return []


def copy_sections(section: Mapping[str, Any]) -> dict[str, Any]:
    """Copies the nested mappings, and shares their values."""
    return {key: copy_sections(value) if isinstance(value, dict) else value for key, value in section.items()}
