"""How the single examples of silos are protected: what each silo adds to the gradients of its local steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fednar_ray.core.random import Purpose, seed_sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamplePrivacy:
    """DP-SGD in the local steps of a run. Adjacency: one example of one silo added or removed.

    Attributes:
        norm: C, the largest norm of an example's gradient.
        batch_size: B, the number of examples that a step has on average, where a silo has more than that.
        noise_multipliers: z of each silo, by client id.
        key: The key from which draws of examples and noise follow.
    """

    norm: float
    batch_size: int
    noise_multipliers: Mapping[int, float]
    key: bytes = field(repr=False)

    def get_sampling_probability(self, examples: int) -> float:
        """Returns q, with which each of a silo's n examples takes part in a step: B/n, at most 1."""
        return min(1.0, self.batch_size / examples)

    def build_generator(self, purpose: Purpose, round_index: int, client_id: int) -> np.random.Generator:
        """Builds the generator at one address. It gives the same numbers whenever the round is trained."""
        number = int.from_bytes(self.key, "big")
        address = seed_sequence(number, purpose, round_index=round_index, client_id=client_id)
        return np.random.Generator(np.random.Philox(address))
