"""Computes how much the metric depends on each searched key, by functional ANOVA."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.report.axes import AxisScale, build_axis_scale, format_searched_value
from fednar_ray.report.fanova import compute_shares
from fednar_ray.report.heat_maps import LEAST_TRIALS
from fednar_ray.tracking.searches import SearchRecord

SEED = 0  # of the forest, so that a report is reproducible


def explain_missing_importances(record: SearchRecord) -> str | None:
    """Returns a sentence that says why importances cannot be computed; None if they can."""
    finished = record.finished
    if len(finished) < LEAST_TRIALS:
        return f"Importances need {LEAST_TRIALS} trials that ran all rounds; there are {len(finished)}."
    if len({trial.final for trial in finished}) < 2:
        return "All trials ended at the same value, so no key is more important than another."
    if not _list_varied_scales(record):
        return "No searched key took two values, so none can be more important than another."
    return None


def compute_importances(record: SearchRecord) -> dict[str, float]:
    """Computes the share of the metric's variance that each varied key explains, most important first.

    Returns:
        Key → share. Keys of which only one value was tried are left out.

    Source: Hutter et al., "An efficient approach for assessing hyperparameter importance", ICML 2014 (fANOVA).
    """
    trials = record.finished
    columns = {
        scale.key: _encode(scale, [_convert_param(scale, trial.values[scale.key]) for trial in trials])
        for scale in _list_varied_scales(record)
    }
    return compute_shares(columns, [trial.final for trial in trials], SEED)


def _list_varied_scales(record: SearchRecord) -> list[AxisScale]:
    scales = [build_axis_scale(record, key, record.finished) for key in record.space]
    return [
        scale
        for scale in scales
        if len({_convert_param(scale, trial.values[scale.key]) for trial in record.finished}) > 1
    ]


def _convert_param(scale: AxisScale, value: Any) -> str | float:
    return format_searched_value(value) if scale.categories else float(value)


def _encode(scale: AxisScale, values: Sequence[str | float]) -> npt.NDArray[np.float64]:
    """Returns a key's values as columns, [trials, columns]: one per category that was tried, or one in all."""
    if not scale.categories:
        return np.array(values, dtype=np.float64)[:, None]
    return np.array([[value == name for name in scale.categories if name in values] for value in values], np.float64)
