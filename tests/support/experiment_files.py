"""Experiment files for tests of the configuration, and the problems that are found in them."""

from typing import Any

import pytest
import yaml

import fednar_ray as fr
from fednar_ray.config import Document
from fednar_ray.config.loading import parse_document

SMALL = {
    "data": {"partition": {"clients": 4}},
    "model": {"name": "mlp"},
    "federation": {"rounds": 2, "local_steps": 1},
}


def parse_experiment(experiment: Any, *overrides: str, **sections: Any) -> Document:
    return parse_document(yaml.safe_dump({"experiment": experiment, **sections}), "f.yaml", overrides)


def find_problems(*overrides: str, base: Any = SMALL, **sections: Any) -> tuple[str, ...]:
    with pytest.raises(fr.ConfigError) as caught:
        parse_experiment(base, *overrides, **sections)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems
