"""Overrides by dotted key, as on the command line."""

from typing import Any

import pytest

from fednar_ray.config import Domain
from tests.support.experiment_files import SMALL, find_problems, parse_experiment


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=7", 7),
        (" seed = 7 ", 7),
        ("experiment.seed=7", 7),
        ("federation={rounds: 5, local_epochs: 2}", 5),
        ("regularizer.clip_bound=1e-3", 1e-3),
        ("algorithm.local_lr=.5", 0.5),
        ("tracking.uri=postgresql://u@h/d?a=b", "postgresql://u@h/d?a=b"),
        ("data.partition.kind=shards", "shards"),
        ("federation.clients_per_round=null", None),
        ("federation.clients_per_round=", None),
    ],
)
def test_overrides_change_settings(override: str, value: object) -> None:
    found: Any = parse_experiment(SMALL, override).experiment
    for key in override.partition("=")[0].strip().removeprefix("experiment.").split("."):
        found = getattr(found, key)
    assert (found.rounds if override.startswith("federation={") else found) == value


def test_later_overrides_win_and_missing_sections_are_created() -> None:
    document = parse_experiment(SMALL, "seed=1", "seed=2", "compare.seeds=9", "search.space.a.b={uniform: [0, 1]}")
    assert (document.experiment.seed, document.compare.seeds) == (2, 9)
    assert document.search is not None
    assert document.search.space == {"a.b": Domain(kind="uniform", values=(0, 1))}


@pytest.mark.parametrize("override", ["a", "=1", "a.=1", ".a=1", "a..b=1", ""])
def test_an_override_is_a_key_path_and_a_value(override: str) -> None:
    assert find_problems(override) == (f"{override}: should be key=value, such as federation.rounds=5",)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=[", "seed: '[': the value is not YAML"),
        ("seed={a: 1, a: 2}", "seed: '{a: 1, a: 2}': the value is not YAML"),
        ("seed=2001-99-01", "seed: '2001-99-01': the value is not YAML"),
        ("seed=0x_", "seed: '0x_': the value is not YAML"),
        ("model.name.x=1", "model.name.x: name holds a value, not a section"),
        ("data=1", "data: 1 "),
    ],
)
def test_an_invalid_override_is_refused_with_the_reason(override: str, line: str) -> None:
    (problem,) = find_problems(override)
    assert problem.startswith(line)
