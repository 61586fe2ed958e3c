"""Computes the annealed scalars of a round, and the local steps of a client.

Annealing is geometric in the round t = 0, 1, …: η_t = η_0·γ_η^t with a rate γ_η in (0, 1]. λ_t, A_t and ε_t are
annealed in the same way.

Source: Li et al., NeurIPS 2023, Algorithm 1.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def anneal(initial: float, rate: float, round_index: int) -> float:
    """Computes the annealed value of a round, ``initial · rate^round_index``."""
    return initial * rate**round_index


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundScalars:
    """The annealed scalars of one round."""

    local_lr: float  # η_t
    weight_decay: float  # λ_t
    clip_bound: float  # A_t
    epsilon: float  # ε_t of the server optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The training of a client in one round: either ``local_steps`` or ``local_epochs`` over its shard. One is None."""

    batch_size: int
    local_steps: int | None
    local_epochs: int | None

    def steps(self, examples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns the local steps K_i, [C], for shards of ``examples`` [C]. An epoch keeps its short last batch."""
        if self.local_epochs is None:
            return np.full(examples.shape, self.local_steps, dtype=np.int64)
        return self.local_epochs * -(-examples // self.batch_size)
