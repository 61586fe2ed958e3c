"""Measures how much the metric degrades if one setting is chosen badly: FedNAR's claim as one number.

The best trial of a regularizer represents well-chosen settings. It is compared with the trials that share all of its
values but one, which is about 3 or 10 times higher or lower. For an annealing rate γ, 1 − γ is compared.

Source: Li et al., NeurIPS 2023.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fednar_ray.report.axes import ANNEAL, CLIP_BOUND, LOCAL_LR, REGULARIZER, WEIGHT_DECAY, is_number
from fednar_ray.tracking.searches import FAILED, SearchRecord, TrialRecord

FACTORS = (3, 10)
TOLERANCE = 1.15  # in a grid of 0.1, 0.3, 1, 3 the step from 0.3 to 1 is 3.33 times
SETTINGS = (CLIP_BOUND, WEIGHT_DECAY, LOCAL_LR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Degradation:
    """The degradation of one regularizer if one setting is off by a factor, in the worse direction."""

    regularizer: str
    key: str
    factor: int
    right: Any  # the value in the best trial of the regularizer
    wrong: Any | None  # the value in the worse one of the compared trials; None if none finished
    fall: float | None  # the change of the metric, positive if it got worse
    failed: int  # number of compared trials that failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """All degradations, in the order of regularizers, keys and factors."""

    falls: tuple[Degradation, ...]

    @property
    def regularizers(self) -> tuple[str, ...]:
        """The regularizers that have a best trial."""
        return tuple(dict.fromkeys(fall.regularizer for fall in self.falls))

    def average(self, regularizer: str, factor: int) -> float | None:
        """Averages the degradations over the settings; None if none is known."""
        known = [
            fall.fall
            for fall in self.falls
            if fall.regularizer == regularizer and fall.factor == factor and fall.fall is not None
        ]
        return float(np.mean(known)) if known else None

    @property
    def known(self) -> bool:
        """Whether any degradation is known."""
        return any(fall.fall is not None for fall in self.falls)


def compute_sensitivity(record: SearchRecord) -> Sensitivity:
    """Computes the degradations of each regularizer of a search, over its searched settings."""
    return Sensitivity(falls=tuple(_compute_degradations(record)))


def group_by_regularizer(record: SearchRecord, trials: Sequence[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """Groups trials by regularizer, in the order of the search space; one group if it was not searched."""
    own = str(record.settings.get(REGULARIZER, ""))
    listed = [str(value) for values in record.space.get(REGULARIZER, {"": [own]}).values() for value in values]
    groups: dict[str, list[TrialRecord]] = {name: [] for name in listed}
    for trial in trials:
        groups.setdefault(str(trial.values.get(REGULARIZER, own)), []).append(trial)
    return {name: group for name, group in groups.items() if group}


def _compute_degradations(record: SearchRecord) -> Iterator[Degradation]:
    keys = [key for key in SETTINGS if key in record.space] + [key for key in record.space if key.endswith(ANNEAL)]
    everyone = group_by_regularizer(record, record.trials)
    for regularizer, finished in group_by_regularizer(record, record.finished).items():
        best = min(finished, key=lambda trial: record.compute_cost(trial.final))
        for key in keys:
            for factor in FACTORS:
                off = [trial for trial in finished if _is_off(trial, best, key, factor)]
                worst = max(off, key=lambda trial: record.compute_cost(trial.final), default=None)
                yield Degradation(
                    regularizer=regularizer,
                    key=key,
                    factor=factor,
                    right=best.values[key],
                    wrong=None if worst is None else worst.values[key],
                    fall=None if worst is None else record.compute_cost(worst.final) - record.compute_cost(best.final),
                    failed=sum(
                        trial.status == FAILED and _is_off(trial, best, key, factor) for trial in everyone[regularizer]
                    ),
                )


def _is_off(trial: TrialRecord, best: TrialRecord, key: str, factor: int) -> bool:
    """Returns whether a trial differs from the best only in ``key``, and by about ``factor`` there."""
    if any(trial.values.get(other) != value for other, value in best.values.items() if other != key):
        return False
    size, right = (_get_size(key, one.values.get(key)) for one in (trial, best))
    if size <= 0 or right <= 0:
        return False
    ratio = max(size / right, right / size)
    return factor / TOLERANCE <= ratio <= factor * TOLERANCE


def _get_size(key: str, value: Any) -> float:
    """Returns the quantity to compare: the value, or the distance from 1 of an annealing rate."""
    if not is_number(value):
        return 0.0
    return 1.0 - value if key.endswith(ANNEAL) else float(value)
