"""Reads which columns the saved model of a run takes, from the description in MLflow's format."""

import json

import yaml

from fednar_ray.core.errors import ModelError, first_line
from fednar_ray.tracking.run_directory import RunDirectory


def read_input_columns(files: RunDirectory) -> tuple[str, ...] | None:
    """Returns the names of the model's input columns, in order; None if its inputs are not rows with named columns.

    Raises:
        ModelError: The description of the model is missing or damaged.
    """
    file = files.model_description
    try:
        described = yaml.safe_load(file.read_text(encoding="utf-8"))
        inputs = json.loads(described["signature"]["inputs"])
        names = [each.get("name") for each in inputs]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ModelError(f"{file}: is missing or damaged: {first_line(error)}") from None
    return tuple(names) if all(isinstance(name, str) for name in names) else None
