"""The settings of secure aggregation that all clients and the driver share."""

from dataclasses import dataclass
from math import ceil

from fednar_ray.core.schedules import RoundScalars
from fednar_ray.secure.quantizer import count_levels


def compute_threshold(share: float, members: int) -> int:
    """Returns t, a share of the members, rounded up."""
    return ceil(round(share * members, 9))


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurePlan:
    """What the driver and the clients have agreed on before the first round.

    Attributes:
        run: The run, which no other run is called by. Empty until its actors start.
        seed: The experiment's seed, from which random rounding follows.
        threshold: The share of a round's clients whose updates a sum needs.
        bits: The size of the quantized integers.
        clip: The bound of an update's norm; None if the regularizer bounds it.
        steps: K, if each of K local steps is at most η_t·A_t long; None if steps are not bounded.
        most_examples: n_max: no client has more training examples.
        weighted: Whether clients are weighted by their examples, or all alike.
        directory: Where each client keeps its keys and choices. None: in the user's state directory.
    """

    run: str = ""
    seed: int
    threshold: float
    bits: int
    clip: float | None
    steps: int | None
    most_examples: int
    weighted: bool
    directory: str | None

    def compute_range(self, scalars: RoundScalars) -> float:
        """Returns R, the bound of an update's norm in a round: the smaller of K·η_t·A_t and ``clip``."""
        by_steps = [] if self.steps is None else [self.steps * scalars.local_lr * scalars.clip_bound]
        by_clip = [] if self.clip is None else [self.clip]
        return min(by_steps + by_clip)

    @property
    def most_weight(self) -> int:
        """The largest weight of a client: n_max, or 1 if all count alike."""
        return self.most_examples if self.weighted else 1

    def compute_step(self, scalars: RoundScalars) -> float:
        """Returns what one unit of the integers is worth in Σ weight_i·Δ_i."""
        return self.compute_range(scalars) * self.most_weight / count_levels(self.bits)
