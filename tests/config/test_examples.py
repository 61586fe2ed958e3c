"""Every setting has an example, which a file that sets little else accepts."""

import shlex

import pytest

from fednar_ray.config.describe import Section, list_sections
from fednar_ray.config.loading import parse_document

SMALL = """
experiment:
  data: {source: digits, validation: 0.1, partition: {clients: 20}}
  model: {name: mlp}
  federation: {local_epochs: 1}
search:
  space: {regularizer.clip_bound: {loguniform: [0.1, 30.0]}}
"""


@pytest.mark.parametrize("section", list_sections(), ids=lambda section: section.name)
def test_every_example_sets_its_key_to_another_value_and_is_accepted(section: Section) -> None:
    for key in section.list_keys():
        words = shlex.split(key.example)
        name, _, value = words[-1].partition("=")
        assert name == key.name.replace("NAME", "clinic_a")
        assert value not in ("", key.default), f"{key.name} has no example"
        parse_document(SMALL, key.name, words, to_search=True)


def test_an_example_has_the_settings_that_it_needs_before_its_own() -> None:
    examples = {(section.name, key.name): key.example for section in list_sections() for key in section.list_keys()}
    assert examples["regularizer", "regularizer.clip_bound"] == "regularizer.clip_bound=1.1"
    assert examples["data.csv", "data.csv.decimal"] == (
        "data.source=folder data.directory=clinics data.csv.decimal='\",\"'"
    )
    assert examples["execution.silos.NAME", "execution.silos.NAME.data"] == (
        "data.source=folder execution.silos.clinic_a.data=/data/clinic_a.csv"
    )
