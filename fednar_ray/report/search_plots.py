"""Plots of a search: all trials in parallel coordinates, importances, and the best trial against the baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fednar_ray.report.axes import (
    AxisScale,
    build_axis_scale,
    build_color_scale,
    build_label,
    format_metric,
    name_metric,
)
from fednar_ray.report.plots import widen
from fednar_ray.report.svg import FAINT, PAGE
from fednar_ray.tracking.searches import Curve, SearchRecord, TrialRecord

BEST, BASELINE, OTHERS = "#d1495b", "#30638e", "#9a9a9a"


def draw_parallel(record: SearchRecord) -> Figure:
    """Draws one line per trial through its values and its result; lines of finished trials are colored by the result.

    At least one trial must have run all rounds.
    """
    finished, best = record.finished, record.best_trial
    shown = [trial for trial in record.trials if trial.value is not None]
    scales = [build_axis_scale(record, key, shown) for key in record.space]
    ends = sorted((min(trial.final for trial in shown), max(trial.final for trial in shown)))
    result = AxisScale(key=record.metric, log=False, categories=(), low=ends[0], high=ends[1])
    colors = build_color_scale(record, [trial.final for trial in finished])
    figure = Figure(figsize=(max(6.5, 1.55 * len(scales) + 3.2), 4.8), layout="constrained")
    axes = figure.subplots()

    def line(trial: TrialRecord) -> list[float]:
        return [
            *(scale.compute_position(trial.values[scale.key]) for scale in scales),
            result.compute_position(trial.final),
        ]

    stopped = [trial for trial in shown if trial not in finished]
    places = range(len(scales) + 1)
    if stopped:
        name = f"{len(stopped)} trials that did not run all rounds"
        _draw_lines(axes, [(places, line(trial)) for trial in stopped], colors=OTHERS, lw=0.7, alpha=0.5, label=name)
    palette = colormaps[colors.map]
    last = sorted(finished, key=lambda trial: -record.compute_cost(trial.final))
    shades = [palette(colors.norm(trial.final)) for trial in last]
    _draw_lines(axes, [(places, line(trial)) for trial in last], colors=shades, lw=1.3, alpha=0.8)
    if best is not None:
        axes.plot(line(best), color=BEST, linewidth=2.8, marker="o", label=f"the best, {best.name}")
    names = [build_label(scale.key).replace(" ", "\n", 1) for scale in scales] + [
        name_metric(record).replace(" ", "\n", 1)
    ]
    _draw_axes(axes, [*scales, result], names)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, frameon=False)
    figure.colorbar(
        ScalarMappable(colors.norm, palette), ax=axes, label=name_metric(record), extend=colors.extend, pad=0.02
    )
    return figure


def _draw_axes(axes: Axes, scales: list[AxisScale], names: list[str]) -> None:
    """Draws a vertical axis with ticks for each scale, and the names above them."""
    axes.set(xlim=(-0.25, len(scales) - 0.55), ylim=(-0.06, 1.06), yticks=[])
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0)
    axes.set_xticks(range(len(scales)), names, fontsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)
    behind = {"boxstyle": "round,pad=0.12", "facecolor": PAGE, "edgecolor": "none", "alpha": 0.75}
    for place, scale in enumerate(scales):
        axes.plot([place, place], [-0.03, 1.03], color=FAINT, linewidth=1, zorder=3)
        for measure, name in scale.list_ticks():
            height = scale.compute_share(measure)
            axes.plot([place, place + 0.03], [height, height], color=FAINT, linewidth=1, zorder=3)
            axes.text(place + 0.05, height, name, fontsize=8.5, va="center", bbox=behind, zorder=4)


def draw_importances(shares: Mapping[str, float]) -> Figure:
    """Draws the shares that ``compute_importances`` returns as bars, the most important key on top."""
    figure = Figure(figsize=(7, 1.3 + 0.42 * len(shares)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(shares))[::-1]
    bars = axes.barh(places, list(shares.values()), color=BASELINE, height=0.62)
    axes.bar_label(bars, [f"{100 * share:.0f} %" for share in shares.values()], padding=4)
    axes.set_yticks(places, [build_label(key) for key in shares])
    axes.set(xlim=(0, 1.12 * max(shares.values())), xlabel="share of the variance between trials that it explains")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def draw_best_and_baseline(record: SearchRecord) -> Figure:
    """Draws the metric over rounds: the best trial and the baseline, in front of all trials."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    if record.trials:
        histories = [_split_history(trial.history) for trial in record.trials if trial.history]
        _draw_lines(axes, histories, colors=OTHERS, lw=0.8, alpha=0.45, label=f"{len(record.trials)} trials")
        single = [(x[0], y[0]) for x, y in histories if len(x) == 1]
        if single:
            axes.plot(*zip(*single, strict=True), color=OTHERS, marker=".", linestyle="none")
    if record.baseline is not None:
        _draw_curve(axes, record, record.baseline, "baseline", BASELINE)
    if record.best is not None:
        _draw_curve(axes, record, record.best, "best", BEST)
    elif record.best_trial is not None:
        axes.plot(*_split_history(record.best_trial.history), color=BEST, linewidth=2.2, label=record.best_trial.name)
    axes.set(xlabel="round", ylabel=name_metric(record))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    widen(axes)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="best")
    return figure


def _draw_lines(axes: Axes, lines: Sequence[tuple[Sequence[float], Sequence[float]]], **style: Any) -> None:
    """Draws many lines, x and y each, as one collection: a layout measures every line that is drawn alone."""
    axes.add_collection(LineCollection([list(zip(x, y, strict=True)) for x, y in lines], **style))
    axes.autoscale_view()


def _draw_curve(axes: Axes, record: SearchRecord, curve: Curve, name: str, color: str) -> None:
    split = "validation" if record.metric.startswith("validation_") else name_metric(record)
    for history, of, style in ((curve.history, split, "-"), (curve.test_history, "test", "--")):
        if history:
            ending = f"{name}, {of}: {format_metric(history[-1][1])}"
            marker = "o" if len(history) == 1 else None
            axes.plot(*_split_history(history), style, color=color, linewidth=2.2, label=ending, marker=marker)


def _split_history(history: tuple[tuple[int, float], ...]) -> tuple[list[int], list[float]]:
    """Returns the rounds, counted from 1 as on every page, and the values."""
    return [point[0] + 1 for point in history], [point[1] for point in history]
