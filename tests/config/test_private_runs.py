"""What contradicts differential privacy, or Poisson sampling, is refused with what would be right."""

from typing import Any

import pytest
import yaml

import fednar_ray as fr
from fednar_ray.config.loading import parse_document
from tests.support.experiment_files import SMALL, find_problems, parse_experiment

PRIVATE: dict[str, Any] = {
    **SMALL,
    "data": {"partition": {"clients": 40}},
    "federation": {"rounds": 2, "local_steps": 1, "clients_per_round": 8, "sampling": "poisson"},
    "privacy": {"noise_multiplier": 1.0, "delta": 0.001},
}


def find(*overrides: str) -> tuple[str, ...]:
    return find_problems(*overrides, base=PRIVATE)


def test_a_private_experiment_is_accepted_with_each_bound() -> None:
    for bound in ("fixed", "adaptive", "fednar"):
        privacy = parse_experiment(PRIVATE, f"privacy.bound={bound}").experiment.privacy
        assert privacy is not None
        assert privacy.bound.name == bound


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["privacy.delta=0.025"], "privacy.delta: 0.025 should be below 1/N = 0.025 for 40 clients, such as 0.003"),
        (["privacy.delta=0"], "privacy.delta: 0 should be greater than 0"),
        (["privacy.noise_multiplier=null", "privacy.epsilon=0"], "privacy.epsilon: 0 should be greater than 0"),
        (["privacy.noise_multiplier=-1"], "privacy.noise_multiplier: -1 should be greater than 0"),
        (["privacy.noise_multiplier=null"], "privacy: set either epsilon or noise_multiplier"),
        (["privacy.epsilon=3"], "privacy: set either epsilon or noise_multiplier"),
        (
            ["federation.sampling=uniform"],
            "federation.sampling: 'uniform' is not accounted: the privacy that sampling adds is known for Poisson "
            "samples; use poisson",
        ),
        (
            ["federation.participation=[[0], [1]]"],
            "federation.participation: 'a schedule': decides who takes part, where federation.sampling=poisson draws "
            "each client by itself; set only one",
        ),
        (
            ["availability.trace=t.csv"],
            "federation.sampling=poisson draws each client by itself; set only one",
        ),
        (
            ["availability.on_off={on_rounds: 2, off_rounds: 2}"],
            "availability.on_off: 'spells': decides who takes part",
        ),
        (["availability.over_sampling=1.5"], "availability.over_sampling: 1.5: asks for spare clients"),
        (
            ["privacy.bound=fednar", "regularizer.name=decoupled"],
            "privacy.bound.name: 'fednar': holds for the steps of regularizer.name=fednar only, not of decoupled; use "
            "fixed or adaptive",
        ),
        (
            ["privacy.bound=fednar", "federation.local_steps=null", "federation.local_epochs=1"],
            "privacy.bound.name: 'fednar': needs federation.local_steps: with local_epochs, K depends on the sizes",
        ),
        (["algorithm.name=scaffold"], "algorithm.name: 'scaffold': cannot be private: it keeps a state of each client"),
        (["algorithm.name=scaffold+exp"], "cannot be private: it keeps a state"),
        (["algorithm.name=feddyn"], "cannot be private: it keeps a state"),
        (["algorithm.name=fedexp"], "cannot be private: it reads the norms of single updates"),
        (["algorithm.name=fedprox+exp"], "cannot be private: it reads the norms"),
        (["algorithm.name=fedavgm+exp"], "cannot be private: it reads the norms"),
        (["screening.max_deviation=3"], "screening.max_deviation: 3.0: compares clients with each other; remove it"),
        (["aggregation.name=median"], "aggregation.name: 'median' is not private; use mean"),
        (["execution.min_clients=2"], "execution.min_clients: 2: would end a run depending on who took part"),
        (["evaluation.federated=true"], "evaluation.federated: True: evaluates the clients' own examples"),
        (["model.class_weights=balanced"], "model.class_weights: 'balanced' is computed from the training examples"),
        (
            ["data={source: table, path: t.csv, label: y, partition: {clients: 40}, missing: mean}"],
            "data.standardize: True is computed from the training examples",
        ),
        (
            ["data={source: table, path: t.csv, label: y, partition: {clients: 40}, missing: mean}"],
            "data.missing: 'mean' is computed from the training examples",
        ),
        (["privacy.bound={name: adaptive, quantile: 1}"], "privacy.bound.quantile: 1 should be less than 1"),
        (["privacy.bound={name: fixed, quantile: 0.5}"], "fixed does not read quantile: it belongs to adaptive"),
        (["privacy.bound=clipped"], "privacy.bound.name: 'clipped' should be 'fixed', 'adaptive' or 'fednar'"),
        (["privacy.epsilonn=1"], "privacy.epsilonn: 1: unknown key; did you mean epsilon?"),
    ],
)
def test_a_contradiction_is_refused(overrides: list[str], problem: str) -> None:
    problems = find(*overrides)
    assert any(problem in each for each in problems), problems


def test_everything_that_is_wrong_is_said_at_once() -> None:
    problems = find("federation.sampling=uniform", "algorithm.name=scaffold", "aggregation.name=krum")
    assert len(problems) == 3


def test_silos_are_refused_since_their_examples_are_evaluated() -> None:
    silo = "execution.silos={a: {data: /d/a.csv}}"
    assert any(
        "execution.silos: 'a': are evaluated on examples of their own" in p for p in find("data={source: folder}", silo)
    )


MASKED = ("secure_aggregation={}", "execution.placement=serial")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("secure_aggregation.clip=1.0", "secure_aggregation.clip: 1.0 is a second bound; remove it"),
        ("privacy.bound=adaptive", "privacy.bound.name: 'adaptive': counts updates by their norms"),
        ("federation.clients_per_round=4", "federation.clients_per_round: 4: draws only few clients now and then"),
    ],
)
def test_what_noise_in_masked_sums_cannot_be_combined_with(change: str, problem: str) -> None:
    assert any(problem in each for each in find(*MASKED, "federation.clients_per_round=null", change))


def test_noise_in_masked_sums_needs_no_other_bound() -> None:
    changes = [*MASKED, "federation.clients_per_round=null", "regularizer.name=decoupled", "privacy.bound=fixed"]
    assert parse_experiment(PRIVATE, *changes).experiment.secure_aggregation is not None


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedadam_li2023", "fedyogi", "fedadagrad"])
def test_server_optimizers_that_read_only_the_sum_are_accepted(name: str) -> None:
    assert parse_experiment(PRIVATE, f"algorithm.name={name}").experiment.privacy is not None


SEARCH = {"space": {"regularizer.clip_bound": {"uniform": [0.1, 1.0]}}, "metric": "validation_accuracy", "mode": "max"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"scheduler": {"name": "pbt", "perturb_rounds": 1}, "algorithm": "random"},
            "search.scheduler.name: pbt: copies",
        ),
        ({"metric": "train_loss", "mode": "min"}, "search.metric: 'train_loss': the clients' losses are private"),
    ],
)
def test_a_search_that_would_leave_the_accounting_is_refused(changes: dict[str, Any], problem: str) -> None:
    base = {**PRIVATE, "data": {"validation": 0.1, "partition": {"clients": 40}}}
    text = yaml.safe_dump({"experiment": base, "search": {**SEARCH, **changes}})
    with pytest.raises(fr.ConfigError) as caught:
        parse_document(text, "f.yaml", to_search=True)
    assert any(problem in each for each in caught.value.problems), caught.value.problems
