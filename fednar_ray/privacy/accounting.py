"""Accounts for ε with Google's ``dp-accounting``: privacy loss distributions of Poisson-sampled Gaussian mechanisms.

Everything that says how private a run is comes from that library. Adjacency is to add or to remove one client.

Sources: Sommer, Meiser and Mohammadi, PoPETs 2019; Doroshenko et al., *Connect the Dots*, PoPETs 2022.
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any

from fednar_ray.core.errors import BadInput

INSTALL = "differential privacy needs dp-accounting; install it with: pip install 'fednar-ray[privacy]'"
INTERVAL, FINE_INTERVAL = 1e-3, 1e-4
"""In which steps privacy losses are counted, rounded up so that ε is never too low. Many rounds need the finer one."""
MANY_ROUNDS = 2000
PER_DOUBLING = 8
"""Numbers of rounds, per doubling, for which ε is computed exactly. In between, it is that of the next such number."""
LEAST, LARGEST, TOLERANCE = 0.3, 1e4, 1e-5
"""Which noise multipliers are tried for a target ε, and how closely the right one is found. Below LEAST, ε is
infinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """The mechanism of one round, and how many rounds are planned.

    Attributes:
        sampling_probability: q, with which each client takes part in a round.
        delta: δ.
        rounds: T.
    """

    sampling_probability: float
    delta: float
    rounds: int

    def compute_epsilon(self, noise_multiplier: float, rounds: int) -> float:
        """Computes ε of the first rounds: exactly what ``PLDAccountant`` says of their composition.

        With less noise than ``LEAST`` it is infinite: it would be hundreds per round, and take minutes to compute.

        Args:
            noise_multiplier: z, the standard deviation of the noise relative to the bound of an update.
            rounds: How many rounds are composed.
        """
        if not rounds or noise_multiplier < LEAST:
            return inf if rounds else 0.0
        one = _build_loss(self.sampling_probability, noise_multiplier, self._interval)
        return float(one.self_compose(rounds).get_epsilon_for_delta(self.delta))

    def find_noise_multiplier(self, epsilon: float) -> float:
        """Finds the least noise multiplier, from ``LEAST`` on, whose ε over all rounds is at most ``epsilon``.

        Raises:
            ValueError: No noise up to ``LARGEST`` reaches it.
        """
        return _find_noise_multiplier(self, epsilon)

    @property
    def _interval(self) -> float:
        return INTERVAL if self.rounds <= MANY_ROUNDS else FINE_INTERVAL


@lru_cache(maxsize=4096)
def _find_noise_multiplier(mechanism: Mechanism, epsilon: float) -> float:
    accounting = import_accounting()

    def build_event(noise_multiplier: float) -> Any:
        gaussian = accounting.GaussianDpEvent(noise_multiplier)
        event = accounting.PoissonSampledDpEvent(mechanism.sampling_probability, gaussian)
        return accounting.SelfComposedDpEvent(event, mechanism.rounds)

    if mechanism.compute_epsilon(LARGEST, mechanism.rounds) > epsilon:
        raise ValueError(f"is not reached by any noise up to {LARGEST:g} times the bound")
    if mechanism.compute_epsilon(LEAST, mechanism.rounds) <= epsilon:
        return LEAST
    found = accounting.calibrate_dp_mechanism(
        lambda: accounting.pld.PLDAccountant(value_discretization_interval=mechanism._interval),
        build_event,
        epsilon,
        mechanism.delta,
        accounting.LowerEndpointAndGuess(LEAST, 1.0),
        tol=TOLERANCE,
    )
    while mechanism.compute_epsilon(found, mechanism.rounds) > epsilon:
        found += TOLERANCE
    return float(found)


@lru_cache(maxsize=16)
def _build_loss(sampling_probability: float, noise_multiplier: float, interval: float) -> Any:
    """Builds the privacy loss distribution of one round."""
    losses = import_accounting().pld.privacy_loss_distribution
    return losses.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        sampling_prob=sampling_probability,
        value_discretization_interval=interval,
    )


@dataclass(frozen=True, slots=True)
class Spending:
    """ε spent after each number of rounds, computed ahead of them."""

    rounds: tuple[int, ...]  # ascending
    epsilons: tuple[float, ...]  # after so many rounds

    def get(self, rounds: int) -> float:
        """Returns ε after some rounds, or after the next larger number of rounds for which it was computed."""
        return self.epsilons[bisect_left(self.rounds, rounds)]


@lru_cache(maxsize=4096)
def compute_spending(mechanism: Mechanism, noise_multiplier: float, steps: int = 1) -> Spending:
    """Computes ε after the rounds of a plan: exactly after the last one, and ``PER_DOUBLING`` times per doubling.

    Args:
        mechanism: What is accounted. Its rounds are the plan's, times ``steps``.
        noise_multiplier: z.
        steps: How often the mechanism releases something in a round.
    """
    rounds = list_accounted_rounds(mechanism.rounds // steps)
    return Spending(rounds, tuple(mechanism.compute_epsilon(noise_multiplier, each * steps) for each in rounds))


def list_accounted_rounds(planned: int) -> tuple[int, ...]:
    """Lists the numbers of rounds for which ε is computed: up to the planned one, which is the last."""
    found = [0]
    while found[-1] < planned:
        step = max(1, 2 ** (found[-1].bit_length() - 1) // PER_DOUBLING)
        found.append(min(found[-1] + step, planned))
    return tuple(found)


def import_accounting() -> Any:
    """Imports ``dp-accounting``. Raises BadInput, which says how to install it, if it is missing."""
    try:
        import dp_accounting
        import dp_accounting.pld
    except ImportError as error:
        raise BadInput(INSTALL) from error
    return dp_accounting
