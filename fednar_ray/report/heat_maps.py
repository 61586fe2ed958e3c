"""Heat maps of the metric over the clip bound A and one other key. They show how wide the good region is."""

from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from fednar_ray.report.axes import (
    ANNEAL,
    CLIP_BOUND,
    WEIGHT_DECAY,
    AxisScale,
    ColorScale,
    build_axis_scale,
    build_color_scale,
    build_label,
    format_for_plot,
    format_metric,
    format_searched_value,
    name_metric,
)
from fednar_ray.report.sensitivity import group_by_regularizer
from fednar_ray.tracking.searches import SearchRecord, TrialRecord

Means = npt.NDArray[np.float64]
"""Means of the metric, [y, x]; NaN in a cell without a trial."""

LISTS = ("grid", "choice")
MOST_BINS = 8
LEAST_TRIALS = 9  # a map of fewer trials would show gaps, not a region


def list_pairs(record: SearchRecord) -> list[tuple[str, str]]:
    """Returns the pairs of searched keys to draw: A with each annealing rate, and with the weight decay."""
    if CLIP_BOUND not in record.space:
        return []
    return [(CLIP_BOUND, key) for key in record.space if key.endswith(ANNEAL) or key == WEIGHT_DECAY]


def has_enough_trials(record: SearchRecord) -> bool:
    """Returns whether enough trials ran all rounds for a map over two settings."""
    return len(record.finished) >= LEAST_TRIALS


def draw_heat_map(record: SearchRecord, x: str, y: str) -> Figure:
    """Draws the metric over two keys, one panel per regularizer, from the trials that ran all rounds.

    The panels show cells if both keys have lists of values, else points. At least one trial must have run all rounds.
    """
    listed = all(next(iter(record.space[key])) in LISTS for key in (x, y))
    groups = group_by_regularizer(record, record.finished)
    columns = len({trial.values[x] for trial in record.finished}) if listed else 0
    width = max(3.6, 0.6 * columns + 0.6)
    figure = Figure(figsize=(1.9 + width * len(groups), 4.4), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    colors = (_draw_cells if listed else _draw_points)(panels, record, x, y)
    for axes, name in zip(panels, groups, strict=True):
        axes.set(xlabel=build_label(x), title=format_for_plot(name) if len(groups) > 1 else "")
    panels[0].set_ylabel(build_label(y))
    bar = figure.colorbar(ScalarMappable(colors.norm, colors.map), ax=list(panels), extend=colors.extend)
    bar.set_label(name_metric(record))
    return figure


def compute_cell_means(trials: Sequence[TrialRecord], x: str, y: str, xs: Sequence[Any], ys: Sequence[Any]) -> Means:
    """Averages the trials of each cell, over all their other keys. Returns [len(ys), len(xs)]."""
    totals, counts = np.zeros((len(ys), len(xs))), np.zeros((len(ys), len(xs)))
    for trial in trials:
        cell = ys.index(trial.values[y]), xs.index(trial.values[x])
        totals[cell] += trial.final
        counts[cell] += 1
    return _divide(totals, counts)


def compute_binned_means(
    places: Means, values: npt.NDArray[np.float64], edges: Sequence[npt.NDArray[np.float64]]
) -> Means:
    """Averages ``values`` [n] at ``places`` [n, 2] (x, y) in each bin between the edges of x and those of y."""
    counts = np.histogram2d(places[:, 1], places[:, 0], bins=[edges[1], edges[0]])[0]
    totals = np.histogram2d(places[:, 1], places[:, 0], bins=[edges[1], edges[0]], weights=values)[0]
    return _divide(totals, counts)


def _divide(totals: Means, counts: Means) -> Means:
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def _draw_cells(panels: Sequence[Axes], record: SearchRecord, x: str, y: str) -> ColorScale:
    xs, ys = (sorted({trial.values[key] for trial in record.finished}) for key in (x, y))
    groups = group_by_regularizer(record, record.finished).values()
    grids = [compute_cell_means(trials, x, y, xs, ys) for trials in groups]
    shown = np.stack(grids)
    colors = build_color_scale(record, shown[~np.isnan(shown)].tolist())
    for axes, means in zip(panels, grids, strict=True):
        axes.imshow(means, origin="lower", aspect="auto", cmap=colors.map, norm=colors.norm)
        axes.set_xticks(range(len(xs)), [format_searched_value(value) for value in xs])
        axes.set_yticks(range(len(ys)), [format_searched_value(value) for value in ys])
        for row, column in np.argwhere(~np.isnan(means)):
            written = axes.text(column, row, format_metric(means[row, column]), ha="center", va="center", color="white")
            written.set(fontsize=9, path_effects=[withStroke(linewidth=2, foreground="#00000099")])
    return colors


def _draw_points(panels: Sequence[Axes], record: SearchRecord, x: str, y: str) -> ColorScale:
    finished = record.finished
    scales = [build_axis_scale(record, key, finished) for key in (x, y)]
    bins = min(MOST_BINS, max(1, isqrt(len(finished) // 2)))
    edges = [_compute_edges(scale, bins) for scale in scales]
    colors = build_color_scale(record, [trial.final for trial in finished])
    for axes, trials in zip(panels, group_by_regularizer(record, finished).values(), strict=True):
        places = np.array([[scale.compute_coordinate(trial.values[scale.key]) for scale in scales] for trial in trials])
        values = np.array([trial.final for trial in trials])
        means = compute_binned_means(places, values, edges)
        axes.pcolormesh(*edges, means, cmap=colors.map, norm=colors.norm, alpha=0.55)
        axes.scatter(
            places[:, 0],
            places[:, 1],
            c=values,
            cmap=colors.map,
            norm=colors.norm,
            s=42,
            edgecolors="white",
            zorder=2,
        )
        if record.best_trial in trials:
            at = [scale.compute_coordinate(record.best_trial.values[scale.key]) for scale in scales]
            axes.scatter(at[0], at[1], marker="*", s=260, color="#d1495b", edgecolors="white", zorder=3)
        for axis, scale in zip((axes.xaxis, axes.yaxis), scales, strict=True):
            axis.set_ticks([measure for measure, _ in scale.list_ticks()], [name for _, name in scale.list_ticks()])
        axes.set(xlim=(edges[0][0], edges[0][-1]), ylim=(edges[1][0], edges[1][-1]))
    return colors


def _compute_edges(scale: AxisScale, bins: int) -> npt.NDArray[np.float64]:
    """Returns the edges of bins, a little wider than the values so that no point lies on the frame."""
    margin = 0.04 * (scale.high - scale.low) or 0.5
    return np.linspace(scale.low - margin, scale.high + margin, bins + 1)
