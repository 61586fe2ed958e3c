"""Experiment files are read, refused with their line, and written; experiments that ship with the package."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import fednar_ray as fr
from fednar_ray.config import PRESET_SETTINGS, build_document, dump, load_document, load_embedded
from fednar_ray.config.loading import parse_document
from tests.support.drawn import draw
from tests.support.experiment_files import SMALL

ROOT = Path(__file__).parents[2]
EXPERIMENT_KEYS = {
    "": ["name", "seed", "data", "model", "federation", "algorithm", "regularizer", "execution", "tracking"],
    "data": ["source", "validation", "partition", "kind", "clients", "alpha", "shards_per_client", "min_examples"],
    "federation": ["rounds", "clients_per_round", "local_steps", "local_epochs", "batch_size", "participation"],
    "algorithm": ["name", "local_lr", "server_lr", "mu", "alpha", "beta", "beta1", "epsilon", "epsilon_anneal"],
    "regularizer": ["name", "weight_decay", "weight_decay_anneal", "clip_bound", "clip_bound_anneal"],
    "execution": ["placement", "actors", "cpus_per_actor", "gpus_per_actor", "vectorize"],
    "tracking": ["uri", "experiment"],
    "compare": ["regularizers", "weight_decays", "seeds", "target_accuracy", "target_rmse", "target", "final_rounds"],
}


def test_a_file_that_is_missing_or_not_text_is_refused(tmp_path: Path) -> None:
    missing, latin, folder = tmp_path / "missing.yaml", tmp_path / "latin.yaml", tmp_path
    latin.write_bytes("experiment: {name: é}".encode("latin-1"))
    for path, reason in {
        missing: "No such file or directory",
        latin: "it is not UTF-8 text",
        folder: "Is a directory",
    }.items():
        with pytest.raises(fr.ConfigError) as caught:
            fr.load(path)
        assert caught.value.problems == (f"{path}: cannot be read: {reason}",)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("experiment:\n  seed: [1,\n  b: }\n", "f.yaml, line 3, column 6: invalid YAML: "),
        ("experiment:\n\tseed: 1\n", "f.yaml, line 2, column 1: invalid YAML: "),
        ("experiment:\n  seed: 1\n  seed: 2\n", "f.yaml, line 3, column 3: invalid YAML: seed is given twice"),
        ("experiment: {}\nexperiment: {}\n", "f.yaml, line 2, column 1: invalid YAML: experiment is given twice"),
        ("experiment: {}\nsearch: {1: a, 1: b}", "f.yaml, line 2, column 16: invalid YAML: 1 is given twice"),
        ("experiment: {? [a] : 1}", "f.yaml, line 1, column 16: invalid YAML: found unhashable key"),
        ("experiment: !!python/object:os.system {}", "f.yaml, line 1, column 13: invalid YAML: could not determine"),
        ("a: 1\n---\nb: 2", "f.yaml, line 2, column 1: invalid YAML: "),
        ("experiment: \x00", "f.yaml: invalid YAML: "),
        ("experiment: {seed: 2001-99-01}", "f.yaml"),  # no such month
        ("experiment: {seed: 0x_}", "f.yaml"),  # hexadecimal without digits
        (f"experiment: {{seed: {'9' * 5000}}}", "f.yaml"),  # more digits than Python converts
        (f"experiment: {'[' * 3000}{']' * 3000}", "f.yaml"),  # deeper than Python's stack
        ("", "f.yaml: should be a mapping with an experiment section"),
        ("[1]", "f.yaml: should be a mapping with an experiment section"),
        ("just words", "f.yaml: should be a mapping with an experiment section"),
        ("experiment: [1]", "experiment: [1] "),
        ("experiment: false", "experiment: False "),
        ("experiment: {}\ncompare: 5", "compare: 5 "),
        ("experiment: {}\nsearch: 5", "search: 5 "),
    ],
)
def test_a_file_that_is_not_an_experiment_is_refused_with_its_line(text: str, line: str) -> None:
    with pytest.raises(fr.ConfigError) as caught:
        parse_document(text, "f.yaml")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(line)


def test_yaml_anchors_and_merges_work() -> None:
    text = (
        "experiment:\n  regularizer: &r {clip_bound: 2, weight_decay: 0.5}\n  federation: {rounds: 1, local_steps: 1}\n"
    )
    assert parse_document(text + "compare: {weight_decays: &w [0.1]}\n", "f.yaml").compare.weight_decays == (0.1,)
    base = "search: {space: {seed: {choice: [0]}}, baseline: &b {clip_bound: 2, weight_decay: 0.5}}\n"
    merged = base + "experiment: {regularizer: {<<: *b, clip_bound: 3}}"
    regularizer = parse_document(merged, "f.yaml").experiment.regularizer
    assert (regularizer.clip_bound, regularizer.weight_decay) == (3, 0.5)


def test_the_embedded_files_exist_once_and_tune_configs_links_to_them() -> None:
    shipped = sorted((ROOT / "fednar_ray" / "config" / "defaults").glob("*.yaml"))
    assert [path.name for path in shipped] == ["compare.yaml", "digits.yaml", "silos.yaml"]
    assert [(ROOT / "tune_configs" / path.name).resolve() for path in shipped] == shipped


@pytest.mark.parametrize("name", ["digits", "compare", "silos"])
def test_embedded_and_loaded_files_agree(name: str) -> None:
    assert load_document(ROOT / "tune_configs" / f"{name}.yaml", ["seed=3"]) == load_embedded(name, ["seed=3"])


WRITTEN_OUT = """
experiment:
  name: digits
  seed: 0
  data: {source: digits, validation: 0.1, partition: {kind: dirichlet, clients: 20, alpha: 0.3}}
  model: {name: mlp, hidden: 64}
  federation:
    rounds: 30
    clients_per_round: 10
    local_steps: 20            # or local_epochs
    batch_size: 16
    participation: null        # or one list of client ids per round: an explicit schedule
  algorithm: {name: fedavg, local_lr: 0.1, local_lr_anneal: 0.998, server_lr: 1.0}
  regularizer: {name: fednar, weight_decay: 0.01, weight_decay_anneal: 1.0, clip_bound: 10.0, clip_bound_anneal: 1.0}
  execution: {placement: auto, actors: auto, cpus_per_actor: 1, gpus_per_actor: auto, vectorize: auto}
  tracking: {uri: null, experiment: null}
"""


def test_the_default_with_every_key_written_out_equals_the_embedded_default() -> None:
    assert parse_document(WRITTEN_OUT, "f.yaml").experiment == load_embedded("digits").experiment


positive = st.floats(min_value=1e-300, max_value=1e300)
rates = st.floats(min_value=1e-300, max_value=1)
experiments = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "seed": st.integers(0, 2**70),
        "federation": st.fixed_dictionaries(
            {"rounds": st.integers(1, 3), "local_epochs": st.integers(1, 9)},
            optional={
                "participation": st.lists(
                    st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True), min_size=3, max_size=4
                )
            },
        ),
        "algorithm": st.fixed_dictionaries({"name": st.sampled_from([*PRESET_SETTINGS]), "local_lr": positive}),
        "regularizer": st.fixed_dictionaries({"clip_bound": positive, "clip_bound_anneal": rates}),
        "tracking": st.fixed_dictionaries(
            {"experiment": st.text(st.characters(categories=["L", "N", "S"]), min_size=1)}
        ),
    },
    optional={
        "data": st.fixed_dictionaries({"partition": st.fixed_dictionaries({"clients": st.integers(4, 9)})}),
        "model": st.fixed_dictionaries({"name": st.sampled_from(["mlp", "cnn"])}),
    },
).filter(lambda e: "data" not in e or "model" in e)


@draw()
@given(experiments)
def test_dump_reads_back_to_an_equal_experiment(values: dict[str, Any]) -> None:
    experiment = fr.Experiment.model_validate(values)
    assert parse_document(dump(experiment), "dumped").experiment == experiment


@pytest.mark.parametrize("name", ["digits", "compare", "silos"])
def test_the_embedded_experiments_are_dumped_and_read_back_unchanged(name: str, tmp_path: Path) -> None:
    experiment = load_embedded(name, ["tracking.uri=sqlite:///m.db"]).experiment
    (tmp_path / "dumped.yaml").write_text(dump(experiment), encoding="utf-8")
    assert fr.load(tmp_path / "dumped.yaml") == experiment


# Arbitrary files: existing keys with nonsense values, and nonsense keys with valid values.
known_keys = st.sampled_from(sorted({key for keys in EXPERIMENT_KEYS.values() for key in keys}))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 30)
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["auto", "fedexp", "fednar", "digits", "natural", "dedicated", "nan", "1e400", "<<", "2001-99-01"]
    )
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(known_keys | st.text(max_size=5) | scalars, inner, max_size=4)
    ),
    max_leaves=12,
)


def draw_section(keys: list[str]) -> st.SearchStrategy[Any]:
    return trees | st.dictionaries(st.sampled_from(keys) | st.text(max_size=5), trees, max_size=5)


documents = st.dictionaries(
    st.sampled_from(["experiment", "compare", "search"]) | st.text(max_size=4),
    st.fixed_dictionaries({}, optional={key: draw_section(keys) for key, keys in EXPERIMENT_KEYS.items() if key})
    | draw_section(EXPERIMENT_KEYS["compare"])
    | trees,
    max_size=3,
)
paths = st.lists(known_keys | st.sampled_from([*EXPERIMENT_KEYS, "experiment", "search"]), min_size=1, max_size=4)
overrides_ = st.lists(
    st.text(max_size=10)
    | st.builds(lambda path, value: f"{'.'.join(path)}={value}", paths, trees.map(repr) | st.text(max_size=10)),
    max_size=3,
)


def check_read_or_refused(text: str, overrides: list[str]) -> None:
    try:
        experiment, refused = parse_document(text, "f.yaml", overrides).experiment, None
    except fr.ConfigError as error:
        experiment, refused = None, error.problems
    if experiment is None:
        assert refused
        assert all(isinstance(problem, str) and problem for problem in refused)
    else:
        assert parse_document(dump(experiment), "dumped").experiment == experiment


@draw(300, derandomize=True)
@given(documents, overrides_)
def test_any_mapping_and_any_overrides_are_read_or_refused(document: dict[str, Any], overrides: list[str]) -> None:
    check_read_or_refused(yaml.safe_dump(document), overrides)


@draw(300, derandomize=True)
@given(draw_section(EXPERIMENT_KEYS[""]), overrides_)
def test_any_experiment_is_read_or_refused(experiment: Any, overrides: list[str]) -> None:
    check_read_or_refused(json.dumps({"experiment": experiment}), overrides)


@draw(300, derandomize=True)
@given(st.text(st.sampled_from("experimnt: seda{}[]&*!<>|-,'\"\n\t019._~#?é\x00")) | st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    check_read_or_refused(text, [])
    check_read_or_refused("experiment: {federation: {rounds: 1, local_steps: 1}}", [f"seed={text}", text])


@draw(200, derandomize=True)
@given(draw_section(EXPERIMENT_KEYS[""]))
def test_python_values_are_validated_or_refused(values: Any) -> None:
    with contextlib.suppress(ValidationError):
        assert isinstance(fr.Experiment.model_validate(values), fr.Experiment)


# --- Experiments by name, and documents from Python


@pytest.mark.parametrize("name", ["digits", "compare", "silos"])
def test_an_experiment_that_ships_with_the_package_loads_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fr.load(name, ["seed=3"]) == load_embedded(name, ["seed=3"]).experiment
    Path(name).mkdir()  # a folder is no experiment
    assert fr.load(name) == load_embedded(name).experiment
    Path(name).rmdir()
    Path(name).write_text(yaml.safe_dump({"experiment": SMALL}))
    assert fr.load(name) == fr.Experiment.model_validate(SMALL)  # a file comes first


def test_a_wrong_name_is_answered_with_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(fr.ConfigError, match=r"digitz: cannot be read: .*; the names digits, compare, silos need no"):
        fr.load("digitz")
    with pytest.raises(fr.ConfigError) as caught:
        fr.load("digitz.yaml")
    assert "need no file" not in str(caught.value)


@pytest.mark.parametrize("path", [*sorted((ROOT / "tune_configs").rglob("*.yaml")), "digits", "compare", "silos"])
def test_a_document_from_python_equals_the_one_of_the_file(path: Path | str) -> None:
    """Also its variants, in which settings that the file leaves out follow from others."""
    document = load_document(path)
    built = build_document(document.experiment, compare=document.compare.model_dump(exclude_unset=True))
    assert (built.experiment, built.compare) == (document.experiment, document.compare)
    for values in ({"regularizer.name": "none"}, {"algorithm": {"name": "fedadam"}}):
        assert built.build_variant(values) == document.build_variant(values)


def test_a_document_keeps_what_was_changed_past_validation() -> None:
    experiment = fr.load("digits")
    changed = experiment.model_copy(
        update={"regularizer": experiment.regularizer.model_copy(update={"clip_bound": 3.0}), "seed": 4}
    )
    assert build_document(changed).experiment == changed
    wrong = experiment.model_copy(update={"seed": -1})
    with pytest.raises(fr.ConfigError, match="seed: -1"):
        build_document(wrong)


def test_a_document_from_python_reports_all_problems_at_once() -> None:
    with pytest.raises(fr.ConfigError) as caught:
        build_document(fr.load("digits"), compare={"seeds": 0}, search={"space": {"algorithm.lr": {"uniform": [0, 1]}}})
    text = str(caught.value)
    assert "compare.seeds: 0" in text
    assert "search.space.algorithm.lr" in text
