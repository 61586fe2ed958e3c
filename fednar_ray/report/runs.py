"""Pictures of runs and comparisons, from their records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fednar_ray.figures import Curves, draw_accuracy_by_decay, draw_comparison, draw_curves, draw_step_norms
from fednar_ray.messages import RoundRecord


class Variant(NamedTuple):
    """One row of a comparison."""

    weight_decay: float
    regularizer: str


Records = Sequence[RoundRecord]
CHART = "comparison.png"
OF_VARIANTS = ("test_accuracy", "effective_weight_decay")
"""The metrics that a comparison's pictures are made of."""


def draw_run(records: Records, directory: Path) -> tuple[Path, ...]:
    """The curves of a run, and the norms that its bound meets, where they are recorded."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = [draw_curves(records, directory / "curves.png")]
    if any("step_norm" in record.metrics for record in records):
        drawn.append(draw_step_norms(records, directory / "step_norms.png"))
    return tuple(drawn)


def draw_variants(runs: Mapping[Variant, Sequence[Records]], final_rounds: int, directory: Path) -> tuple[Path, ...]:
    """The curves of a comparison; where it has several weight decays, also accuracy against weight decay.

    ``runs``: a run a seed of each variant; ``final_rounds``: over how many a run's final accuracy is the mean.
    """
    directory.mkdir(parents=True, exist_ok=True)
    accuracy, decay = (_by_decay(runs, name) for name in OF_VARIANTS)
    drawn = [draw_comparison(accuracy, decay, directory / CHART)]
    if len(accuracy) > 1:
        finals: dict[str, dict[float, list[float]]] = {}
        for variant, seeds in runs.items():
            of_seeds = [final_accuracy(records, final_rounds) for records in seeds]
            finals.setdefault(variant.regularizer, {})[variant.weight_decay] = of_seeds
        drawn.append(draw_accuracy_by_decay(finals, directory / "accuracy_by_decay.png"))
    return tuple(drawn)


def curve(records: Records, metric: str) -> npt.NDArray[np.float64]:
    """A metric by round; NaN in rounds that have it not, as those without an evaluation."""
    values = np.full(records[-1].round_index + 1 if records else 0, np.nan)
    for record in records:
        values[record.round_index] = record.metrics.get(metric, np.nan)
    return values


def final_accuracy(records: Records, rounds: int) -> float:
    """Mean test accuracy of the last rounds; NaN where none of them was evaluated."""
    values = curve(records, "test_accuracy")[-rounds:]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


def _by_decay(runs: Mapping[Variant, Sequence[Records]], metric: str) -> dict[float, Curves]:
    curves: dict[float, dict[str, npt.NDArray[np.float64]]] = {}
    for variant, seeds in runs.items():
        curves.setdefault(variant.weight_decay, {})[variant.regularizer] = _stacked(
            [curve(records, metric) for records in seeds]
        )
    return dict(curves)


def _stacked(curves: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """[seeds, rounds]; what a shorter one lacks is NaN."""
    stacked = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, values in zip(stacked, curves, strict=True):
        row[: len(values)] = values
    return stacked
