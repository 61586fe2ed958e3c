"""Digits with clients that drop out, send NaN, or send updates times 100, with and without defenses."""

from functools import cache
from typing import Any

import numpy as np
import pytest

import fednar_ray as fr
from fednar_ray.core.exclusion import ExclusionReason

CLIENTS, ROUNDS = 20, 10
MISBEHAVIOR = {"availability": {"dropout": 0.3}, "attacks": {"nan": 0.1, "scaled": 0.1, "factor": 100}}
DEFENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "screening": {"screening": {"max_deviation": 5}},
    "median": {"aggregation": {"name": "median"}},
    "trimmed_mean": {"aggregation": {"name": "trimmed_mean", "trim": 0.25}},
    "krum": {"aggregation": {"name": "krum", "byzantine": 0.25}},
    "norm_bound": {"aggregation": {"name": "norm_bound"}},
}


def train(**sections: Any) -> list[fr.RoundReport]:
    experiment = fr.Experiment.model_validate(
        {
            "name": "misbehavior",
            "data": {"partition": {"clients": CLIENTS}},
            "model": {"hidden": 32},
            "federation": {"rounds": ROUNDS, "local_steps": 10, "batch_size": 16},
            "algorithm": {"local_lr": 0.3},
            "regularizer": {"weight_decay": 0.001, "clip_bound": 1.0},
            "execution": {"placement": "serial"},
            **sections,
        }
    )
    return list(fr.iter_rounds(experiment))


def mean_accuracy(reports: list[fr.RoundReport]) -> float:
    """Returns the mean accuracy of the last five rounds."""
    return float(np.mean([report.metrics["test_accuracy"] for report in reports[-5:]]))


@cache
def train_misbehaving(defense: str) -> list[fr.RoundReport]:
    return train(**MISBEHAVIOR, **DEFENCES[defense])


@pytest.fixture(scope="module")
def clean() -> float:
    """Trains with all clients present and honest."""
    return mean_accuracy(train())


def find_senders(reports: list[fr.RoundReport], reason: ExclusionReason) -> set[int]:
    return {client for report in reports for client, why in report.exclusions.items() if why.reason is reason}


@pytest.mark.usefixtures("long_computation")
def test_without_a_defense_two_of_twenty_clients_ruin_the_model(clean: float) -> None:
    assert mean_accuracy(train_misbehaving("none")) < clean - 0.3


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize("defense", [name for name in DEFENCES if name != "none"])
def test_a_defended_run_ends_within_two_points_of_the_clean_one(defense: str, clean: float) -> None:
    assert mean_accuracy(train_misbehaving(defense)) > clean - 0.02


def test_screening_excludes_and_counts_exactly_the_misbehaving_clients() -> None:
    reports = train_misbehaving("screening")
    not_finite = find_senders(reports, ExclusionReason.NOT_FINITE)
    far_too_long = find_senders(reports, ExclusionReason.NORM_TOO_LARGE)
    assert len(not_finite) == len(far_too_long) == 2
    assert not not_finite & far_too_long
    bad = not_finite | far_too_long
    for report in reports:
        assert set(report.exclusions) == bad & set(report.client_ids)  # in every round in which they are sampled
        metrics = report.metrics
        assert metrics["clients_sampled"] == CLIENTS
        assert metrics["clients_dropped_out"] == CLIENTS - len(report.client_ids)
        assert metrics["clients_failed"] == len(report.exclusions)
        assert metrics["clients_trained"] == len(report.client_ids) - len(report.exclusions)


def test_nan_updates_are_excluded_even_without_a_defense() -> None:
    reports = train(attacks={"nan": 0.1}, federation={"rounds": 2, "local_steps": 2})
    expected = sorted(find_senders(reports, ExclusionReason.NOT_FINITE))
    assert [sorted(report.exclusions) for report in reports] == [expected] * 2
    assert [report.metrics["clients_trained"] for report in reports] == [CLIENTS - 2] * 2
    assert np.isfinite(reports[-1].parameters).all()
