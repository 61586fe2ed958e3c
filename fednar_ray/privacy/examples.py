"""How the single examples of silos are protected: what each silo adds to the gradients of its local steps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fednar_ray.core.client_names import ClientNames, name_client
from fednar_ray.core.private_metrics import EXAMPLES_EPSILON, SIMULATED
from fednar_ray.core.random import Purpose
from fednar_ray.privacy.accounting import Spending
from fednar_ray.privacy.keys import NoiseKey


def compute_sampling_probability(batch_size: int, examples: int) -> float:
    """Computes q, with which each of n examples takes part in a step of B on average: B/n, at most 1."""
    return min(1.0, batch_size / examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamplePrivacy:
    """DP-SGD in the local steps of a run. Adjacency: one example of one silo added or removed.

    Attributes:
        norm: C, the largest norm of an example's gradient.
        batch_size: B, the number of examples that a step has on average, where a silo has more than that.
        noise_multipliers: z of each silo, by client id.
        key: Where draws of examples and noise come from; None: a secret run has not been given its key yet.
        spending: ε of each silo after a number of rounds, by client id.
        simulated: Whether the key follows from the public seed, so that nobody is protected.
    """

    norm: float
    batch_size: int
    noise_multipliers: Mapping[int, float]
    key: NoiseKey | None
    spending: Mapping[int, Spending]
    simulated: bool

    def with_key(self, key: NoiseKey) -> "ExamplePrivacy":
        """Returns the same with a key."""
        return replace(self, key=key)

    def get_sampling_probability(self, examples: int) -> float:
        """Returns q of a silo with so many examples."""
        return compute_sampling_probability(self.batch_size, examples)

    def for_training(self) -> "ExamplePrivacy":
        """Returns the same for the silos: their key follows from the run's, which they cannot compute from it."""
        return self if self.key is None else replace(self, key=self.key.derive("examples"))

    def build_generator(
        self, purpose: Purpose, round_index: int, client_id: int, context: bytes
    ) -> np.random.Generator:
        """Builds the generator at one address, as ``NoiseKey.build_generator`` does."""
        assert self.key is not None, "a secret run without its key"
        return self.key.build_generator(purpose, round_index, client_id, context)

    def get_epsilons(self, rounds: int) -> dict[int, float]:
        """Returns ε of each silo after some rounds, by client id, as if it had taken part in all of them."""
        return {client_id: each.get(rounds) for client_id, each in self.spending.items()}

    def tabulate(self, rounds: int, names: ClientNames) -> list[dict[str, object]]:
        """Returns a row per silo: what it adds, and what it has spent after some rounds."""
        return [
            {
                "silo": name_client(client_id, names),
                "noise_multiplier": self.noise_multipliers[client_id],
                "epsilon": epsilon,
                "simulated": self.simulated,
            }
            for client_id, epsilon in self.get_epsilons(rounds).items()
        ]

    def compute_metrics(self, rounds: int) -> dict[str, float]:
        """Returns the metrics of a round, with which so many rounds have ended: the largest ε of a silo."""
        metrics = {EXAMPLES_EPSILON: max(self.get_epsilons(rounds).values())}
        return {**metrics, SIMULATED: 1.0} if self.simulated else metrics
