"""``fednar config`` shows every key with its meaning, default and values, as the settings classes have them."""

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fednar_ray.cli.main import cli
from fednar_ray.config import Experiment, flatten_settings, load_embedded
from fednar_ray.config.describe import list_sections
from fednar_ray.config.search import SearchSettings


def ask(*words: str) -> Result:
    return CliRunner().invoke(cli, ["config", *words])


def ask_json(*words: str) -> list[dict[str, Any]]:
    done = ask(*words, "--json")
    assert done.exit_code == 0, done.output
    return list(json.loads(done.output)["keys"])


def test_every_key_of_the_embedded_experiments_is_listed_in_one_line() -> None:
    lines = ask().output.splitlines()
    for name in ("digits", "compare"):
        for key in flatten_settings(load_embedded(name).experiment):
            assert sum(line.split()[:1] == [key] for line in lines) == 1, key


def test_every_key_has_a_meaning_and_every_section_too() -> None:
    for section in list_sections():
        assert section.meaning, section.name
        for key in section.list_keys():
            assert len(key.meaning) > 8, key.name


def test_defaults_are_those_of_an_empty_experiment() -> None:
    shown = {key["key"]: key["default"] for key in ask_json() if key["read_by"] is None}
    for key, value in flatten_settings(Experiment()).items():
        if isinstance(value, int | float) and not key.startswith(("algorithm.", "federation.local_epochs")):
            assert json.loads(shown[key]) == value, key
    assert shown["search.trials"] == str(SearchSettings.model_fields["trials"].default)


def test_a_key_is_shown_in_full() -> None:
    (key,) = ask_json("regularizer.clip_bound")
    assert (key["values"], key["default"], key["section"]) == ("number > 0", "10.0", "regularizer")
    assert key["example"] == "regularizer.clip_bound=1.1"
    shown = ask("regularizer.clip_bound").output
    assert "A_0" in shown
    assert "example   regularizer.clip_bound=1.1\n" in shown
    assert "in a file regularizer: {clip_bound: 1.1}" in shown


def test_a_section_lists_its_keys_and_what_lies_within() -> None:
    assert {key["key"] for key in ask_json("compare")} >= {"compare.seeds", "compare.regularizers"}
    shown = ask("data").output
    assert "source: folder" in shown
    assert "sections within: data.partition" in shown


@pytest.mark.parametrize(
    ("kind", "own", "common"),
    [
        ("data.folder", "data.missing", "data.validation"),
        ("model.mlp", "model.hidden", "model.weights"),
        ("algorithm.fedprox", "algorithm.mu", "algorithm.local_lr"),
        ("model.function", "model.arguments", "model.weights"),
        ("search.scheduler.asha", "search.scheduler.grace_rounds", "search.scheduler.name"),
    ],
)
def test_a_kind_shows_its_own_keys_and_those_of_every_kind(kind: str, own: str, common: str) -> None:
    assert {own, common} <= {key["key"] for key in ask_json(kind)}
    assert own in ask(kind).output


def test_a_key_that_kinds_read_differently_is_shown_for_each() -> None:
    by_preset = {name: key["default"] for key in ask_json("algorithm.server_lr") for name in key["read_by"]}
    assert (by_preset["fedavg"], by_preset["fedadam"]) == ("1.0", "0.1")
    assert ask("algorithm.server_lr").output.count("read by") == 2


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("regularizer.clip_bond", "did you mean regularizer.clip_bound?"),
        ("clip_bound", "did you mean regularizer.clip_bound?"),
        ("data.foldr", "did you mean data.folder?"),
        ("qqqqqq", "try fednar config regularizer.clip_bound"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(given: str, nearest: str) -> None:
    error = ask(given).exception
    assert str(error).startswith(f"{given}: there is no such key")
    assert nearest in str(error)
