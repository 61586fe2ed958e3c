"""What a notebook shows of a run: a line, a table, a frame and a chart."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fednar_ray.core.errors import BadInput
from fednar_ray.core.metric_names import SPLITS, format_metric_value, is_higher_better
from fednar_ray.core.private_metrics import EPSILON, format_epsilon
from fednar_ray.core.reports import RoundRecord
from fednar_ray.report.chart import Chart, Line
from fednar_ray.report.run_plots import find_measure, get_curve
from fednar_ray.tracking.stop_record import Stop

SETTINGS = ("clip_fraction", "effective_weight_decay")  # none of their values is the best one


def build_run_frame(history: Sequence[RoundRecord]) -> pd.DataFrame:
    """Returns the metrics of a run: one row per round, counted from 0, and one column per metric."""
    rounds = pd.Index([record.round_index for record in history], name="round")
    return pd.DataFrame([dict(record.metrics) for record in history], index=rounds)


def build_run_chart(
    history: Sequence[RoundRecord], name: str, primary: str | None = None, metric: str | None = None
) -> Chart:
    """Builds the chart of a metric over rounds; None: the primary metric on all splits.

    Raises:
        BadInput: No round has the metric.
    """
    measure = find_measure(history, primary).name
    found = dict.fromkeys(key for record in history for key in record.metrics)
    shown = [f"{split}_{measure}" for split in SPLITS[::-1]] if metric is None else [metric]
    if metric is not None and metric not in found:
        raise BadInput(f"metric: {metric!r}: no round of {name} has it; use one of {', '.join(found)}")
    rounds = np.arange(len(history), dtype=np.float64)
    lines = [
        Line(label=each.replace("_", " "), x=rounds, y=get_curve(history, each)) for each in shown if each in found
    ]
    label = (metric or measure).replace("_", " ")
    return Chart(title=name, x_label="round", y_label=label, lines=tuple(lines))


def summarize_run(name: str, history: Sequence[RoundRecord], primary: str, stop: Stop | None) -> str:
    """Summarizes a run in one line: its length, and the primary metric at its end."""
    rounds = f"{name}: {len(history)} rounds" if stop is None else f"{name}: {stop}"
    measure = find_measure(history, primary).name
    values = [
        f"{split} {measure.replace('_', ' ')} {format_metric_value(measure, value)}"
        for split in SPLITS[::-1]
        if history and (value := history[-1].metrics.get(f"{split}_{measure}")) is not None
    ]
    spent = format_epsilon(history[-1].metrics) if history else ""
    return "; ".join(part for part in (rounds, ", ".join(values), spent) if part)


def tabulate_run(history: Sequence[RoundRecord], primary: str) -> list[tuple[str, ...]]:
    """Returns a small table: the main metrics in the first round, at their best, and in the last round."""
    measure = find_measure(history, primary).name
    rows: list[tuple[str, ...]] = [("metric", "first", "best", "last")]
    for name in (*(f"{split}_{measure}" for split in SPLITS[::-1]), "train_loss", *SETTINGS):
        values = get_curve(history, name)
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        best = values.max() if is_higher_better(name) else values.min()
        shown = "" if name in SETTINGS else _format(name, best)
        rows.append((name.replace("_", " "), _format(name, values[0]), shown, _format(name, values[-1])))
    spent = [format_epsilon(record.metrics) for record in history if EPSILON in record.metrics]
    return [*rows, ("privacy spent", spent[0], "", spent[-1])] if spent else rows


def _format(name: str, value: float) -> str:
    return format_metric_value(name.partition("_")[2], float(value))
