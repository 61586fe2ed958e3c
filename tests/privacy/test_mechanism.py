"""Bounds, noise and counts, against formulas written down again."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednar_ray.config import PrivacySettings
from fednar_ray.core.schedules import RoundScalars
from fednar_ray.privacy.accounting import Mechanism, Spending
from fednar_ray.privacy.keys import NoiseKey
from fednar_ray.privacy.mechanism import NOISE_BLOCK, ClientPrivacy, compute_clip_factors, draw_normal
from tests.support.drawn import draw

SCALARS = RoundScalars(local_lr=0.1, weight_decay=0.01, clip_bound=2.0, epsilon=0.0)


def build(noise_multiplier: float = 1.0, expected: int = 100, **privacy: object) -> ClientPrivacy:
    return ClientPrivacy(
        settings=PrivacySettings.model_validate({"noise_multiplier": noise_multiplier, **privacy}),
        clients=1000,
        expected_clients=expected,
        local_steps=5,
        noise_multiplier=noise_multiplier,
        mechanism=Mechanism(sampling_probability=expected / 1000, delta=1e-5, rounds=3),
        spending=Spending((0, 1, 2, 3), (0.0, 0.1, 0.2, 0.3)),
        key=NoiseKey(None, bytes(range(32))),
    )


def test_the_bounds_are_those_of_their_names() -> None:
    assert build(bound={"name": "fixed", "norm": 0.7}).compute_bound(SCALARS, None) == 0.7
    assert build(bound="fednar").compute_bound(SCALARS, None) == pytest.approx(5 * 0.1 * 2.0)
    assert build(bound={"name": "fednar", "norm": 0.3}).compute_bound(SCALARS, None) == 0.3
    adaptive = build(bound={"name": "adaptive", "norm": 0.2})
    assert (adaptive.initial_bound, adaptive.compute_bound(SCALARS, 0.35)) == (0.2, 0.35)
    assert build().initial_bound is None


@given(st.lists(st.floats(0, 1e30), min_size=1, max_size=20), st.floats(1e-6, 1e6))
@draw(100)
def test_a_clipped_update_is_never_longer_than_the_bound(norms: list[float], bound: float) -> None:
    factors = compute_clip_factors(norms, bound)
    assert factors.dtype == np.float32
    for norm, factor in zip(norms, factors.tolist(), strict=True):
        assert 0 <= factor <= 1
        assert factor * norm <= bound
        if norm <= 0.9999 * bound:
            assert factor == 1


def test_updates_that_are_not_finite_count_as_zero() -> None:
    assert compute_clip_factors([math.nan, math.inf, 1.0], 2.0).tolist() == [0.0, 0.0, 1.0]


def test_the_mean_has_noise_of_the_standard_deviation_that_is_accounted() -> None:
    privacy, d = build(noise_multiplier=1.5, expected=40), 200_000
    total = np.full(d, 8.0, dtype=np.float32)
    mean = privacy.build_mean(2, 0.5, total)
    assert mean.dtype == np.float32
    noise = mean.astype(np.float64) * 40 - 8.0  # N(0, (1.5 · 0.5)²)
    assert noise.std() == pytest.approx(0.75, rel=0.01)  # 6 standard errors
    assert abs(noise.mean()) < 6 * 0.75 / math.sqrt(d)
    assert np.array_equal(mean, privacy.build_mean(2, 0.5, total))
    assert not np.array_equal(mean, privacy.build_mean(3, 0.5, total))


def test_without_noise_the_mean_has_a_fixed_denominator() -> None:
    total = np.array([3.0, -4.0], dtype=np.float32)
    assert build(noise_multiplier=1e-12, expected=10).build_mean(0, 1.0, total) == pytest.approx(total / 10)


def test_a_released_count_and_more_noise_cost_together_what_is_accounted() -> None:
    privacy = build(noise_multiplier=1.2, expected=200, bound={"name": "adaptive"})
    assert privacy.count_noise == 10.0  # m/20
    z_delta = privacy.update_noise_multiplier
    assert z_delta > 1.2
    # both Gaussians together have 1/z² = 1/z_Δ² + (½/σ_b)²: one client changes the sum of ±½ by ½
    assert z_delta**-2 + (0.5 / 10.0) ** 2 == pytest.approx(1.2**-2)
    assert build(noise_multiplier=8.0, expected=10, bound={"name": "adaptive"}).count_noise == 8.0
    assert build(noise_multiplier=1.2).update_noise_multiplier == 1.2


def test_the_bound_follows_the_paper_s_formula() -> None:
    privacy = build(bound={"name": "adaptive", "quantile": 0.8, "lr": 0.3, "count_noise": 1e-9}, noise_multiplier=1e-10)
    norms = np.array([0.1, 0.2, 0.5, 0.6])  # two within 0.4: (½ + ½ − ½ − ½)/100 + ½
    within = privacy.count_within(0, 0.4, norms)
    assert within == pytest.approx(0.5)
    assert privacy.adapt(0.4, within) == pytest.approx(0.4 * math.exp(-0.3 * (0.5 - 0.8)))
    assert privacy.count_within(0, 0.4, np.zeros(100)) == pytest.approx(1.0)
    assert privacy.adapt(0.4, 1.0) < 0.4


def test_the_count_has_the_noise_that_its_settings_say() -> None:
    privacy = build(bound={"name": "adaptive", "count_noise": 7.0}, expected=50)
    counts = np.array([privacy.count_within(t, 1.0, np.ones(50)) for t in range(3000)])
    assert (counts * 50).std() == pytest.approx(7.0, rel=0.08)  # 6 standard errors
    assert counts.mean() == pytest.approx(1.0, abs=6 * 7 / 50 / math.sqrt(3000))


def test_the_metrics_say_what_is_spent_and_whether_it_is_simulated() -> None:
    public, secret = build(), build(secret=True)
    assert public.compute_metrics(2, 0.7, None) == {
        "privacy/epsilon": 0.2, "privacy/noise_multiplier": 1.0, "privacy/bound": 0.7, "privacy/simulated": 1.0,
    }  # fmt: skip
    assert "privacy/simulated" not in secret.compute_metrics(2, 0.7, None)
    assert secret.compute_metrics(1, 0.7, 0.9)["privacy/clipped_clients"] == pytest.approx(10.0)


def test_a_secret_sample_takes_each_client_with_the_probability_that_is_accounted() -> None:
    privacy = build(expected=250)
    shares = np.mean([privacy.draw_clients(t) for t in range(400)], axis=0)
    assert shares.mean() == pytest.approx(0.25, abs=6 * math.sqrt(0.25 * 0.75 / 400_000))
    assert 0.1 < shares.min() < shares.max() < 0.4


def test_noise_does_not_depend_on_the_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw_all(cores: int) -> np.ndarray:
        monkeypatch.setattr("os.cpu_count", lambda: cores)
        return draw_normal(np.random.Generator(np.random.Philox(3)), 2 * NOISE_BLOCK + 7)

    drawn = draw_all(1)
    assert drawn.tobytes() == draw_all(4).tobytes()
    first, second, third = np.split(drawn, [NOISE_BLOCK, 2 * NOISE_BLOCK])
    assert first[:5].tobytes() == draw_normal(np.random.Generator(np.random.Philox(3)), 5).tobytes()
    for block in (first, second):
        assert abs(block.mean()) < 5 / NOISE_BLOCK**0.5
        assert abs(block.std() - 1) < 5 / NOISE_BLOCK**0.5
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / NOISE_BLOCK**0.5
    assert (third != first[:7]).all()  # a stream of its own
