"""Every preset with every regularizer, compared with an independent loop and in limiting cases."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import fednar_ray as fr
from fednar_ray.algorithms.presets import PRESETS
from fednar_ray.algorithms.regularizers import REGULARIZERS
from fednar_ray.config import PRESET_SETTINGS
from tests.support.oracle import Oracle

SETTINGS = {
    "fedprox": {"mu": 0.3},
    "fedprox+exp": {"mu": 0.3, "epsilon": 1e-3, "epsilon_anneal": 0.8},
    "fedavgm": {"beta": 0.7, "server_lr": 0.8},
    "fedavgm+exp": {"beta": 0.7, "epsilon": 1e-3, "epsilon_anneal": 0.8},
    "fedadam": {"server_lr": 0.05, "epsilon": 0.02, "epsilon_anneal": 0.8, "beta1": 0.8, "beta2": 0.95},
    "fedyogi": {"server_lr": 0.05, "epsilon": 0.02, "epsilon_anneal": 0.8, "beta1": 0.8, "beta2": 0.95},
    "fedadagrad": {"server_lr": 0.05, "epsilon": 0.02, "epsilon_anneal": 0.8},
    "fedadam_li2023": {"server_lr": 0.05, "epsilon": 0.02, "epsilon_anneal": 0.8},
    "fedexp": {"epsilon": 1e-3, "epsilon_anneal": 0.8},
    "scaffold+exp": {"epsilon": 1e-3, "epsilon_anneal": 0.8},
    "feddyn": {"alpha": 0.2},
}
SIZES = (7, 30, 12, 1, 21)
ROUNDS = 4


def build_clients() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(5)
    centres = np.array([[0, 2], [2, -1], [-2, -1]])
    labels = [rng.integers(3, size=size) for size in SIZES]
    return [((centres[y] + rng.normal(size=(len(y), 2))).astype(np.float32), y) for y in labels]


def build_model() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def build_settings(preset: str, regularizer: str, **changes: Any) -> dict[str, Any]:
    algorithm = {"name": preset, "local_lr": 0.3, "local_lr_anneal": 0.9, **SETTINGS.get(preset, {})}
    regularizers = {
        "name": regularizer,
        "weight_decay": 0.2,
        "weight_decay_anneal": 0.7,
        "clip_bound": 0.8,
        "clip_bound_anneal": 0.95,
    }
    return {"seed": 3, "batch_size": 5, "local_steps": 4, "clients_per_round": 3} | {
        "algorithm": algorithm,
        "regularizer": regularizers,
        **changes,
    }


def train_preset(s: dict[str, Any], width: int = 2) -> list[fr.RoundReport]:
    return train_once(json.dumps(s), width)


@cache
def train_once(settings: str, width: int) -> list[fr.RoundReport]:
    """Trains settings, given as JSON, once for all tests that look at them."""
    s = json.loads(settings)
    keys = ("batch_size", "local_steps", "local_epochs", "clients_per_round")
    federation = {"rounds": ROUNDS, **{key: s[key] for key in keys if key in s}}
    experiment = fr.Experiment.model_validate(
        {
            "seed": s["seed"],
            "federation": federation,
            "algorithm": s["algorithm"],
            "regularizer": s["regularizer"],
            "execution": {"placement": "serial", "vectorize": width},
        }
    )
    data = build_clients()
    return list(fr.iter_rounds(experiment, federation=fr.Federation(data, test=data[1]), model=build_model()))


def test_the_table_and_its_settings_name_the_same_presets() -> None:
    assert list(PRESETS) == list(PRESET_SETTINGS)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("preset", PRESETS)
def test_preset_equals_the_independent_loop(preset: str, regularizer: str) -> None:
    s = build_settings(preset, regularizer)
    oracle, start = Oracle(s, build_clients(), build_model()), None
    for report in train_preset(s):
        start = oracle.x if start is None else start
        expected = oracle.round(report.round_index)
        moved = float((expected - start).norm())
        assert np.linalg.norm(report.parameters - expected.numpy()) < 1e-4 * moved, f"round {report.round_index}"


@pytest.mark.parametrize("preset", ["fedavg", "scaffold", "feddyn"])
def test_epochs_over_unequal_shards_equal_the_independent_loop(preset: str) -> None:
    s = build_settings(preset, "fednar", local_epochs=2)
    del s["local_steps"]
    oracle = Oracle(s, build_clients(), build_model())
    for report in train_preset(s, width=3):
        np.testing.assert_allclose(report.parameters, oracle.round(report.round_index).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_masked_group_equals_single_clients(preset: str, regularizer: str) -> None:
    s = build_settings(preset, regularizer, local_epochs=1)
    del s["local_steps"]
    for wide, single in zip(train_preset(s, width=3), train_preset(s, width=1), strict=True):
        np.testing.assert_allclose(wide.parameters, single.parameters, rtol=2e-4, atol=2e-5)
        for name in ("clip_fraction", "effective_weight_decay", "train_loss", "test_loss"):
            assert wide.metrics[name] == pytest.approx(single.metrics[name], rel=1e-3)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_fedprox_with_mu_zero_is_fedavg(regularizer: str) -> None:
    s = build_settings("fedprox", regularizer)
    s["algorithm"]["mu"] = 0.0
    for prox, avg in zip(train_preset(s), train_preset(build_settings("fedavg", regularizer)), strict=True):
        np.testing.assert_array_equal(prox.parameters, avg.parameters)


@pytest.mark.parametrize("plain", ["fedavg", "fedprox", "scaffold"])
def test_fedexp_with_factor_one_takes_the_mean_step(plain: str) -> None:
    exp = build_settings(plain + "+exp" if plain != "fedavg" else "fedexp", "fednar")
    exp["algorithm"] |= {"epsilon": 1e9}  # the factor falls to its floor of 1
    reports = train_preset(exp)
    for extrapolated, mean in zip(reports, train_preset(build_settings(plain, "fednar")), strict=True):
        np.testing.assert_array_equal(extrapolated.parameters, mean.parameters)
    np.testing.assert_array_equal(reports[0].eval_params, reports[0].parameters)
    np.testing.assert_allclose(reports[1].eval_params, (reports[0].parameters + reports[1].parameters) / 2, rtol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_fednar_without_a_clip_is_coupled(preset: str) -> None:
    loose = build_settings(preset, "fednar")
    loose["regularizer"]["clip_bound"] = 1e6
    for nar, coupled in zip(train_preset(loose), train_preset(build_settings(preset, "coupled")), strict=True):
        np.testing.assert_allclose(nar.parameters, coupled.parameters, rtol=1e-6, atol=1e-7)
        assert nar.metrics["clip_fraction"] == 0
        assert nar.metrics["effective_weight_decay"] == pytest.approx(nar.metrics["weight_decay"])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_fednar_update_is_never_longer_than_its_clipped_steps(preset: str) -> None:
    s = build_settings(preset, "fednar")
    s["regularizer"]["clip_bound"] = 0.05
    for report in train_preset(s, width=3):
        bound = s["local_steps"] * report.metrics["local_lr"] * report.metrics["clip_bound"]
        assert report.metrics["update_norm"] <= bound * (1 + 1e-5)
        assert report.metrics["effective_weight_decay"] < report.metrics["weight_decay"]


@pytest.mark.parametrize("preset", ["fedavg", "feddyn"])
def test_metrics_follow_their_definitions(preset: str) -> None:
    reports = train_preset(build_settings(preset, "none"))
    d = len(reports[0].parameters)
    for t, report in enumerate(reports):
        metrics = report.metrics
        assert metrics["local_lr"] == pytest.approx(0.3 * 0.9**t)
        assert metrics["weight_decay"] == pytest.approx(0.2 * 0.7**t)
        assert metrics["clip_bound"] == pytest.approx(0.8 * 0.95**t)
        assert metrics["effective_weight_decay"] == metrics["clip_fraction"] == metrics["clients_failed"] == 0
        assert metrics["clients_trained"] == len(report.client_ids) == 3
        assert metrics["bytes_down"] == metrics["bytes_up"] == 3 * 4 * d
        assert not report.parameters.flags.writeable
