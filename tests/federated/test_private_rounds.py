"""Private rounds: the server's step against NumPy, bounds, and what may be reported."""

import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fednar_ray as fr
from fednar_ray.core.blocks import BLOCK
from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.private_metrics import PRIVATE_METRICS
from fednar_ray.core.random import Purpose
from fednar_ray.experiments.iter_rounds import build_initial_state, build_round_plan
from fednar_ray.experiments.placement import plan_execution
from fednar_ray.experiments.prepare import prepare
from fednar_ray.federated.collection import start_round
from fednar_ray.federated.group_update import measure_lengths
from fednar_ray.privacy.keys import NoiseKey, build_public_key, compute_context, draw_key
from fednar_ray.privacy.mechanism import compute_clip_factors
from tests.conftest import build_small_federation
from tests.support.faulty_models import Trap, build_federation
from tests.support.oracle import Oracle

SIZES = (7, 30, 12, 1, 21, 9, 14, 5)
FEDERATION = {"rounds": 3, "clients_per_round": 4, "sampling": "poisson", "local_steps": 3, "batch_size": 8}
REPORTED = {
    *PRIVATE_METRICS, "update_norm", "parameter_norm", "server_lr", "local_lr", "weight_decay", "clip_bound",
    "bytes_down", "bytes_up", "round_seconds",
}  # fmt: skip


def build(privacy: Any, **sections: Any) -> fr.Experiment:
    given = {"federation": FEDERATION, "execution": {"placement": "serial"}, **sections}
    if privacy is not None:
        given["privacy"] = {"delta": 0.01, **privacy}
    return fr.Experiment.model_validate(given)


def build_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))


def train(experiment: fr.Experiment, sizes: tuple[int, ...] = SIZES) -> list[fr.RoundReport]:
    return list(fr.iter_rounds(experiment, federation=build_small_federation(sizes), model=build_model()))


def draw_sample(seed: int, t: int, q: float) -> list[int]:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(3, t, 0)))
    return np.flatnonzero(rng.random(len(SIZES)) < q).tolist()


def draw_noise(key: NoiseKey, t: int, before: Any, came: list[int]) -> Any:
    """Draws the noise of a round, [d]. It follows from where the round starts and from whose updates it sums."""
    context = compute_context(np.asarray(before, dtype=np.float32), came)
    return key.build_generator(Purpose.PRIVACY_NOISE, t, context=context).standard_normal(33, dtype=np.float32)


def get_start() -> Any:
    return torch.nn.utils.parameters_to_vector(build_model().parameters()).detach().numpy()


def build_oracle() -> Oracle:
    federation = build_small_federation(SIZES)
    offsets, examples = federation.shards.offsets, federation.shards.examples
    clients = [(examples.x[a:b], examples.y[a:b]) for a, b in pairwise(offsets)]
    regularizer = {"name": "fednar", "weight_decay": 0.01, "weight_decay_anneal": 1.0, "clip_bound": 10.0,
                   "clip_bound_anneal": 1.0}  # fmt: skip
    algorithm = {"name": "fedavg", "local_lr": 0.1, "local_lr_anneal": 1.0}
    settings = {"seed": 0, "batch_size": 8, "local_steps": 3, "regularizer": regularizer, "algorithm": algorithm}
    oracle = Oracle(settings, clients, build_model())
    oracle.changed = {}
    return oracle


@pytest.mark.parametrize("norm", [0.05, 100.0])
def test_rounds_are_those_of_an_independent_loop(norm: float) -> None:
    experiment, oracle = build({"noise_multiplier": 0.5, "bound": {"norm": norm}}), build_oracle()
    key = build_public_key(experiment)
    clipped, before = 0, get_start()
    for t, report in enumerate(train(experiment)):
        total = np.zeros(len(oracle.x))
        for i in draw_sample(0, t, 0.5):
            delta = oracle.local(t, i)[0].numpy()
            length = np.linalg.norm(delta)
            clipped += length > norm
            total += delta * min(1.0, norm / length)
        noise, before = draw_noise(key, t, before, draw_sample(0, t, 0.5)), report.parameters
        oracle.x = oracle.x + torch.from_numpy((total + 0.5 * norm * noise.astype(np.float64)) / 4)
        assert report.parameters == pytest.approx(oracle.x.numpy(), abs=2e-5 * max(1.0, norm))
    assert (clipped > 0) == (norm < 1)


def test_without_noise_and_clipping_it_is_the_mean_with_a_fixed_denominator() -> None:
    private = train(build({"noise_multiplier": 1e-9, "bound": {"norm": 1e3}}))[0]
    open_ = train(build(None))[0]  # weighted by examples, over those who came
    came = open_.client_ids
    assert len(came) not in (0, 4)
    start, oracle = get_start(), build_oracle()
    mean = sum(oracle.local(0, i)[0].numpy() for i in came) / 4
    assert private.parameters - start == pytest.approx(mean, abs=1e-5)


def test_an_update_of_fednar_is_within_its_bound_before_any_clipping() -> None:
    sections = {"regularizer": {"clip_bound": 0.3, "clip_bound_anneal": 0.9}, "algorithm": {"local_lr_anneal": 0.8}}
    tight = build({"noise_multiplier": 1e-9, "bound": "fednar"}, **sections)
    loose = build({"noise_multiplier": 1e-9, "bound": {"norm": 1e3}}, **sections)
    for t, (one, other) in enumerate(zip(train(tight), train(loose), strict=True)):
        assert one.metrics["privacy/bound"] == pytest.approx(3 * 0.1 * 0.8**t * 0.3 * 0.9**t)
        assert one.parameters == pytest.approx(other.parameters, abs=1e-5)  # clipping changes nothing but the rounding


def test_only_what_is_accounted_or_public_is_reported() -> None:
    for privacy in ({"noise_multiplier": 1.0}, {"noise_multiplier": 1.0, "bound": "adaptive"}):
        for report in train(build(privacy)):
            evaluated = {name for name in report.metrics if name.startswith(("test_", "seconds/"))}
            assert set(report.metrics) - evaluated <= REPORTED
            assert (report.client_ids, report.exclusions, report.step_norms, report.norm_quantiles) == ((), {}, {}, ())


def test_a_round_that_nobody_takes_part_in_is_noise_alone() -> None:
    federation = {**FEDERATION, "clients_per_round": 1, "rounds": 12}
    experiment = build({"noise_multiplier": 0.7, "bound": {"norm": 2.0}}, federation=federation)
    empty = [t for t in range(12) if not draw_sample(0, t, 1 / 8)]
    assert empty
    reports, key = train(experiment), build_public_key(experiment)
    for t in (t for t in empty if t > 0):
        noise = draw_noise(key, t, reports[t - 1].parameters, [])
        moved = reports[t].parameters - reports[t - 1].parameters
        assert moved == pytest.approx(np.float32(1.4) * noise, abs=1e-5)


def test_clients_that_send_no_number_count_as_zero() -> None:
    alone = {**FEDERATION, "clients_per_round": 8}
    privacy = {"noise_multiplier": 0.5, "bound": {"norm": 1.0}}
    broken = build(privacy, federation=alone, attacks={"nan": 0.9})
    key, reports = build_public_key(broken), train(broken)
    assert np.isfinite(reports[-1].parameters).all()
    everyone = build(privacy, federation=alone, attacks={"nan": 0.99})
    noise = draw_noise(build_public_key(everyone), 0, get_start(), [])
    assert train(everyone)[0].parameters - get_start() == pytest.approx(noise * 0.5 / 8, abs=1e-6)
    assert key != build_public_key(everyone)


def test_an_adaptive_bound_follows_the_norms() -> None:
    federation = {**FEDERATION, "rounds": 40, "clients_per_round": 8}
    bound = {"name": "adaptive", "norm": 10.0, "lr": 0.3, "count_noise": 0.01}
    bounds = [
        each.metrics["privacy/bound"]
        for each in train(build({"noise_multiplier": 0.01, "bound": bound}, federation=federation))
    ]
    assert bounds[0] == 10.0
    assert bounds[1] == pytest.approx(10 * np.exp(-0.3 * 0.5), rel=0.01)  # everybody is within it
    assert bounds[-1] < 2  # near the median of the norms


def test_a_poisson_sample_without_privacy_has_clients_drawn_by_themselves() -> None:
    reports = train(build(None, federation={**FEDERATION, "rounds": 30}))
    assert [list(each.client_ids) for each in reports] == [draw_sample(0, t, 0.5) for t in range(30)]
    assert len({len(each.client_ids) for each in reports}) > 3


def test_noise_never_hides_two_different_sums() -> None:
    key, start = draw_key(), get_start()
    draws = [draw_noise(key, 0, start, [1, 2]), draw_noise(key, 0, start, [1]), draw_noise(key, 0, start + 1, [1, 2])]
    assert len({draw.tobytes() for draw in draws}) == 3
    assert np.array_equal(draws[0], draw_noise(key, 0, start, [1, 2]))


def test_updates_of_large_models_are_not_longer_than_the_bound() -> None:
    delta = torch.full((1, 10_000_000), 1e-3)  # whose norm is off by a thousandth in float32
    factor = compute_clip_factors(torch.linalg.vector_norm(delta, dim=-1, dtype=torch.float64).numpy(), 1.0)
    assert float((delta * torch.from_numpy(factor)).double().norm()) <= 1.0


def build_masked(bits: int, norm: float, z: float, directory: Path, **changes: Any) -> fr.Experiment:
    federation = {**FEDERATION, "clients_per_round": None, **changes.pop("federation", {})}
    secure = {"bits": bits, "directory": str(directory), **changes.pop("secure", {})}
    privacy = {"noise_multiplier": z, "bound": {"norm": norm}, **changes.pop("privacy", {})}
    return build(privacy, federation=federation, secure_aggregation=secure, **changes)


@pytest.mark.parametrize(("bits", "norm"), [(8, 0.05), (8, 1.0), (20, 0.05), (24, 1.0)])
def test_the_noise_of_masked_sums_is_that_of_the_bound_after_rounding(tmp_path: Path, bits: int, norm: float) -> None:
    z, levels, everyone = 0.7, 2 ** (bits - 1) - 1, list(range(len(SIZES)))
    experiment = build_masked(bits, norm, z, tmp_path)
    report, oracle, start = train(experiment)[0], build_oracle(), get_start()
    step = min(norm, 3 * 0.1 * 10.0) / levels
    sensitivity = norm + step * np.sqrt(33)  # each of 33 numbers moves by less than a step
    noise = draw_noise(build_public_key(experiment), 0, start, everyone).astype(np.float64)
    without = len(SIZES) * (report.parameters.astype(np.float64) - start) - z * sensitivity * noise
    if bits == 8:
        assert without / step == pytest.approx(np.round(without / step), abs=0.01)  # nothing but integers is left
    deltas = np.array([oracle.local(0, i)[0].numpy() for i in everyone])
    lengths = np.linalg.norm(deltas, axis=1)
    assert (lengths > norm).any() == (norm < 1)
    total = (deltas * np.minimum(1.0, norm / lengths)[:, None]).sum(axis=0)
    assert without == pytest.approx(total, abs=len(SIZES) * step + 1e-4)


def test_masked_rounds_report_no_more_than_plain_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = build({"noise_multiplier": 1.0}, federation={**FEDERATION, "clients_per_round": None})
    masked = build_masked(24, 1.0, 1.0, tmp_path, attacks={"nan": 0.2})
    for one, other in zip(train(plain), train(masked), strict=True):
        assert one.metrics.keys() == other.metrics.keys()
        assert (other.client_ids, other.exclusions, other.step_norms, other.norm_quantiles) == ((), {}, {}, ())
        assert one.metrics["privacy/epsilon"] == other.metrics["privacy/epsilon"]
    assert not [record for record in caplog.records if record.levelno >= logging.INFO and "client" in record.message]


def test_the_end_of_a_masked_round_names_no_client_and_no_count(tmp_path: Path) -> None:
    experiment = build_masked(24, 1.0, 1.0, tmp_path, secure={"threshold": 1.0})
    text = r"masked updates of too few clients arrived, secure_aggregation.threshold requires 7 of 7$"
    with pytest.raises(RoundAborted, match=text):
        list(fr.iter_rounds(experiment, federation=build_federation(), model=Trap("raise", None)))


def test_masked_updates_that_are_not_finite_count_as_zero(tmp_path: Path) -> None:
    experiment = build_masked(24, 1.0, 0.5, tmp_path, attacks={"nan": 0.99})
    report, start, count = train(experiment)[0], get_start(), len(SIZES)
    noise = draw_noise(build_public_key(experiment), 0, start, list(range(count)))
    assert report.parameters - start == pytest.approx(noise * 0.5 / count, abs=1e-6)


def test_no_two_roundings_share_noise(tmp_path: Path) -> None:
    plain = build({"noise_multiplier": 1.0}, federation={**FEDERATION, "clients_per_round": None})
    keys = {build_public_key(each) for each in (plain, *(build_masked(bits, 1.0, 1.0, tmp_path) for bits in (8, 24)))}
    assert len(keys) == 3
    elsewhere = build_masked(24, 1.0, 1.0, tmp_path / "other", secure={"threshold": 0.9})
    assert build_public_key(elsewhere) in keys  # these change no sum


def test_everyone_with_examples_takes_part_where_all_are_wanted() -> None:
    data = {"partition": {"kind": "dirichlet", "clients": 60, "alpha": 0.03, "min_examples": 0}}
    federation = {**FEDERATION, "clients_per_round": None}
    experiment = build({"noise_multiplier": 1.0, "delta": 1e-3}, federation=federation, data=data, model={})
    prepared = prepare(experiment)
    with_examples = np.flatnonzero(prepared.federation.shards.sizes).tolist()
    assert 3 < len(with_examples) < 60
    plan = build_round_plan(prepared, plan_execution(prepared, fr.RaySession()))
    start = start_round(plan, build_initial_state(prepared))
    assert list(start.selection.returned) == with_examples
    assert prepared.privacy is not None
    assert prepared.privacy.expected_clients == 60


def test_masked_updates_are_as_long_as_the_bound_of_fednar(tmp_path: Path) -> None:
    sections = {"regularizer": {"clip_bound": 0.3, "clip_bound_anneal": 0.9}, "algorithm": {"local_lr_anneal": 0.8}}
    tight = build_masked(24, 1.0, 1e-9, tmp_path, privacy={"bound": "fednar"}, **sections)
    plain = build(
        {"noise_multiplier": 1e-9, "bound": "fednar"}, federation={**FEDERATION, "clients_per_round": None}, **sections
    )
    for one, other in zip(train(tight), train(plain), strict=True):
        assert one.metrics["privacy/bound"] == other.metrics["privacy/bound"]
        assert one.parameters == pytest.approx(other.parameters, abs=1e-5)


def test_lengths_are_exact_for_vectors_of_any_number_of_blocks() -> None:
    for length in (1, BLOCK, 3 * BLOCK + 11):
        rows = np.random.default_rng(length).normal(size=(2, length)).astype(np.float32)
        rows[1] *= 1e-3
        expected = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1))
        assert measure_lengths(torch.from_numpy(rows)) == pytest.approx(expected, rel=1e-13)
