"""Differential privacy of single examples: runs against plain runs, the accountant by hand, and what is refused."""

import json
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

import fednar_ray as fr
from fednar_ray.config import flatten_settings
from fednar_ray.core.errors import ConfigError
from fednar_ray.core.private_metrics import describe_spending
from fednar_ray.experiments.given import NOTHING_GIVEN
from fednar_ray.experiments.pack_member import build_shared_preparation
from fednar_ray.experiments.placement import resolve_group_size
from fednar_ray.experiments.prepare import prepare
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.experiments.resume import _find_problem
from fednar_ray.privacy.keys import build_public_key
from tests.support.stores import create_store

pytestmark = pytest.mark.usefixtures("long_computation")

CLIENTS = 3


def build_experiment(privacy: dict[str, Any], **sections: dict[str, Any]) -> fr.Experiment:
    settings: dict[str, dict[str, Any]] = {
        "data": {"source": "digits", "partition": {"clients": CLIENTS, "kind": "dirichlet", "alpha": 1.0}},
        "model": {"name": "mlp", "hidden": 8},
        "federation": {"rounds": 3, "local_steps": 4, "batch_size": 32},
        "execution": {"placement": "serial"},
    }
    for name, section in sections.items():
        settings[name] = {**settings.get(name, {}), **section}
    return fr.Experiment.model_validate({"name": "silos", **settings, "privacy": {"examples": privacy}})


def train(experiment: fr.Experiment) -> list[fr.RoundReport]:
    return list(fr.iter_rounds(experiment))


def compute_epsilon_by_hand(size: int, noise: float, rounds: int, delta: float = 1e-5) -> float:
    event = dp_accounting.PoissonSampledDpEvent(min(1.0, 32 / size), dp_accounting.GaussianDpEvent(noise))
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    return float(accountant.compose(event, rounds * 4).get_epsilon(delta))


def get_sizes(prepared: Prepared) -> list[int]:
    return [int(size) for size in prepared.federation.shards.sizes]


def test_each_silo_gets_the_noise_that_its_size_needs_for_the_target() -> None:
    prepared = prepare(build_experiment({"epsilon": 4.0}))
    privacy, sizes = prepared.examples, get_sizes(prepared)
    assert privacy is not None
    assert len(set(sizes)) == CLIENTS
    for client_id, size in enumerate(sizes):
        epsilon = compute_epsilon_by_hand(size, privacy.noise_multipliers[client_id], rounds=3)
        assert 3.99 < epsilon <= 4.0
        assert privacy.get_epsilons(3)[client_id] == pytest.approx(epsilon)
    by_size = sorted(range(CLIENTS), key=lambda i: sizes[i])
    noise = [privacy.noise_multipliers[i] for i in by_size]
    assert noise == sorted(noise, reverse=True)  # a small silo's examples are in more of its batches


def test_a_given_noise_costs_the_smallest_silo_most_and_every_round_reports_it() -> None:
    experiment = build_experiment({"noise_multiplier": 1.2})
    smallest = min(get_sizes(prepare(experiment)))
    spent = [report.metrics["privacy/examples_epsilon"] for report in train(experiment)]
    for rounds, epsilon in enumerate(spent, start=1):
        by_hand = compute_epsilon_by_hand(smallest, 1.2, rounds)
        assert by_hand <= epsilon + 1e-9  # never less than was spent
    assert spent[-1] == pytest.approx(compute_epsilon_by_hand(smallest, 1.2, 3))
    assert spent == sorted(spent)


def test_no_loss_of_a_training_example_is_reported_and_epsilon_is_called_simulated() -> None:
    for report in train(build_experiment({"noise_multiplier": 1.0})):
        assert not [name for name in report.metrics if "train_loss" in name]
        assert report.metrics["privacy/simulated"] == 1.0


@pytest.mark.parametrize("regularizer", ["fednar", "decoupled", "none"])
def test_whole_batches_without_noise_and_clipping_give_the_plain_run(regularizer: str) -> None:
    changes = {"federation": {"batch_size": 2000}, "regularizer": {"name": regularizer}}
    private = build_experiment({"noise_multiplier": 1e-9, "norm": 1e6}, **changes)
    plain = private.model_copy(update={"privacy": None})
    for got, wanted in zip(train(private), train(plain), strict=True):
        np.testing.assert_allclose(got.parameters, wanted.parameters, atol=2e-4)


def test_a_step_is_noised_before_it_is_clipped_with_the_decay_so_fednars_bound_holds() -> None:
    experiment = build_experiment({"noise_multiplier": 50.0}, regularizer={"name": "fednar", "clip_bound": 0.5})
    before = None
    for report in train(experiment):
        if before is not None:
            length = float(np.linalg.norm(report.parameters - before))
            assert length <= 4 * report.metrics["local_lr"] * 0.5 * (1 + 1e-5)
        assert report.metrics["clip_fraction"] == 1.0
        before = report.parameters


def test_the_same_seed_repeats_the_bytes_and_another_seed_or_setting_has_other_noise() -> None:
    def get_last(seed: int = 0, **privacy: float) -> bytes:
        experiment = build_experiment({"noise_multiplier": 1.0, **privacy}).model_copy(update={"seed": seed})
        return bytes(train(experiment)[-1].parameters)

    assert get_last() == get_last()
    assert len({get_last(), get_last(seed=1), get_last(norm=1.0000001)}) == 3


def test_secret_runs_never_share_noise() -> None:
    secret = build_experiment({"noise_multiplier": 1.0})
    assert secret.privacy is not None
    secret = secret.model_copy(update={"privacy": secret.privacy.model_copy(update={"secret": True})})
    first, second = train(secret), train(secret)
    assert first[-1].parameters.tobytes() != second[-1].parameters.tobytes()
    assert "privacy/simulated" not in first[-1].metrics


def test_protected_examples_can_be_summed_under_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build_experiment({"noise_multiplier": 1.0})
    masked = build_experiment({"noise_multiplier": 1.0}, secure_aggregation={"threshold": 0.6})
    key = build_public_key(plain)
    assert build_public_key(masked) != key  # so both would draw other examples and other noise
    monkeypatch.setattr("fednar_ray.experiments.private_examples.build_public_key", lambda experiment: key)
    for got, wanted in zip(train(masked), train(plain), strict=True):
        np.testing.assert_allclose(got.parameters, wanted.parameters, atol=1e-4)
        assert got.metrics["secure/survivors"] == CLIENTS
        assert got.metrics["privacy/examples_epsilon"] == wanted.metrics["privacy/examples_epsilon"]
        assert "train_loss" not in got.metrics


def test_a_search_trains_the_silos_of_a_trial_one_by_one_with_their_noise() -> None:
    experiment = build_experiment({"noise_multiplier": 1.0})
    prepared, _ = build_shared_preparation(NOTHING_GIVEN)(experiment)
    assert resolve_group_size(prepared, gpu=False) == 1
    assert prepared.examples is not None
    plan = prepared.build_training_plan()
    assert plan.examples is not None
    assert plan.examples.key != prepared.examples.key  # silos do not get the key of the server's noise


@pytest.mark.usefixtures("recorded_runs")
def test_nothing_of_a_silos_labels_or_losses_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = fr.run(build_experiment({"noise_multiplier": 1.0}, tracking={"uri": create_store(tmp_path / "m.db")}))
    facts = json.loads((result.directory / "facts.json").read_text())
    assert not facts["label_counts"]
    assert facts["examples"] == 0
    rows = json.loads((result.directory / "silo_privacy.json").read_text())
    assert rows["columns"] == ["silo", "noise_multiplier", "epsilon", "simulated"]
    assert max(row[2] for row in rows["data"]) == result.metrics["privacy/examples_epsilon"]
    texts = [path.read_bytes() for path in result.directory.rglob("*") if path.is_file()]
    assert not [text for text in texts if b"train_loss" in text]


def test_a_target_is_not_stretched_over_more_rounds_and_an_open_run_cannot_become_private() -> None:
    before = flatten_settings(build_experiment({"epsilon": 8.0}))
    after = flatten_settings(build_experiment({"epsilon": 8.0}, federation={"rounds": 20}))
    assert "is spent after them" in str(_find_problem("federation.rounds", before, after, 1, ()))
    opened = flatten_settings(build_experiment({"epsilon": 8.0}).model_copy(update={"privacy": None}))
    assert _find_problem("privacy.examples.epsilon", opened, before, 1, ("privacy",)) is not None


def test_what_several_runs_spend_adds_up() -> None:
    metrics = {"privacy/epsilon": 4.0, "privacy/examples_epsilon": 8.0}
    assert "ε 12, ε of examples 24" in str(describe_spending([metrics] * 3))
    assert "ε of examples 16" in str(describe_spending([{"privacy/examples_epsilon": 8.0}] * 2))
    assert describe_spending([{"test_accuracy": 1.0}]) is None


def test_every_placement_gives_the_same_bytes(session: Any) -> None:
    wanted = [report.parameters.tobytes() for report in train(build_experiment({"epsilon": 8.0}))]
    for placement in ("pooled", "dedicated"):
        execution = {"placement": placement, "gpus_per_actor": 0, "cpus_per_actor": 0.5}
        placed = build_experiment({"epsilon": 8.0}, execution=execution)
        assert [report.parameters.tobytes() for report in fr.iter_rounds(placed, session=session)] == wanted


@pytest.mark.parametrize(
    ("privacy", "changes", "says"),
    [
        ({"epsilon": 1.0, "delta": 0.01}, {}, "privacy.examples.delta: 0.01 should be below 1/n"),
        ({"epsilon": 1e-9}, {}, "privacy.examples.epsilon: 1e-09 is not reached by any noise"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, {}, "set either epsilon or noise_multiplier"),
        ({}, {}, "set either epsilon or noise_multiplier"),
        ({"epsilon": -1.0}, {}, "privacy.examples.epsilon"),
        ({"epsilon": 1.0}, {"execution": {"vectorize": 4}}, "execution.vectorize"),
        ({"epsilon": 1.0}, {"execution": {"compile": "on"}}, "execution.compile"),
        ({"epsilon": 1.0}, {"evaluation": {"federated": True}}, "evaluation.federated"),
        ({"epsilon": 1.0}, {"model": {"name": "mlp", "dropout": 0.5}}, "model: a layer, such as dropout"),
        ({"epsilon": 1.0}, {"model": {"class_weights": "balanced"}}, "model.class_weights"),
    ],
)
def test_what_cannot_be_private_is_refused_with_what_would_be_right(
    privacy: dict[str, Any], changes: dict[str, dict[str, Any]], says: str
) -> None:
    with pytest.raises((ConfigError, ValueError), match=says.replace(".", r"\.")):
        prepare(build_experiment(privacy, **changes))
