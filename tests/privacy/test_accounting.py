"""ε equals what dp-accounting says when it is called by hand, and what has been published."""

import math
import sys
from itertools import pairwise

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from scipy.optimize import brentq
from scipy.stats import norm

import fednar_ray as fr
from fednar_ray.privacy.accounting import (
    INTERVAL,
    LEAST,
    Mechanism,
    compute_spending,
    import_accounting,
    list_accounted_rounds,
)

DELTA = 1e-5


def build(q: float, rounds: int) -> Mechanism:
    return Mechanism(sampling_probability=q, delta=DELTA, rounds=rounds)


def account_by_hand(q: float, z: float, rounds: int, interval: float) -> float:
    event = PoissonSampledDpEvent(q, GaussianDpEvent(z))
    accountant = PLDAccountant(value_discretization_interval=interval)
    return float(accountant.compose(SelfComposedDpEvent(event, rounds)).get_epsilon(DELTA))


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize(("q", "z", "rounds"), [(0.25, 1.0, 12), (0.05, 0.8, 40), (1.0, 3.0, 10)])
def test_epsilon_equals_the_accountant_called_by_hand(q: float, z: float, rounds: int) -> None:
    mechanism = build(q, rounds)
    for each in (1, rounds // 2, rounds):
        found = mechanism.compute_epsilon(z, each)
        assert found == pytest.approx(account_by_hand(q, z, each, INTERVAL), rel=1e-9)
        fine = account_by_hand(q, z, each, 1e-4)
        assert fine - 1e-9 <= found <= fine + 1e-3  # a coarser count of losses is never below a finer one


def compute_gaussian_delta(epsilon: float, mu: float) -> float:
    """The exact δ of a Gaussian mechanism with sensitivity μ·σ (Balle and Wang, ICML 2018, Theorem 8)."""
    inner = -epsilon / mu + mu / 2
    return float(norm.cdf(inner) - math.exp(epsilon) * norm.cdf(inner - mu))


def find_gaussian_epsilon(mu: float) -> float:
    return float(brentq(lambda epsilon: compute_gaussian_delta(epsilon, mu) - DELTA, 1e-6, 100))


@pytest.mark.parametrize(("z", "rounds"), [(2.0, 1), (3.0, 10), (10.0, 50)])
def test_without_sampling_epsilon_is_the_exact_one_of_the_gaussian_mechanism(z: float, rounds: int) -> None:
    exact = find_gaussian_epsilon(math.sqrt(rounds) / z)
    assert exact - 1e-6 <= build(1.0, rounds).compute_epsilon(z, rounds) <= exact + 2e-3


def test_epsilon_is_near_the_published_values_of_dp_sgd() -> None:
    # Abadi et al., CCS 2016, section 3.2: q = 0.01, σ = 4, δ = 1e-5, 100 epochs, so 10,000 steps: ε ≈ 1.26 by moments,
    # which is an upper bound. Dong, Roth and Su, JRSS B 2022, Corollary 5.4: nearly μ-GDP, μ = q·√(T·(e^(1/σ²) − 1)).
    found = build(0.01, 10_000).compute_epsilon(4.0, 10_000)
    central = find_gaussian_epsilon(0.01 * math.sqrt(10_000 * (math.exp(1 / 16) - 1)))
    assert found <= 1.26
    assert found == pytest.approx(central, rel=0.02)


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 8.0])
def test_the_noise_found_for_a_target_reaches_it_and_never_exceeds_it(epsilon: float) -> None:
    mechanism = build(0.1, 30)
    z = mechanism.find_noise_multiplier(epsilon)
    assert epsilon - 0.01 <= account_by_hand(0.1, z, 30, INTERVAL) <= epsilon
    assert mechanism.compute_epsilon(z, 29) < epsilon


def test_a_large_target_gets_the_least_noise_that_is_used() -> None:
    assert build(0.01, 1).find_noise_multiplier(1000.0) == LEAST


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(ValueError, match="not reached by any noise"):
        build(1.0, 1000).find_noise_multiplier(1e-7)


def test_with_hardly_any_noise_epsilon_is_infinite() -> None:
    assert build(0.1, 5).compute_epsilon(LEAST / 2, 5) == math.inf
    assert build(0.1, 5).compute_epsilon(LEAST / 2, 0) == 0


@pytest.mark.usefixtures("long_computation")
def test_what_is_spent_is_exact_at_some_rounds_and_never_too_low() -> None:
    mechanism = build(0.1, 45)
    spending = compute_spending(mechanism, 1.5)
    exact = [mechanism.compute_epsilon(1.5, rounds) for rounds in range(46)]
    shown = [spending.get(rounds) for rounds in range(46)]
    assert shown[:17] == exact[:17]
    assert shown[45] == exact[45]
    assert all(low <= high for low, high in zip(exact, shown, strict=True))
    assert shown == sorted(shown)


def test_the_accounted_rounds_are_dense_and_end_with_the_plan() -> None:
    rounds = list_accounted_rounds(1000)
    assert rounds[0] == 0
    assert rounds[-1] == 1000
    assert len(rounds) < 80
    assert all(b - a <= max(1, a / 8) for a, b in pairwise(rounds))


def test_without_the_library_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(fr.BadInput, match=r"pip install 'fednar-ray\[privacy\]'"):
        import_accounting()
