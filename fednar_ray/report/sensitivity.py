"""How far the metric falls where one setting is off: FedNAR's claim (Li et al., NeurIPS 2023) as one number.

A regularizer's best trial stands for well-chosen settings.  Off by 3 or 10 are the trials that share all of its values
but one, and have that one about 3 or 10 times higher or lower; of an annealing rate γ it is 1 − γ that is off.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fednar_ray.report.axes import ANNEAL, CLIP_BOUND, LOCAL_LR, REGULARIZER, WEIGHT_DECAY, is_number
from fednar_ray.tracking.searches import FAILED, SearchRecord, TrialRecord

FACTORS = (3, 10)
TOLERANCE = 1.15  # grids go 0.1, 0.3, 1, 3: from 0.3 to 1 is 3.33 times
SETTINGS = (CLIP_BOUND, WEIGHT_DECAY, LOCAL_LR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Degradation:
    """What one setting costs a regularizer when it is off by a factor, in the worse direction."""

    regularizer: str
    key: str
    factor: int
    right: Any  # the value of the regularizer's best trial
    wrong: Any | None  # the value of the worse one of the trials that are off; None where none finished
    fall: float | None  # of the metric, positive where it got worse
    failed: int  # trials that are off by so much and failed, so that their fall is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """All falls, in the order of regularizers, keys and factors."""

    falls: tuple[Degradation, ...]

    @property
    def regularizers(self) -> tuple[str, ...]:
        """Those that have a best trial."""
        return tuple(dict.fromkeys(fall.regularizer for fall in self.falls))

    def mean(self, regularizer: str, factor: int) -> float | None:
        """The mean fall over the settings for which it is known."""
        known = [
            fall.fall
            for fall in self.falls
            if fall.regularizer == regularizer and fall.factor == factor and fall.fall is not None
        ]
        return float(np.mean(known)) if known else None

    @property
    def known(self) -> bool:
        """Whether there is any number at all."""
        return any(fall.fall is not None for fall in self.falls)


def sensitivity(record: SearchRecord) -> Sensitivity:
    """The falls of each regularizer of a search, over its searched settings."""
    return Sensitivity(falls=tuple(_compute_degradations(record)))


def group_by_regularizer(record: SearchRecord, trials: Sequence[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """Trials by regularizer, in the order of the search space, or else all under the experiment's own."""
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
        best = min(finished, key=lambda trial: record.cost(trial.final))
        for key in keys:
            for factor in FACTORS:
                off = [trial for trial in finished if _is_off(trial, best, key, factor)]
                worst = max(off, key=lambda trial: record.cost(trial.final), default=None)
                yield Degradation(
                    regularizer=regularizer,
                    key=key,
                    factor=factor,
                    right=best.values[key],
                    wrong=None if worst is None else worst.values[key],
                    fall=None if worst is None else record.cost(worst.final) - record.cost(best.final),
                    failed=sum(
                        trial.status == FAILED and _is_off(trial, best, key, factor) for trial in everyone[regularizer]
                    ),
                )


def _is_off(trial: TrialRecord, best: TrialRecord, key: str, factor: int) -> bool:
    """Whether a trial differs from the best in that key alone, and there by about the factor."""
    if any(trial.values.get(other) != value for other, value in best.values.items() if other != key):
        return False
    size, right = (_size(key, one.values.get(key)) for one in (trial, best))
    if size <= 0 or right <= 0:
        return False
    ratio = max(size / right, right / size)
    return factor / TOLERANCE <= ratio <= factor * TOLERANCE


def _size(key: str, value: Any) -> float:
    """What is multiplied: the value, or of an annealing rate its distance from 1."""
    if not is_number(value):
        return 0.0
    return 1.0 - value if key.endswith(ANNEAL) else float(value)
