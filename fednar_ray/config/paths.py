"""The settings that are paths or addresses of stores, which are made absolute when a file is loaded."""

import os
from collections.abc import Mapping
from typing import Any

from fednar_ray.config.dotted_keys import copy_sections, flatten_settings, set_value
from fednar_ray.config.experiment import Experiment
from fednar_ray.core.store_uris import make_uri_absolute

PATHS = (
    "tracking.uri", "availability.trace", "checkpoint.storage", "model.weights", "data.directory", "data.path",
    "data.test_path",
)  # fmt: skip
"""The keys of an experiment whose values are paths or store addresses."""


def make_paths_absolute(experiment: Experiment) -> Experiment:
    """Makes relative paths absolute, since jobs and trials run in other working directories."""
    for key in PATHS:
        section, name = key.split(".")
        settings = getattr(experiment, section)
        place = getattr(settings, name, None)
        if place:
            changed = settings.model_copy(update={name: _make_absolute(place)})
            experiment = experiment.model_copy(update={section: changed})
    return experiment


def insert_paths(raw: Mapping[str, Any], absolute: Experiment) -> dict[str, Any]:
    """Returns a copy of the section with the absolute paths of ``absolute``."""
    section, paths = copy_sections(raw), flatten_settings(absolute)
    for key in PATHS:
        if key in paths:
            set_value(section, key.split("."), paths[key])
    return section


def find_relative_paths(experiment: Experiment) -> dict[str, str]:
    """Returns dotted key → path or address, for those that are relative."""
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
