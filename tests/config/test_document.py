"""Settings: all problems are found and reported together, each with its key, its value and a remedy."""

import pickle

import pytest
from pydantic import ValidationError

import fednar_ray as fr
from fednar_ray.config import PRESET_SETTINGS, load_embedded
from fednar_ray.config.loading import parse_document
from tests.support.experiment_files import SMALL, find_problems, parse_experiment


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
        (["execution.precision=half"], ["execution.precision: 'half' should be 'float32', 'tf32' or 'bfloat16'"]),
        (
            ["execution.precision=tf32", "execution.placement=serial"],
            ["execution.precision: 'tf32': needs a GPU, and clients train on the CPU here; use float32 or bfloat16"],
        ),
        (
            ["execution.precision=tf32", "execution.gpus_per_actor=0"],
            ["execution.precision: 'tf32': needs a GPU, and clients train on the CPU here; use float32 or bfloat16"],
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


def test_errors_survive_pickling() -> None:
    error = fr.ConfigError(("a: 1: wrong", "b: 2: wrong"))
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (back.problems, str(back)) == (error.problems, "a: 1: wrong\nb: 2: wrong")
