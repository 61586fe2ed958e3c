"""Keys that were renamed since earlier versions are refused with their new name, wherever they occur."""

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import fednar_ray as fr
from fednar_ray.config.loading import parse_document
from fednar_ray.config.renamed import RENAMED

BASE: dict[str, Any] = {
    "data": {"partition": {"clients": 4}, "validation": 0.1},
    "model": {"name": "mlp"},
    "federation": {"rounds": 2, "local_steps": 1},
}
SPACE = {"regularizer.clip_bound": {"uniform": [1, 2]}}

OLD_KEYS = {
    "execution.cohort_width": (8, ["execution.cohort_width is now execution.vectorize"]),
    "execution.sites": (
        {"north": {"data": "/a.csv"}},
        ["execution.sites is now execution.silos"],
    ),
    "corruption": (
        {"nan": 0.1, "factor": 3.0},
        ["corruption.nan is now attacks.nan", "corruption.factor is now attacks.factor"],
    ),
    "data.standardise": (False, ["data.standardise is now data.standardize"]),
    "data.normalisation": ({"mean": [0.5], "std": [0.5]}, ["data.normalisation is now data.normalization"]),
}
"""Every renamed key with a value that is valid under its new name, and the expected errors."""


def find_problems(
    experiment: Any = BASE, *overrides: str, search: Any = None, to_search: bool = False
) -> tuple[str, ...]:
    sections = {"experiment": experiment} | ({} if search is None else {"search": search})
    with pytest.raises(fr.ConfigError) as caught:
        parse_document(yaml.safe_dump(sections), "f.yaml", overrides, to_search=to_search)
    return caught.value.problems


def build_with_old_key(key: str) -> dict[str, Any]:
    section, _, name = key.partition(".")
    value = OLD_KEYS[key][0]
    return {**BASE, section: {**BASE.get(section, {}), name: value} if name else value}


def test_every_renamed_key_is_tested() -> None:
    assert set(OLD_KEYS) == set(RENAMED)


@pytest.mark.parametrize("key", OLD_KEYS)
def test_an_old_key_in_a_file_is_refused_with_the_new_key(key: str) -> None:
    problems = find_problems(build_with_old_key(key))
    for line in OLD_KEYS[key][1]:
        assert line in problems
    assert not any("unknown key" in problem for problem in problems)


@pytest.mark.parametrize("key", ["execution.cohort_width", "corruption"])
def test_an_old_key_with_a_valid_value_is_the_only_problem(key: str) -> None:
    assert sorted(find_problems(build_with_old_key(key))) == sorted(OLD_KEYS[key][1])


@pytest.mark.parametrize("key", OLD_KEYS)
def test_an_old_key_in_an_override_is_refused_with_the_new_key(key: str) -> None:
    value, lines = OLD_KEYS[key]
    override = f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10)).strip()}"
    assert set(lines) <= set(find_problems(BASE, override))


def test_an_override_in_a_renamed_section_is_refused_with_the_new_key() -> None:
    assert find_problems(BASE, "corruption.scaled=0.2") == ("corruption.scaled is now attacks.scaled",)


@pytest.mark.parametrize("key", ["corruption.nan", "data.standardise"])
@pytest.mark.parametrize("kind", ["choice", "uniform"])
def test_an_old_key_in_a_search_space_is_refused_with_the_new_key(key: str, kind: str) -> None:
    space = {key: {kind: [0.1, 0.2]}}
    new = {"corruption.nan": "attacks.nan", "data.standardise": "data.standardize"}[key]
    problems = find_problems(search={"space": space}, to_search=True)
    assert f"search.space.{key}: {key} is now {new}" in problems


def test_an_old_key_in_the_baseline_of_a_search_is_refused_with_the_new_key() -> None:
    baseline = {"execution.cohort_width": 8}
    assert find_problems(search={"space": SPACE, "baseline": baseline}, to_search=True) == (
        "search.baseline: execution.cohort_width is now execution.vectorize",
    )


@pytest.mark.parametrize("key", OLD_KEYS)
def test_a_recorded_experiment_with_an_old_key_is_refused(key: str) -> None:
    recorded = fr.Experiment.model_validate(BASE).model_dump(mode="json", exclude_none=True)
    section, _, name = key.partition(".")
    value = OLD_KEYS[key][0]
    recorded[section] = {**recorded[section], name: value} if name else value
    new = RENAMED[key]
    with pytest.raises(ValidationError, match=f"is now {new}"):
        fr.Experiment.model_validate(recorded)


def test_all_other_problems_are_reported_too() -> None:
    wrong = {**build_with_old_key("execution.cohort_width"), "corruption": {"nan": 2}, "seed": -1}
    assert find_problems(wrong) == (
        "execution.cohort_width is now execution.vectorize",
        "corruption.nan is now attacks.nan",
        "seed: -1 should be greater than or equal to 0",
        "attacks.nan: 2 should be less than 1",
    )


@pytest.mark.parametrize("corruption", [None, 3, {}])
def test_an_old_section_without_keys_is_refused_with_the_new_name(corruption: Any) -> None:
    assert "corruption is now attacks" in find_problems({**BASE, "corruption": corruption})
