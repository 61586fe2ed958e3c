"""How many steps a clip bound A would clip, from the step norms that a run has recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from fednar_ray.core.reports import RoundRecord
from fednar_ray.core.step_norms import LEVELS

POINTS = 1000  # norms that represent the steps of one round


def compute_scaled_norms(records: Sequence[RoundRecord], clip_bound: float) -> npt.NDArray[np.float64]:
    """Computes norms that represent the steps of all rounds, divided by A_t / A_0: a step is clipped if it exceeds A_0.

    Every round counts the same. Within a round, the distribution is linear between the recorded quantiles.

    Returns:
        ``POINTS`` norms per round, in one row, [rounds · POINTS].
    """
    levels = np.linspace(0, 1, POINTS)
    return np.concatenate(
        [np.interp(levels, LEVELS, record.norm_quantiles) / get_annealing(record, clip_bound) for record in records]
    )


def get_annealing(record: RoundRecord, clip_bound: float) -> float:
    """Returns A_t / A_0 of a round."""
    return record.metrics["clip_bound"] / clip_bound


def round_bound(value: float) -> float:
    """Rounds a bound to two digits."""
    return float(f"{value:.2g}")


def describe_share(share: float) -> str:
    """Returns a share of steps in words: none, all, or a percentage."""
    if share == 0:
        return "none"
    return "all" if share == 1 else f"{100 * share:.2g} %"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoundSensitivity:
    """How many of the recorded steps a clip bound would clip.

    Attributes:
        records: The rounds with recorded norms, of one run or of several seeds.
        clip_bound: The A_0 that they were trained with.
        norms: ‖v‖ of their steps before clipping, sorted and scaled to A_0.
    """

    records: tuple[RoundRecord, ...]
    clip_bound: float
    norms: npt.NDArray[np.float64]

    @classmethod
    def measure(cls, records: Sequence[RoundRecord]) -> Self | None:
        """Measures recorded rounds; None if none of them has its step norms, or A_0 is not known."""
        starts = [record for record in records if record.round_index == 0 and "clip_bound" in record.metrics]
        measured = tuple(record for record in records if record.norm_quantiles and "clip_bound" in record.metrics)
        if not starts or not measured:
            return None
        clip_bound = starts[0].metrics["clip_bound"]
        norms = np.sort(compute_scaled_norms(measured, clip_bound))
        return cls(records=measured, clip_bound=clip_bound, norms=norms)

    def compute_share(self, bound: float) -> float:
        """Computes the share of the steps that a bound A_0 would clip."""
        return float((self.norms > bound).mean())

    def find_bound(self, share: float) -> float:
        """Finds the bound A_0 that would clip a share of the steps."""
        return float(np.quantile(self.norms, 1 - share))
