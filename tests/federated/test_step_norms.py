"""‖v‖, the norm that is compared with the clip bound: per client in the record of a round, and as metrics."""

import numpy as np
import pytest

import fednar_ray as fr
from fednar_ray.core.step_norms import LEVELS
from fednar_ray.federated import round_metrics
from fednar_ray.tracking.journal import format_line, parse_line


def train(data: fr.Federation, regularizer: dict[str, object], **sections: object) -> list[fr.RoundReport]:
    experiment = fr.Experiment.model_validate(
        {
            "model": {"name": "mlp", "hidden": 4},
            "federation": {"rounds": 3, "clients_per_round": 4, "local_steps": 1, "batch_size": 8},
            "regularizer": regularizer,
            "execution": {"placement": "serial"},
            **sections,
        }
    )
    return list(fr.iter_rounds(experiment, federation=data))


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("name", ["coupled", "none"])
def test_a_single_step_is_as_long_as_the_learning_rate_times_the_norm(federation, name, width):
    one = {"rounds": 3, "clients_per_round": 1, "local_steps": 1, "participation": [[0], [1], [2]]}
    for report in train(
        federation, {"name": name, "weight_decay": 0.1}, federation=one, execution=build_serial_execution(width)
    ):
        ((client_id, norm),) = report.step_norms.items()
        assert report.client_ids == (client_id,)
        assert report.metrics["update_norm"] == pytest.approx(report.metrics["local_lr"] * norm, rel=1e-4)
        assert report.metrics["step_norm"] == report.metrics["step_norm_p10"] == pytest.approx(norm)


def build_serial_execution(width: int) -> dict[str, object]:
    return {"placement": "serial", "vectorize": width}


def test_the_clip_fraction_follows_from_the_norm(federation):
    # one step, and it is clipped: the effective decay is λ·A/‖v‖
    (report, *_) = train(federation, {"name": "fednar", "weight_decay": 0.1, "clip_bound": 0.01})
    sizes = federation.shards.sizes[list(report.client_ids)]
    norms = np.array([report.step_norms[client_id] for client_id in report.client_ids])
    assert report.metrics["clip_fraction"] == 1
    assert report.metrics["effective_weight_decay"] == pytest.approx(
        0.1 * 0.01 * (sizes / norms).sum() / sizes.sum(), rel=1e-4
    )


def test_the_norm_of_a_baseline_is_of_the_gradient_alone(federation):
    # before the first step, v is g + λ·x for FedNAR, and g for decoupled decay and for none
    firsts = {
        name: train(federation, {"name": name, "weight_decay": 0.5})[0].metrics["step_norm"]
        for name in ("fednar", "coupled", "decoupled", "none")
    }
    assert firsts["decoupled"] == firsts["none"]
    assert firsts["fednar"] == firsts["coupled"] != firsts["none"]


def test_a_record_keeps_the_norms_of_a_limited_number_of_clients(federation, monkeypatch):
    monkeypatch.setattr(round_metrics, "MOST_NORMS", 2)
    for report in train(federation, {"name": "none"}):
        assert tuple(report.step_norms) == report.client_ids[:2]
        assert report.metrics["step_norm_p10"] < report.metrics["step_norm_p90"]  # over all four clients


def test_a_client_that_sends_nan_has_no_step_norm_in_the_record(federation):
    corrupted = train(federation, {"name": "none"}, attacks={"nan": 0.4})
    assert any(report.exclusions for report in corrupted)
    for report in corrupted:
        assert set(report.step_norms) == set(report.client_ids) - set(report.exclusions)


def test_the_quantiles_of_single_steps_are_those_of_the_clients_norms(federation):
    # one step per client: numpy's quantiles over the clients, at the levels of the record
    for report in train(federation, {"name": "fednar", "weight_decay": 0.1, "clip_bound": 0.01}):
        expected = np.quantile([*report.step_norms.values()], LEVELS)
        assert report.norm_quantiles == pytest.approx(expected)  # before clipping: all of them are above the bound
        assert report.norm_quantiles[0] > 0.01


@pytest.mark.parametrize("width", [1, 4])
def test_quantiles_are_over_steps_and_not_over_clients(federation, width):
    one = {"rounds": 2, "clients_per_round": 4, "local_steps": 7, "batch_size": 8}
    regularizer = {"name": "coupled", "weight_decay": 0.1}
    for report in train(federation, regularizer, federation=one, execution=build_serial_execution(width)):
        low, high = min(report.step_norms.values()), max(report.step_norms.values())
        assert report.norm_quantiles[0] < low < high < report.norm_quantiles[-1]
        assert list(report.norm_quantiles) == sorted(report.norm_quantiles)


def test_excluded_clients_are_in_no_quantile(federation):
    for report in train(federation, {"name": "none"}, attacks={"nan": 0.4}):
        assert report.norm_quantiles == pytest.approx(np.quantile([*report.step_norms.values()], LEVELS))


def test_the_journal_stores_norms_with_four_digits(federation):
    (report, *_) = train(federation, {"name": "none"})
    back = parse_line(format_line(report.record()))
    assert back.step_norms == pytest.approx(report.step_norms, rel=1e-3)
    assert all(len(f"{norm}".replace(".", "").strip("0")) <= 4 for norm in back.step_norms.values())
    assert back.norm_quantiles == pytest.approx(report.norm_quantiles, rel=1e-3)
    old = format_line(report.record()).replace('"step_norms"', '"other"').replace('"norm_quantiles"', '"another"')
    assert (parse_line(old).step_norms, parse_line(old).norm_quantiles) == ({}, ())  # a journal of an earlier version
