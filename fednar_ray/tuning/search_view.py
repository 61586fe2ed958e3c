"""What a notebook shows of a search: a line, a table, a frame and a chart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fednar_ray.core.errors import BadInput
from fednar_ray.report.chart import Chart, Line
from fednar_ray.tuning.trial_table import FINISHED, TrialEntry

LISTED_TRIALS = 5


def build_search_frame(trials: Sequence[TrialEntry], metric: str) -> pd.DataFrame:
    """Returns one row per trial: its name, result and searched values, then how it ended."""
    return pd.DataFrame(
        [
            {
                "trial": entry.name,
                metric: entry.value,
                **entry.values,
                "status": entry.status,
                "rounds": entry.rounds,
                "seconds": entry.seconds,
                "failure": entry.failure,
            }
            for entry in trials
        ]
    )


def build_search_chart(
    trials: Sequence[TrialEntry], name: str, metric: str, mode: str, key: str | None = None
) -> Chart:
    """Builds the chart of the trials' metric: over a searched key, or in their order with the best value so far.

    Raises:
        BadInput: The key was not searched, or its values are not numbers.
    """
    shown = sorted((e for e in trials if e.value is not None and e.failure is None), key=lambda entry: entry.name)
    values = np.array([entry.value for entry in shown], dtype=np.float64)
    label = metric.replace("_", " ")
    if key is not None:
        x = np.array([_get_number(entry, key) for entry in shown], dtype=np.float64)
        dots = Line(label="trials", x=x, y=values, dots=True)
        return Chart(title=name, x_label=key, y_label=label, lines=(dots,))
    order = np.array([int(entry.name.rpartition("-")[2]) for entry in shown], dtype=np.float64)
    complete = np.where([entry.status == FINISHED for entry in shown], values, np.nan)
    best = (np.fmax if mode == "max" else np.fmin).accumulate(complete) if len(complete) else complete
    lines = (Line(label="best so far", x=order, y=best), Line(label="trials", x=order, y=values, dots=True))
    return Chart(title=name, x_label="trial", y_label=label, lines=lines)


def _get_number(entry: TrialEntry, key: str) -> float:
    if key not in entry.values:
        raise BadInput(f"key: {key!r}: was not searched; use one of {', '.join(entry.values)}")
    value = entry.values[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"key: {key!r}: has the value {value!r}, which is not a number; use to_frame() instead")
    return float(value)


def summarize_search(trials: Sequence[TrialEntry], best: TrialEntry, metric: str) -> str:
    """Summarizes a search in one line: its best trial."""
    values = ", ".join(f"{key}={_format(value)}" for key, value in best.values.items())
    return f"search of {len(trials)} trials, best {metric.replace('_', ' ')} {best.value:.4g}: {values}"


def tabulate_search(trials: Sequence[TrialEntry], metric: str) -> list[tuple[str, ...]]:
    """Returns a small table: the best trials with their values."""
    keys = list(dict.fromkeys(key for entry in trials for key in entry.values))
    rows: list[tuple[str, ...]] = [("trial", "status", "rounds", metric.replace("_", " "), *keys)]
    for entry in trials[:LISTED_TRIALS]:
        value = "" if entry.value is None else _format(entry.value)
        cells = (_format(entry.values[key]) if key in entry.values else "" for key in keys)
        rows.append((entry.name, entry.status, str(entry.rounds), value, *cells))
    return rows


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
