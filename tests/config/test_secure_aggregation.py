"""What secure aggregation cannot be combined with is refused, all at once, before anything starts."""

from typing import Any

import pytest
from pydantic import ValidationError

import fednar_ray as fr
from fednar_ray.config.secure_aggregation import find_size_problem

BASE: dict[str, Any] = {
    "data": {"source": "digits", "partition": {"clients": 5}},
    "model": {"name": "mlp"},
    "federation": {"rounds": 2, "local_steps": 3},
    "execution": {"placement": "dedicated"},
    "secure_aggregation": {},
}
SILOS = {"silos": {name: {"data": f"/data/{name}.csv"} for name in "abc"}, "placement": "auto"}
FOLDER = {"data": {"source": "folder", "label": "y", "features": ["x"]}}


def build(**changes: Any) -> fr.Experiment:
    return fr.Experiment.model_validate({**BASE, **changes})


def list_problems(**changes: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        build(**changes)
    return {".".join(map(str, error["loc"])): error["msg"] for error in caught.value.errors()}


def test_it_is_off_unless_the_section_is_there() -> None:
    assert fr.Experiment().secure_aggregation is None
    settings = build().secure_aggregation
    assert settings is not None
    assert (settings.threshold, settings.bits, settings.clip) == (0.67, 24, None)


@pytest.mark.parametrize(
    ("place", "text", "changes"),
    [
        ("secure_aggregation.threshold", "greater than 0.5", {"secure_aggregation": {"threshold": 0.5}}),
        ("secure_aggregation.threshold", "less than or equal to 1", {"secure_aggregation": {"threshold": 1.1}}),
        ("secure_aggregation.bits", "less than or equal to 30", {"secure_aggregation": {"bits": 31}}),
        (
            "secure_aggregation.bits",
            "is too large for 5 clients per round, at most 4",
            {"secure_aggregation": {"bits": 30}},
        ),
        ("secure_aggregation.clip", "is required: regularizer.name none", {"regularizer": {"name": "none"}}),
        ("secure_aggregation.clip", "is required with federation.local_epochs", {"federation": {"local_epochs": 1}}),
        ("secure_aggregation.clip", "greater than 0", {"secure_aggregation": {"clip": 0}}),
        ("secure_aggregation.directory", "match pattern", {"secure_aggregation": {"directory": "keys"}}),
        ("execution.placement", "use dedicated, or serial to try it", {"execution": {"placement": "pooled"}}),
        ("execution.placement", "use dedicated, or serial to try it", {"execution": {}}),
        (
            "execution.vectorize",
            "each client trains by itself",
            {"execution": {"placement": "serial", "vectorize": 2}},
        ),
        (
            "federation.clients_per_round",
            "at least 3 clients per round",
            {"federation": {"local_steps": 3, "clients_per_round": 2}},
        ),
        (
            "federation.participation.1",
            "at least 3 clients per round",
            {"federation": {"local_steps": 3, "rounds": 2, "participation": [[0, 1, 2], [3, 4]]}},
        ),
        (
            "secure_aggregation",
            "2 clients are too few",
            {"data": {"source": "digits", "partition": {"clients": 2}}},
        ),
        ("algorithm.name", "its clients' states would reach the driver", {"algorithm": {"name": "scaffold"}}),
        ("algorithm.name", "its clients' states would reach the driver", {"algorithm": {"name": "scaffold+exp"}}),
        ("algorithm.name", "its clients' states would reach the driver", {"algorithm": {"name": "feddyn"}}),
        ("aggregation.name", "needs single updates", {"aggregation": {"name": "median"}}),
        ("aggregation.name", "needs single updates", {"aggregation": {"name": "krum"}}),
        ("aggregation.name", "needs single updates", {"aggregation": {"name": "trimmed_mean"}}),
        (
            "aggregation.name",
            "use mean, with secure_aggregation.clip",
            {"aggregation": {"name": "norm_bound", "bound": 1.0}},
        ),
        ("screening.max_deviation", "needs the norms of single updates", {"screening": {"max_deviation": 3}}),
        ("availability", "absence is not simulated", {"availability": {"dropout": 0.1}}),
        ("evaluation.federated", "shows the metrics of single clients", {"evaluation": {"federated": True}}),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(place: str, text: str, changes: dict[str, Any]) -> None:
    problems = list_problems(**changes)
    assert list(problems) == [place]
    assert text in problems[place]


def test_everything_that_is_wrong_is_said_at_once() -> None:
    problems = list_problems(
        federation={"local_epochs": 1, "clients_per_round": 2},
        algorithm={"name": "scaffold"},
        aggregation={"name": "krum"},
        screening={"max_deviation": 5},
        execution={"placement": "pooled"},
    )
    assert set(problems) == {
        "federation.clients_per_round", "secure_aggregation.clip", "algorithm.name", "aggregation.name",
        "screening.max_deviation", "execution.placement",
    }  # fmt: skip


def test_a_section_that_is_wrong_by_itself_hides_no_contradiction() -> None:
    wrong = {"bits": 31, "threshold": 2}
    assert set(list_problems(secure_aggregation=wrong, algorithm={"name": "scaffold"})) == {
        "secure_aggregation.bits", "secure_aggregation.threshold", "algorithm.name",
    }  # fmt: skip
    assert set(list_problems(secure_aggregation=None, federation={"local_steps": 0})) == {"federation.local_steps"}
    silent = {"secure_aggregation": None, "federation": {"local_steps": 0}, "algorithm": {"name": "scaffold"}}
    assert set(list_problems(**silent)) == {"federation.local_steps"}


def test_what_fits_is_accepted() -> None:
    build(federation={"local_epochs": 1}, secure_aggregation={"clip": 2.0})
    build(regularizer={"name": "decoupled"}, secure_aggregation={"clip": 2.0})
    build(execution={"placement": "serial", "vectorize": 1}, algorithm={"name": "fedexp"})
    build(**FOLDER, execution=SILOS)


def test_the_number_of_silos_counts() -> None:
    two = {**SILOS, "silos": dict(list(SILOS["silos"].items())[:2])}  # type: ignore[attr-defined]
    assert list(list_problems(**FOLDER, execution=two)) == ["secure_aggregation"]


@pytest.mark.parametrize(
    ("bits", "clients", "fits"),
    [(24, 256, True), (24, 257, False), (30, 4, True), (30, 5, False), (8, 2**16, True), (8, 2**16 + 1, False)],
)
def test_sums_must_fit_into_32_bits(bits: int, clients: int, fits: bool) -> None:
    assert (find_size_problem(bits, clients) is None) == fits
