"""YAML as people write it: numbers are numbers, quoted text is text, and hostile files are refused quickly."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import fednar_ray as fr
from fednar_ray.config import dump, yaml_text
from fednar_ray.config.loading import parse_document
from fednar_ray.config.yaml_text import NotYaml, parse, write
from fednar_ray.core.errors import format_value
from fednar_ray.tracking.searches import parse_value
from tests.support.drawn import draw

NUMBERS = (
    "1e-3", "1E5", "999e-3", "1e+3", "+1e3", "-1e3", ".5", "-.5", "+.5e3", "1.e3", "1.5e3", "1.5E-2", "0e0", "1e300",
    "1e-320", "00.5", "1.0", "2.",
)  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_parsed_as_float_parses_it(text: str) -> None:
    assert parse(text) == float(text)
    assert isinstance(parse(text), float)
    assert parse(f"[{text}, {{a: {text}}}]") == [float(text), {"a": float(text)}]
    assert parse(f"'{text}'") == text == parse(f'"{text}"')
    assert parse_value(text) == float(text)  # as MLflow stores it


@pytest.mark.parametrize("text", ["e5", "1e", "1e-", "e", ".", "-e", "1.2.3", "1e5x", "0x1e5g", "1 e5", ".e5", "1e5e5"])
def test_a_value_that_is_not_a_number_is_text(text: str) -> None:
    assert parse(text) == text


@draw(100)
@given(st.from_regex(r"[-+]?([0-9]{1,5}\.?[0-9]{0,5}|\.[0-9]{1,5})[eE][-+]?[0-9]{1,3}", fullmatch=True))
def test_every_number_with_an_exponent_is_parsed(text: str) -> None:
    assert parse(text) == float(text)


@draw(100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from(NUMBERS),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    )
)
def test_dumped_values_are_read_back_unchanged(value: object) -> None:
    assert repr(parse(write(value))) == repr(value)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_json_and_yaml_parse_the_same_numbers(values: list[float]) -> None:
    assert parse(json.dumps({"a": values})) == {"a": values}


NETWORK = "{function: nets.net, arguments: {p: %s, name: '1e-1'}}"


def test_numbers_are_parsed_alike_in_experiments_searches_arguments_and_overrides() -> None:
    text = (
        f"experiment: {{model: {NETWORK % '1e-1'}, algorithm: {{local_lr: 1e-3, local_lr_anneal: 999e-3}}}}\n"
        "search: {space: {algorithm.local_lr: {loguniform: [1e-3, 1E-1]}, regularizer.clip_bound: {choice: [1e1, 2]}}}"
    )
    document = parse_document(text, "f.yaml", ["regularizer.weight_decay=1e-4", "model.arguments.q=[2E-2, '2E-2']"])
    assert document.experiment.algorithm.local_lr == 0.001
    assert document.experiment.algorithm.local_lr_anneal == 0.999
    assert document.experiment.regularizer.weight_decay == 0.0001
    assert document.experiment.model is not None
    assert document.experiment.model.arguments == {"p": 0.1, "name": "1e-1", "q": (0.02, "2E-2")}
    assert document.search is not None
    assert document.search.space["algorithm.local_lr"].values == (0.001, 0.1)
    assert document.search.space["regularizer.clip_bound"].values == (10.0, 2)
    again = parse_document(dump(document.experiment), "f.yaml").experiment
    assert again == document.experiment


def build_alias_bomb(line: str, levels: str = "abcdefghi") -> str:
    """Builds nested aliases, nine per level: about 361 bytes for 9^9 values."""
    made = [f"{name}: &{name} {line % ((f'*{before}',) * 9)}" for before, name in pairwise(levels)]
    return "\n".join(["a: &a {k: [x, x, x]}", *made])


HOSTILE = {
    "aliases in lists": (build_alias_bomb("[%s, %s, %s, %s, %s, %s, %s, %s, %s]"), "aliases expand to more than"),
    "aliases in mappings": (
        build_alias_bomb("{a: %s, b: %s, c: %s, d: %s, e: %s, f: %s, g: %s, h: %s, i: %s}"),
        "aliases expand",
    ),
    "merges": (build_alias_bomb("{<<: [%s, %s, %s, %s, %s, %s, %s, %s, %s]}"), "aliases expand to more than"),
    "aliases of a long text": ("a: &a " + "x" * 50_000 + "\nb: [*a, *a, *a]", "aliases expand to more than"),
    "an alias of itself": ("a: &a [*a]", "an alias refers to a value that contains it"),
    "an alias of nothing": ("a: *" + "x" * 100_000, "found undefined alias"),
    "deep lists": ("a: " + "[" * 100_000, "more than 50 levels"),
    "deep mappings": ("a: " + "{a: " * 10_000, "more than 50 levels"),
    "deep blocks": ("\n".join(" " * level + "a:" for level in range(500)), "more than 50 levels"),
    "a long whole number": ("seed: " + "9" * 100_000, "a number of 100000 characters"),
    "a long hexadecimal number": ("seed: 0x" + "f" * 100_000, "a number of 100002 characters"),
    "a long number of base 60": ("seed: " + "1:" * 100_000 + "1", "a number of 200001 characters"),
    "a long fraction": ("seed: 0." + "9" * 100_000, "a number of 100002 characters"),
    "a tag with code": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "a key given twice": ("a: 1\na: 2", "a is given twice"),
    "a long key given twice": (f"? {'x' * 100_000}\n: 1\n? {'x' * 100_000}\n: 2", "is given twice"),
    "equal keys": ("1: a\n1.0: b", "1.0 is given twice"),
    "NUL": ("a: \0", "special characters are not allowed"),
    "too much": ("#" * 2_000_001, "it has more than the maximum of 2000000 characters"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case: str, tmp_path: Path) -> None:
    text, reason = HOSTILE[case]
    with pytest.raises(NotYaml, match=reason) as refused:
        parse(text)
    assert len(str(refused.value)) < 1000
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(fr.ConfigError, match=reason) as raised:
        fr.load(tmp_path / "f.yaml")
    assert len(str(raised.value)) < 2000
    with pytest.raises(fr.ConfigError) as overridden:
        parse_document("experiment: {}", "f.yaml", [f"model.arguments.x={text}"])
    assert len(str(overridden.value)) < 2000
    assert parse_value(text) == text  # such a parameter may come from somebody else's MLflow server


def test_ordinary_aliases_and_merges_are_accepted() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\nd: &d [1, 2]\ne: *d"
    assert parse(text) == yaml.safe_load(text)


def test_an_endless_file_is_refused() -> None:
    with pytest.raises(fr.ConfigError, match="/dev/zero"):
        fr.load("/dev/zero")


LARGE = {
    "a long text": "model: {name: '%s'}" % ("x" * 1_000_000),
    "a long list": "seed: [" + "1," * 3_000 + "1]",
    "a long unknown key": "? %s\n  : 1" % ("x" * 100_000),
    "many unknown keys": "{" + ",".join(f"key{i}: 1" for i in range(1_000)) + "}",
    "a wrong value in each round": "federation: {rounds: 1, participation: [" + "[a]," * 1_000 + "[a]]}",
    "keys that are no text": "{1: a, null: b, true: c, 2020-01-01: d, 1e-3: e}",
    "bytes": "name: !!binary AAECAw==",
}


@pytest.mark.parametrize("case", LARGE)
def test_messages_about_large_values_are_short(case: str) -> None:
    with pytest.raises(fr.ConfigError) as refused:
        parse_document(f"experiment:\n  {LARGE[case]}", "f.yaml")
    assert len(refused.value.problems) <= 60
    assert len(str(refused.value)) < 60_000
    assert max(map(len, refused.value.problems)) < 2000


def test_a_long_value_is_shortened_in_messages() -> None:
    deep: object = "x" * 10_000
    for _ in range(30):
        deep = [deep] * 30
    for value in (deep, 10**10_000, -(10**10_000), "x" * 10**6, list(range(10**5)), {i: i for i in range(10**5)}):
        assert len(format_value(value)) <= 401
    assert format_value([1, 2.5, "a", None, (True,)]) == "[1, 2.5, 'a', None, (True,)]"


def test_the_key_of_an_override_has_the_same_depth_limit_as_a_file() -> None:
    with pytest.raises(fr.ConfigError, match="should be key=value"):
        parse_document("experiment: {}", "f.yaml", ["model.arguments." + "a." * 5000 + "b=1"])
    assert yaml_text.LIMIT_DEPTH == 50


@pytest.mark.parametrize(("text", "value"), [("010", 10), ("-007", -7), ("0_1", 1), ("0x1F", 31), ("0", 0)])
def test_a_number_with_a_leading_zero_is_not_octal(text: str, value: int) -> None:
    assert yaml_text.parse(text) == value


@pytest.mark.parametrize("text", ["1:30", "-1:30", "190:20:30.15", "010", "1e-3", "08"])
def test_times_are_text_and_texts_survive_a_round_trip(text: str) -> None:
    assert yaml_text.parse(yaml_text.write({"a": text})) == {"a": text}
    if ":" in text:
        assert yaml_text.parse(text) == text
