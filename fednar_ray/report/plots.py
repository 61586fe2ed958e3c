"""Draws how examples are distributed, and the curves of runs and comparisons, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from fednar_ray.core.client_names import ClientNames, are_named, name_client
from fednar_ray.core.reports import RoundRecord

COLORS = {"fednar": "#d1495b", "decoupled": "#30638e", "coupled": "#6a994e", "none": "#7f7f7f"}
STYLES = {"fednar": "-", "decoupled": "--", "coupled": "-.", "none": ":"}  # curves that coincide stay visible
WIDE = 20.0  # numbers whose ratio is larger are drawn on a logarithmic axis
LEAST_SPAN = 0.1  # of the largest number on a linear axis, so that rounding errors do not look like differences
LINES = ("-", "--")  # for two lines in one panel, so that both are visible where they coincide
BARS = "#30638e"
BOUNDED, BOUND = "#30638e", "#d1495b"  # ‖v‖, and A
MOST_LABELS = 8  # with more labels the axis chooses
MOST_NAMES, NAME_LENGTH = 30, 20  # with more clients names would overlap; longer names are cut
ROW_LENGTH = 40  # letters that fit below an axis in one row; more are slanted
CURVES_MARGINS = {"left": 0.09, "right": 0.98, "bottom": 0.09, "top": 0.94, "hspace": 0.32, "wspace": 0.24}
"""Fixed, since each run draws its curves, and a layout that measures all texts would take as long as the drawing."""
MOST_CLIENTS = 200  # more rows would be too thin to see


def draw_federation(
    counts: npt.NDArray[np.int64],
    path: Path,
    names: ClientNames = (),
    *,
    class_names: Sequence[str] | None = None,
    labels: Sequence[Sequence[float]] | None = None,
) -> Path:
    """Draws how many examples each client has, and their labels.

    The upper panel shows the sizes, largest first, and the lower panel the labels in the same order: the shares of the
    classes, or the quartiles of numbers. There is no lower panel for numbers that stay with the clients.

    Args:
        counts: The number of training examples by client and class, [N, classes]; in regression [N, 1].
        path: The PNG file.
        names: The clients' names.
        class_names: The names of the classes; None: their numbers.
        labels: In regression, the least label, the quartiles and the largest label of each client, [N, 5].
    """
    sizes = counts.sum(axis=1)
    order = np.argsort(-sizes, kind="stable")
    if counts.shape[1] == 1 and labels is None:
        figure = Figure(figsize=(9, 3), layout="constrained")
        above = below = figure.subplots()
    else:
        figure = Figure(figsize=(9, 6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.5])
    above.bar(
        np.arange(len(sizes)), sizes[order], width=1.0, color=BARS, edgecolor="white", linewidth=_choose_gap(sizes)
    )
    above.set(ylabel="examples", ylim=(0, None), xlim=(-0.5, len(sizes) - 0.5))
    above.set_title("How much each client has" + ("" if above is below else ", and of what"))
    if labels is not None:
        _draw_quartiles(below, np.asarray(labels)[order])
    elif above is not below:
        image = _draw_classes(below, counts[order] / np.maximum(sizes[order, None], 1), class_names)
        figure.colorbar(image, ax=below, label="share of the client's examples")
    below.set(xlabel="clients, largest first")
    _name_ticks(below.xaxis, order.tolist(), names)
    figure.savefig(path, dpi=100)
    return path


def _choose_gap(sizes: npt.NDArray[np.int64]) -> float:
    """Returns the width of the gaps between bars, in points; many bars have none."""
    return 1.0 if len(sizes) <= MOST_NAMES else 0.0


def _draw_classes(axes: Axes, shares: npt.NDArray[np.float64], names: Sequence[str] | None) -> AxesImage:
    """Draws the share of each class, [N, classes], with one tick per class if they are few."""
    image = axes.imshow(shares.T, aspect="auto", cmap="Blues", interpolation="nearest", vmin=0, vmax=1)
    classes = shares.shape[1]
    axes.set(ylabel="class")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if classes <= MOST_NAMES:
        axes.set_yticks(range(classes), list(map(_shorten, names or map(str, range(classes)))))
    return image


def _draw_quartiles(axes: Axes, quantiles: npt.NDArray[np.float64]) -> None:
    """Draws per client a line from the least to the largest label, a box between the quartiles, and the median."""
    least, lower, median, upper, most = quantiles.T
    places = np.arange(len(quantiles))
    axes.vlines(places, least, most, color=BARS, linewidth=1, label="least to most")
    axes.bar(places, upper - lower, bottom=lower, width=0.6, color=BARS, alpha=0.35, label="quartiles")
    axes.hlines(median, places - 0.3, places + 0.3, color=BOUND, linewidth=2, label="median")
    axes.set(ylabel="label")
    axes.legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.12), fontsize="small")


def _shorten(name: str) -> str:
    """Cuts a long name, and writes it so that a dollar sign starts no formula."""
    cut = name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"
    return cut.replace("$", r"\$")


def draw_curves(history: Sequence[RoundRecord], path: Path, measure: str | None = None) -> Path:
    """Draws a metric, training loss, clipped steps and effective weight decay over the rounds of a run.

    ``measure`` is the metric's name without its split. None: RMSE if the rounds have it, else accuracy.
    """
    figure = Figure(figsize=(9, 6))
    figure.subplots_adjust(**CURVES_MARGINS)
    if measure is None:
        measure = "rmse" if any("test_rmse" in record.metrics for record in history) else "accuracy"
    panels = {
        measure.replace("_", " "): (f"test_{measure}", f"validation_{measure}"),
        "training loss": ("train_loss",),
        "share of clipped steps": ("clip_fraction",),
        "weight decay": ("effective_weight_decay", "weight_decay"),
    }
    for axes, (title, names) in zip(figure.subplots(2, 2, sharex=True).flat, panels.items(), strict=True):
        for name, style in zip(names, LINES, strict=False):
            points = [(record.round_index + 1, record.metrics[name]) for record in history if name in record.metrics]
            if points:
                label, marker = name.replace("_", " "), choose_marker(len(points))
                axes.plot(*zip(*points, strict=True), label=label, marker=marker, linestyle=style)
        axes.set(title=title, xlabel="round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        widen(axes)
        axes.grid(alpha=0.3)
        if len(names) > 1 and axes.lines:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=100)
    return path


def _name_ticks(axis: Axis, client_ids: Sequence[int], names: ClientNames) -> None:
    """Writes the clients' names at an axis if they have names and are few; position k is client ``client_ids[k]``."""
    if not are_named(names) or len(client_ids) > MOST_NAMES:
        return
    written = [name_client(client_id, names) for client_id in client_ids]
    labels = list(map(_shorten, written))
    axis.set_ticks(range(len(labels)), labels)
    if isinstance(axis, XAxis) and sum(map(len, labels)) > ROW_LENGTH:
        for label in axis.get_ticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")


def widen(axes: Axes) -> None:
    """Widens a linear axis to at least a tenth of its largest number, so that rounding errors are not visible."""
    low, high = axes.dataLim.intervaly
    least = LEAST_SPAN * max(abs(low), abs(high))
    if np.isfinite(least) and high - low < least:
        middle = (low + high) / 2
        axes.set_ylim(middle - 0.55 * least, middle + 0.55 * least)


def choose_marker(points: int) -> str | None:
    """Returns the marker of a line: a dot if it has a single point, which would be invisible otherwise."""
    return "o" if points == 1 else None


Curves = Mapping[str, npt.NDArray[np.float64]]
"""The curves of each regularizer, [seeds, rounds]; NaN if a round was not evaluated."""


def draw_comparison(
    values: Mapping[float, Curves], decay: Mapping[float, Curves], path: Path, *, measure: str = "test accuracy"
) -> Path:
    """Draws the measure (above) and effective weight decay (below) over rounds, one column per weight decay.

    Lines are means over seeds, bands the range. ``measure`` names the values; the axis of an accuracy is 0 to 1,
    that of another measure starts at 0.
    """
    figure = Figure(figsize=(max(5.5, 5 * len(values)), 7), layout="constrained")
    grid = figure.subplots(2, len(values), sharex=True, squeeze=False)
    accuracy = measure.endswith("accuracy")
    for column, weight_decay in enumerate(values):
        _draw_bands(grid[0, column], values[weight_decay])
        _draw_bands(grid[1, column], decay[weight_decay])
        grid[0, column].set(title=f"weight decay {weight_decay:g}", ylabel=measure)
        grid[0, column].set_ylim(bottom=0, top=1 if accuracy else None)
        grid[1, column].set(xlabel="round", ylabel="effective weight decay")
        grid[1, column].set_ylim(bottom=0)
        grid[1, column].xaxis.set_major_locator(MaxNLocator(integer=True))
        grid[0, column].legend(frameon=False, loc="lower right" if accuracy else "best")
    figure.savefig(path, dpi=110)
    return path


def _draw_bands(axes: Axes, curves: Curves) -> None:
    for name, runs in curves.items():
        draw_band(axes, name, runs, label=name)
    axes.grid(alpha=0.3)


def draw_band(axes: Axes, regularizer: str, runs: npt.NDArray[np.float64], *, label: str) -> None:
    """Draws the mean of curves over seeds as a line, and their range as a band.

    Args:
        axes: Where to draw.
        regularizer: Gives the line its color and style.
        runs: One curve per seed, [seeds, rounds]. Rounds in which one of them is NaN are left out.
        label: The name in the legend.
    """
    indices = np.flatnonzero(~np.isnan(runs).any(axis=0))
    rounds, values, color = indices + 1, runs[:, indices], COLORS[regularizer]
    style: Any = {"color": color, "linestyle": STYLES[regularizer], "marker": choose_marker(len(rounds))}
    axes.plot(rounds, values.mean(axis=0), label=label, **style)
    axes.fill_between(rounds, values.min(axis=0), values.max(axis=0), color=color, alpha=0.18, linewidth=0)


ByDecay = Mapping[str, Mapping[float, Sequence[float]]]
"""Final values, one per seed, by regularizer and weight decay λ_0."""


def draw_by_decay(finals: ByDecay, path: Path, *, measure: str = "test accuracy") -> Path:
    """Draws final values over weight decay, one line per regularizer: how much each tolerates a badly chosen λ_0.

    Points are means over seeds, bars their standard deviations; the axis of decays is logarithmic, with λ_0 = 0 at its
    left end.  ``measure`` names what the numbers are.
    """
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, by_decay in finals.items():
        decays = sorted(by_decay)
        means = [float(np.mean(by_decay[decay])) for decay in decays]
        spreads = [float(np.std(by_decay[decay], ddof=1)) if len(by_decay[decay]) > 1 else 0.0 for decay in decays]
        style: Any = {"color": COLORS[name], "linestyle": STYLES[name], "marker": "o", "capsize": 4}
        axes.errorbar(decays, means, yerr=spreads, label=name, **style)
    format_decay_axis(axes, sorted({decay for by_decay in finals.values() for decay in by_decay}))
    axes.set(xlabel="weight decay λ", ylabel=measure, title=f"Final {measure} against weight decay")
    widen(axes)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    return path


def format_decay_axis(axes: Axes, decays: Sequence[float]) -> None:
    """Makes the axis logarithmic, with zero at its left end, and ticks at the decays if they are few."""
    positive = [decay for decay in decays if decay > 0]
    if not positive:
        return
    if len(positive) < len(decays):
        axes.set_xscale("symlog", linthresh=positive[0], linscale=1)
    else:
        axes.set_xscale("log")
    if len(decays) <= MOST_LABELS:
        axes.set_xticks(decays, [f"{decay:g}" for decay in decays])
        axes.minorticks_off()
