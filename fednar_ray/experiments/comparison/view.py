"""What a notebook shows of a comparison: a line, a frame and a chart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fednar_ray.config import CompareSettings
from fednar_ray.core.errors import BadInput
from fednar_ray.core.metric_names import format_metric_value
from fednar_ray.report.chart import Chart, Line
from fednar_ray.report.comparison_table import Outcome, Row, build_rows
from fednar_ray.report.run_plots import Variant, find_measure, get_curve


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        variant: Its weight decay and regularizer.
        seed: Its seed.
        directory: Its run directory.
        outcome: Its rounds and the names of its alerts.
    """

    variant: Variant
    seed: int
    directory: Path
    outcome: Outcome


def summarize_comparison(rows: Sequence[Row], settings: CompareSettings) -> str:
    """Summarizes a comparison in one line: the variant with the best mean, and how it differs from the baseline."""
    seeds = f"{settings.seeds} seed{'s' if settings.seeds > 1 else ''}"
    text = f"comparison of {len(rows)} variants, {seeds}"
    finite = [row for row in rows if np.isfinite(row.final).all()]
    if not finite:
        return text
    best = max(finite, key=lambda row: float(row.final.mean()) * (1 if row.measure.higher_is_better else -1))
    cells, value = best.format_cells(), format_metric_value(best.measure.name, float(best.final.mean()))
    against = "" if best.difference is None else f", difference to {settings.regularizers[0]} {cells['difference']}"
    return f"{text}; best: {_name(best.variant)}, with {best.measure.name} {value}{against}"


def build_comparison_frame(runs: Sequence[ComparedRun], settings: CompareSettings, primary: str | None) -> pd.DataFrame:
    """Returns one row per run. A run's numbers are those of a table with this run's seed alone."""
    by_seed: dict[int, dict[Variant, ComparedRun]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, {})[run.variant] = run
    return pd.DataFrame([cell for group in by_seed.values() for cell in _iter_cells(group, settings, primary)])


def _iter_cells(
    group: dict[Variant, ComparedRun], settings: CompareSettings, primary: str | None
) -> Iterator[dict[str, Any]]:
    rows = build_rows({variant: [run.outcome] for variant, run in group.items()}, settings, primary)
    for row, run in zip(rows, group.values(), strict=True):
        yield {
            "run": run.directory.name,
            f"final_{row.measure.name}": float(row.final[0]),
            "difference": row.difference,
            "regularizer": run.variant.regularizer,
            "weight_decay": run.variant.weight_decay,
            "seed": run.seed,
            "rounds_to_target": row.rounds_to_target,
            "bytes_to_target": row.bytes_to_target,
            "clip_fraction": row.clip_fraction,
            "client_seconds": row.client_seconds,
            "wall_seconds": row.wall_seconds,
            "alerts": ", ".join(row.alerts),
        }


def build_comparison_chart(
    runs: Sequence[ComparedRun], name: str, primary: str | None = None, metric: str | None = None
) -> Chart:
    """Builds the chart of a metric over rounds; None: the primary metric on the test set.

    Raises:
        BadInput: No round has the metric.
    """
    records = [record for run in runs for record in run.outcome.history]
    measure = find_measure(records, primary)
    shown = metric or measure.metric
    if metric is not None and not any(metric in record.metrics for record in records):
        known = ", ".join(dict.fromkeys(key for record in records for key in record.metrics))
        raise BadInput(f"metric: {metric!r}: no round of {name} has it; use one of {known}")
    curves: dict[Variant, list[Any]] = {}
    for run in runs:
        curves.setdefault(run.variant, []).append(get_curve(run.outcome.history, shown))
    lines = tuple(_build_line(_name(variant), np.stack(each)) for variant, each in curves.items())
    return Chart(title=name, x_label="round", y_label=shown.replace("_", " "), lines=lines)


def _build_line(label: str, values: Any) -> Line:
    """Builds the mean of curves [seeds, rounds] with their range."""
    rounds = np.arange(values.shape[1], dtype=np.float64)
    band = (values.min(axis=0), values.max(axis=0)) if len(values) > 1 else None
    return Line(label=label, x=rounds, y=values.mean(axis=0), band=band)


def _name(variant: Variant) -> str:
    return f"{variant.regularizer}, λ = {variant.weight_decay:g}"
