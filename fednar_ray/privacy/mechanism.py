"""Makes the rounds of a run differentially private: the bound of each update, the noise in their sum, and ε.

With the bound C_t, the sum over the clients that came, and m = q·N whoever came,

    Δ̂_i = Δ_i · min(1, C_t/‖Δ_i‖)        Δ = (Σ Δ̂_i + N(0, z²·C_t²·I)) / m

One client changes the sum by at most C_t. Sources: McMahan et al., ICLR 2018 (fixed bounds); Andrew et al., NeurIPS
2021 (adaptive bounds).
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import exp
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.config.privacy import AdaptiveBoundSettings, FednarBoundSettings, PrivacySettings
from fednar_ray.core.flat_params import FloatVector
from fednar_ray.core.private_metrics import CLIPPED, EPSILON, NOISE, NORM_BOUND, SIMULATED
from fednar_ray.core.random import Purpose
from fednar_ray.core.schedules import RoundScalars
from fednar_ray.privacy.accounting import Mechanism, Spending
from fednar_ray.privacy.keys import NoiseKey

NOISE_BLOCK = 1 << 20
"""How many numbers of the noise come from one stream."""
ROUNDING = 2.0**-17
"""By how much clipped updates stay below the bound, so that float32 cannot round them above it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPrivacy:
    """How the clients of a run are protected.

    Attributes:
        settings: The section ``privacy``.
        clients: N, the number of all clients, which is public.
        expected_clients: m = q·N, the number of clients that a round has on average.
        local_steps: K, the local steps of every client; None if clients differ.
        noise_multiplier: z, of everything that a round releases.
        mechanism: What is accounted.
        spending: ε after each number of rounds.
        key: Where noise comes from; None: a secret run has not been given its key yet.
    """

    settings: PrivacySettings
    clients: int
    expected_clients: int
    local_steps: int | None
    noise_multiplier: float
    mechanism: Mechanism
    spending: Spending
    key: NoiseKey | None

    @property
    def sampling_probability(self) -> float:
        """q."""
        return self.mechanism.sampling_probability

    @property
    def initial_bound(self) -> float | None:
        """C_0 of a bound that the server adapts; None for bounds that follow from the round."""
        return self.settings.bound.norm if isinstance(self.settings.bound, AdaptiveBoundSettings) else None

    @property
    def count_noise(self) -> float:
        """σ_b, the standard deviation of the noise in the number of updates within the bound; 0 if none is counted."""
        bound = self.settings.bound
        if not isinstance(bound, AdaptiveBoundSettings):
            return 0.0
        return bound.count_noise or max(self.expected_clients / 20, self.noise_multiplier)

    @property
    def update_noise_multiplier(self) -> float:
        """z_Δ, the noise multiplier of the updates' sum: more than z if a count is released, too."""
        z, count_noise = self.noise_multiplier, self.count_noise
        return float((z**-2 - (2 * count_noise) ** -2) ** -0.5) if count_noise else z

    def with_key(self, key: NoiseKey) -> "ClientPrivacy":
        """Returns the same with a key."""
        return replace(self, key=key)

    def compute_bound(self, scalars: RoundScalars, adapted: float | None) -> float:
        """Computes C_t.

        Args:
            scalars: η_t and A_t.
            adapted: The adapted bound, as the server's state holds it; None for other bounds.
        """
        if adapted is not None:
            return adapted
        bound = self.settings.bound
        if isinstance(bound, FednarBoundSettings):
            assert self.local_steps is not None
            longest = self.local_steps * scalars.local_lr * scalars.clip_bound
            return longest if bound.norm is None else min(bound.norm, longest)
        return bound.norm

    def build_mean(
        self,
        round_index: int,
        bound: float,
        total: FloatVector | npt.NDArray[np.float64],
        context: bytes = b"",
    ) -> FloatVector:
        """Builds the noised mean of the updates, [d].

        Args:
            round_index: t.
            bound: C_t.
            total: Σ Δ̂_i, [d]; zeros if nobody came. The noise is added in its precision.
            context: What is summed, as in ``NoiseKey.build_generator``.
        """
        generator = self._build_generator(Purpose.PRIVACY_NOISE, round_index, context)
        number: Any = total.dtype.type
        noise: npt.NDArray[Any] = draw_normal(generator, len(total)).astype(number, copy=False)
        noise *= number(self.update_noise_multiplier * bound)
        noise += total
        noise /= number(self.expected_clients)
        return noise.astype(np.float32, copy=False)

    def count_within(
        self, round_index: int, bound: float, norms: npt.NDArray[np.float64], context: bytes = b""
    ) -> float:
        """Counts the updates that are not longer than C_t, with noise, as a share of m.

        Each counts ½ or −½, so that one client changes the sum by ½.

        Args:
            round_index: t.
            bound: C_t.
            norms: ‖Δ_i‖ of the clients that came, before clipping.
            context: Whose updates are counted, as in ``NoiseKey.build_generator``.
        """
        noise = self._build_generator(Purpose.COUNT_NOISE, round_index, context).normal(0.0, self.count_noise)
        total = float(np.sum(norms <= bound)) - len(norms) / 2
        return (total + noise) / self.expected_clients + 0.5

    def adapt(self, bound: float, within: float) -> float:
        """Returns the next bound, C·exp(−η_C·(b − γ)).

        Args:
            bound: C_t.
            within: b, the noised share of updates within it.

        Source: Andrew et al., NeurIPS 2021, Algorithm 1.
        """
        settings = self.settings.bound
        assert isinstance(settings, AdaptiveBoundSettings)
        return bound * exp(-settings.lr * (within - settings.quantile))

    def compute_metrics(self, rounds: int, bound: float, within: float | None) -> dict[str, float]:
        """Returns the metrics of a round. ``rounds`` have ended with it; ``within`` is None if nothing is counted."""
        metrics = {
            EPSILON: self.spending.get(rounds),
            NOISE: self.noise_multiplier,
            NORM_BOUND: bound,
        }
        if within is not None:
            metrics[CLIPPED] = max(0.0, self.expected_clients * (1 - within))
        return metrics if self.settings.secret else {**metrics, SIMULATED: 1.0}

    def draw_clients(self, round_index: int) -> npt.NDArray[np.bool_]:
        """Draws who takes part in a round of a secret run, [N]: each client with probability q."""
        draws = self._build_generator(Purpose.SAMPLING, round_index).random(self.clients)
        return draws < self.sampling_probability

    def _build_generator(self, purpose: Purpose, round_index: int, context: bytes = b"") -> np.random.Generator:
        assert self.key is not None, "a secret run without its key"
        return self.key.build_generator(purpose, round_index, context=context)


def draw_normal(generator: np.random.Generator, count: int) -> FloatVector:
    """Draws standard normal numbers, [count], in blocks on all cores.

    Each block has a stream of its own, so the numbers do not depend on the number of cores.

    Args:
        generator: A generator over Philox, at its start. The first block continues it, block k jumps k·2^128 ahead.
        count: How many numbers.
    """
    origin = generator.bit_generator
    assert isinstance(origin, np.random.Philox)
    blocks = max(1, -(-count // NOISE_BLOCK))
    # all of them before the first one advances
    streams = [generator, *(np.random.Generator(origin.jumped(number)) for number in range(1, blocks))]
    drawn = np.empty(count, dtype=np.float32)
    parts = np.split(drawn, range(NOISE_BLOCK, count, NOISE_BLOCK))
    if blocks == 1:
        generator.standard_normal(dtype=np.float32, out=drawn)
        return drawn
    with ThreadPoolExecutor(min(blocks, os.cpu_count() or 1)) as threads:
        list(threads.map(lambda stream, part: stream.standard_normal(dtype=np.float32, out=part), streams, parts))
    return drawn


def compute_clip_factors(norms: Sequence[float] | npt.NDArray[np.float64], bound: float) -> npt.NDArray[np.float32]:
    """Computes min(1, C/‖Δ_i‖), rounded down by ``ROUNDING``; 0 for norms that are not finite.

    Args:
        norms: ‖Δ_i‖, [C].
        bound: C_t.
    """
    norms, limit = np.asarray(norms, dtype=np.float64), bound * (1 - ROUNDING)
    factors = np.divide(limit, norms, out=np.ones_like(norms), where=norms > limit)
    return np.where(np.isfinite(norms), factors, 0.0).astype(np.float32)
