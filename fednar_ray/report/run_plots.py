"""Draws the plots of runs and comparisons from their records."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fednar_ray.core.metric_names import find_judged, is_higher_better
from fednar_ray.core.reports import RoundRecord
from fednar_ray.report.plots import Curves, draw_comparison


class Variant(NamedTuple):
    """One row of a comparison."""

    weight_decay: float
    regularizer: str


class Measure(NamedTuple):
    """The measure by which the runs of a comparison are compared."""

    name: str
    higher_is_better: bool

    @property
    def metric(self) -> str:
        """Its name in the metrics of a round."""
        return f"test_{self.name}"

    def reaches(self, values: npt.NDArray[np.float64], target: float) -> npt.NDArray[np.bool_]:
        """Returns which values are as good as the target; NaN never is."""
        return values >= target if self.higher_is_better else values <= target


def build_measure(name: str) -> Measure:
    """Builds the measure of a metric, by its name without the split."""
    return Measure(name, is_higher_better(name))


ACCURACY = build_measure("accuracy")

Records = Sequence[RoundRecord]
DECAY = "effective_weight_decay"


def find_measure(records: Iterable[RoundRecord], primary: str | None = None) -> Measure:
    """Returns the measure by which recorded rounds are judged, given the primary metric of the run, if it is known."""
    return build_measure(find_judged({name for record in records for name in record.metrics}, primary))


def draw_variants(runs: Mapping[Variant, Sequence[Records]], path: Path, measure: Measure) -> Path:
    """Draws the curves of a comparison, one run per seed for each variant, as a PNG file."""
    curves, decay = (_group_by_decay(runs, name) for name in (measure.metric, DECAY))
    return draw_comparison(curves, decay, path, measure=f"test {measure.name.replace('_', ' ')}")


def get_curve(records: Records, metric: str) -> npt.NDArray[np.float64]:
    """Returns a metric by round, [rounds]; NaN in rounds without it, such as those that were not evaluated."""
    values = np.full(records[-1].round_index + 1 if records else 0, np.nan)
    for record in records:
        values[record.round_index] = record.metrics.get(metric, np.nan)
    return values


def find_last(records: Records, metric: str) -> float | None:
    """Returns the last value of a metric; None if no round has it."""
    return next((record.metrics[metric] for record in reversed(records) if metric in record.metrics), None)


def compute_final_value(records: Records, rounds: int, measure: Measure = ACCURACY) -> float:
    """Averages the measure over the last ``rounds`` rounds, as far as they were evaluated.

    Returns:
        The mean; NaN if none of them was evaluated, or if one value is NaN.
    """
    last = [r for r in records if r.round_index > records[-1].round_index - rounds]
    values = [r.metrics[measure.metric] for r in last if measure.metric in r.metrics]
    return float(np.mean(values)) if values else np.nan


def _group_by_decay(runs: Mapping[Variant, Sequence[Records]], metric: str) -> dict[float, Curves]:
    curves: dict[float, dict[str, npt.NDArray[np.float64]]] = {}
    for variant, seeds in runs.items():
        curves.setdefault(variant.weight_decay, {})[variant.regularizer] = stack_curves(
            [get_curve(records, metric) for records in seeds]
        )
    return dict(curves)


def stack_curves(curves: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Stacks curves to [seeds, rounds]; NaN after the end of a shorter one, and for values that are not finite."""
    stacked = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, values in zip(stacked, curves, strict=True):
        row[: len(values)] = np.where(np.isfinite(values), values, np.nan)
    return stacked
