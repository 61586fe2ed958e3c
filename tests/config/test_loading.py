"""Experiment files: all problems are found and reported together, each with its key, its value and a remedy."""

import contextlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import fednar_ray as fr
from fednar_ray.config import (
    PRESET_SETTINGS,
    Document,
    Domain,
    build_document,
    dump,
    flatten_chosen_settings,
    flatten_settings,
    load_document,
    load_embedded,
)
from fednar_ray.config.loading import parse_document

ROOT = Path(__file__).parents[2]
SMALL = {
    "data": {"partition": {"clients": 4}},
    "model": {"name": "mlp"},
    "federation": {"rounds": 2, "local_steps": 1},
}
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


def parse_experiment(experiment: Any, *overrides: str, **sections: Any) -> Document:
    return parse_document(yaml.safe_dump({"experiment": experiment, **sections}), "f.yaml", overrides)


def find_problems(*overrides: str, base: Any = SMALL, **sections: Any) -> tuple[str, ...]:
    with pytest.raises(fr.ConfigError) as caught:
        parse_experiment(base, *overrides, **sections)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize(
    ("override", "known"),
    [
        ("sede=1", "seed"),
        ("data.validtion=1", "validation"),
        ("data.partition.cleints=1", "clients"),
        ("model.hiden=1", "hidden"),
        ("federation.ronds=1", "rounds"),
        ("algorithm.local_rl=1", "local_lr"),
        ("regularizer.clip_bond=1", "clip_bound"),
        ("execution.placment=1", "placement"),
        ("tracking.urii=1", "uri"),
        ("compare.seed=1", "seeds"),
    ],
)
def test_an_unknown_key_suggests_the_nearest_known_one(override: str, known: str) -> None:
    key = override.removesuffix("=1")
    assert find_problems(override) == (f"{key}: 1: unknown key; did you mean {known}?",)


def test_a_key_without_a_similar_name_lists_the_known_ones() -> None:
    assert find_problems("tracking.zzz=1") == (
        "tracking.zzz: 1: unknown key; known here: uri, experiment, system_metrics",
    )


def test_an_unknown_section_suggests_the_nearest() -> None:
    with pytest.raises(fr.ConfigError) as caught:
        parse_document("experimnt: {}", "f.yaml")
    assert caught.value.problems == (
        "experimnt: unknown section; did you mean experiment?",
        "f.yaml: has no experiment section",
    )


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["name=../x"], ["name: '../x'"]),
        (["seed=-1"], ["seed: -1 should be greater than or equal to 0"]),
        (["data.source=minst"], ["data.source: 'minst' should be 'digits', 'cifar10'"]),
        (["data.validation=1"], ["data.validation: 1 should be less than 1"]),
        (["data.partition.alpha=0"], ["data.partition.alpha: 0 should be greater than 0"]),
        (["data.partition.clients=null"], ["data.partition.clients: None: set the number of clients"]),
        (["data.partition.kind=natural"], ["data.partition.kind: 'natural': digits has no groups"]),
        (["model=null"], ["model: None: a data section needs a model section"]),
        (["federation.rounds=0"], ["federation.rounds: 0 should be greater than or equal to 1"]),
        (["federation.rounds=2.5"], ["federation.rounds: 2.5 should be a valid integer"]),
        (["algorithm.name=fedavgm(ep)"], ["algorithm.name: 'fedavgm(ep)' should be 'fedavg', 'fedprox'"]),
        (["algorithm.local_lr_anneal=1.1"], ["algorithm.local_lr_anneal: 1.1 should be less than or equal to 1"]),
        (["regularizer.clip_bound=0"], ["regularizer.clip_bound: 0 should be greater than 0"]),
        (["regularizer.clip_bound=many"], ["regularizer.clip_bound: 'many' should be a valid number"]),
        (["execution.actors=many"], ["execution.actors: 'many'"]),
        (["execution.actors=0"], ["execution.actors: 0"]),
        (["execution.gpus_per_actor=-1"], ["execution.gpus_per_actor: -1"]),
        (["execution.vectorize=wide"], ["execution.vectorize: 'wide'"]),
        (
            ["execution.placement=dedicated", "execution.vectorize=4"],
            ["execution.vectorize: 4: dedicated trains one client per actor; use 1 or auto"],
        ),
        (
            ["federation.clients_per_round=50"],
            ["federation.clients_per_round: 50 is more than data.partition.clients (4); use 1 to 4"],
        ),
        (["compare.regularizers=[fedna]"], ["compare.regularizers.0: 'fedna' should be 'fednar', 'decoupled'"]),
        (["compare.target_accuracy=1.5"], ["compare.target_accuracy: 1.5 should be less than or equal to 1"]),
    ],
)
def test_a_problem_names_key_value_and_remedy(overrides: list[str], lines: list[str]) -> None:
    found = find_problems(*overrides)
    assert len(found) == len(lines), found
    for problem, line in zip(found, lines, strict=True):
        assert problem.startswith(line)


def test_all_problems_are_reported_at_once() -> None:
    found = find_problems(
        "nonsense",
        "seed=x",
        "data.validation=2",
        "regularizer.clip_bond=1",
        "federation.local_epochs=1",  # in addition to local_steps
        "compare.seeds=0",
        tuning={},
    )
    places = ["tuning:", "nonsense:", "seed:", "data.validation:", "regularizer.clip_bond:", "compare.seeds:"]
    places += ["federation.local_steps:"]
    assert sorted(problem.split()[0] for problem in found) == sorted(places)


def test_problems_across_sections_come_with_those_of_other_sections() -> None:
    found = find_problems("regularizer.clip_bound=-1", "federation.clients_per_round=50", "federation.local_epochs=1")
    assert sorted(problem.split()[0] for problem in found) == [
        "federation.clients_per_round:",
        "federation.local_steps:",
        "regularizer.clip_bound:",
    ]


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "inf", "nan", "true", "false"])
@pytest.mark.parametrize(
    "key",
    [
        "algorithm.local_lr",
        "algorithm.local_lr_anneal",
        "algorithm.server_lr",
        "regularizer.weight_decay",
        "regularizer.clip_bound",
        "data.validation",
        "data.partition.alpha",
        "federation.rounds",
        "federation.batch_size",
        "seed",
        "execution.cpus_per_actor",
        "execution.gpus_per_actor",
        "compare.seeds",
        "compare.target_accuracy",
        "compare.final_rounds",
        "compare.weight_decays",
    ],
)
def test_infinity_nan_and_bool_are_refused_as_numbers(key: str, value: str) -> None:
    override = f"{key}=[{value}]" if key == "compare.weight_decays" else f"{key}={value}"
    assert all(problem.startswith(key) for problem in find_problems(override))


@pytest.mark.parametrize(
    ("steps", "epochs", "good"), [(1, None, True), (None, 1, True), (1, 1, False), (None, None, False)]
)
def test_only_one_of_local_steps_and_local_epochs_may_be_set(steps: int | None, epochs: int | None, good: bool) -> None:
    overrides = [f"federation.local_steps={steps or 'null'}", f"federation.local_epochs={epochs or 'null'}"]
    if good:
        federation = parse_experiment(SMALL, *overrides).experiment.federation
        assert (federation.local_steps, federation.local_epochs) == (steps, epochs)
    else:
        line = f"federation.local_steps: {steps}: set either local_steps or local_epochs"
        assert find_problems(*overrides) == (line,)


@pytest.mark.parametrize(
    ("schedule", "lines"),
    [
        ("[[0]]", ["federation.participation: 1 lists fewer rounds than rounds (2)"]),
        ("[[0], []]", ["federation.participation.1: []: list at least one client, and none twice"]),
        ("[[1, 1], [0]]", ["federation.participation.0: [1, 1]: list at least one client, and none twice"]),
        ("[[0], [3, 4]]", ["federation.participation.1: [3, 4]: client ids run from 0 to 3"]),
        ("[[0], [-1]]", ["federation.participation.1.0: -1 should be greater than or equal to 0"]),
        ("[[0], [true]]", ["federation.participation.1.0: True should be a number, not true or false"]),
        ("[[4, 4]]", ["federation.participation:", "federation.participation.0:", "federation.participation.0:"]),
    ],
)
def test_participation_is_validated(schedule: str, lines: list[str]) -> None:
    found = find_problems(f"federation.participation={schedule}")
    assert len(found) == len(lines), found
    assert all(problem.startswith(line) for problem, line in zip(found, lines, strict=True)), found


def test_a_valid_schedule_is_kept() -> None:
    federation = parse_experiment(SMALL, "federation.participation=[[3, 0], [1], [2]]").experiment.federation
    assert federation.participation == ((3, 0), (1,), (2,))


@pytest.mark.parametrize("preset", PRESET_SETTINGS)
def test_a_preset_refuses_settings_that_it_does_not_use(preset: str) -> None:
    optional = set().union(*PRESET_SETTINGS.values())
    for key in sorted(optional - set(PRESET_SETTINGS[preset])):
        (problem,) = find_problems(f"algorithm.name={preset}", f"algorithm.{key}=0.5")
        assert f"{preset} does not read {key}: it belongs to " in problem
        assert all(name in problem for name, read in PRESET_SETTINGS.items() if key in read)


@pytest.mark.parametrize("preset", PRESET_SETTINGS)
def test_a_preset_fills_its_defaults_and_accepts_the_neutral_server_lr(preset: str) -> None:
    defaults = dict(PRESET_SETTINGS[preset])
    plain = parse_experiment(SMALL, f"algorithm.name={preset}").experiment.algorithm
    assert {key: getattr(plain, key) for key in defaults} == defaults
    neutral = parse_experiment(SMALL, f"algorithm.name={preset}", "algorithm.server_lr=1.0").experiment.algorithm
    assert getattr(neutral, "server_lr", None) == (1.0 if "server_lr" in defaults else None)


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


def test_an_experiment_is_immutable() -> None:
    experiment = load_embedded("digits").experiment
    for settings_, key in (
        (experiment, "seed"),
        (experiment.data, "validation"),
        (experiment.data.partition, "clients"),
        (experiment.federation, "rounds"),
        (experiment.regularizer, "clip_bound"),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(settings_, key, 1)


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{cwd}/mlflow.db"),
        ("sqlite:///sub/../m.db", "sqlite:///{cwd}/m.db"),
        ("sqlite:////data/m.db", "sqlite:////data/m.db"),
        ("mlruns", "{cwd}/mlruns"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("databricks", "databricks"),
    ],
)
def test_a_relative_tracking_uri_becomes_absolute(
    uri: str, absolute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_experiment(SMALL, f"tracking.uri={uri}").experiment.tracking.uri == absolute.format(cwd=tmp_path)


def test_errors_survive_pickling() -> None:
    error = fr.ConfigError(("a: 1: wrong", "b: 2: wrong"))
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (back.problems, str(back)) == (error.problems, "a: 1: wrong\nb: 2: wrong")


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


@settings(deadline=None)
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


@settings(deadline=None, max_examples=300, derandomize=True)
@given(documents, overrides_)
def test_any_mapping_and_any_overrides_are_read_or_refused(document: dict[str, Any], overrides: list[str]) -> None:
    check_read_or_refused(yaml.safe_dump(document), overrides)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(draw_section(EXPERIMENT_KEYS[""]), overrides_)
def test_any_experiment_is_read_or_refused(experiment: Any, overrides: list[str]) -> None:
    check_read_or_refused(json.dumps({"experiment": experiment}), overrides)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.text(st.sampled_from("experimnt: seda{}[]&*!<>|-,'\"\n\t019._~#?é\x00")) | st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    check_read_or_refused(text, [])
    check_read_or_refused("experiment: {federation: {rounds: 1, local_steps: 1}}", [f"seed={text}", text])


@settings(deadline=None, max_examples=200, derandomize=True)
@given(draw_section(EXPERIMENT_KEYS[""]))
def test_python_values_are_validated_or_refused(values: Any) -> None:
    with contextlib.suppress(ValidationError):
        assert isinstance(fr.Experiment.model_validate(values), fr.Experiment)


def test_chosen_settings_are_those_that_were_set_and_those_that_follow_from_the_preset():
    experiment = fr.Experiment.model_validate(
        {"federation": {"local_steps": 3}, "algorithm": {"name": "fedprox", "mu": 0.5}, "checkpoint": {"every": None}}
    )
    chosen, everything = flatten_chosen_settings(experiment), flatten_settings(experiment)
    assert chosen.items() <= everything.items()
    assert (chosen["federation.local_steps"], chosen["federation.rounds"]) == (3, everything["federation.rounds"])
    assert (chosen["algorithm.mu"], chosen["algorithm.server_lr"], chosen["regularizer.name"]) == (0.5, 1.0, "fednar")
    left_out = {key.partition(".")[0] for key in set(everything) - set(chosen)}
    assert {"execution", "aggregation", "evaluation"} <= left_out
    assert not {"algorithm", "regularizer", "seed", "name"} & left_out


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
