"""Draws where a clip bound would bite: the norms of steps over rounds, and how many steps each bound would clip."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from fednar_ray.core.reports import RoundRecord
from fednar_ray.core.step_norms import LEVELS
from fednar_ray.report.clip_bounds import BoundSensitivity
from fednar_ray.report.plots import BOUND, BOUNDED, WIDE

BANDS = (
    (0.01, 0.99, 0.12, "98 % of the steps"),
    (0.1, 0.9, 0.18, "80 % of the steps"),
    (0.25, 0.75, 0.28, "half of the steps"),
)
"""Low level, high level, opacity and label of each band."""
GREEN = "#6a994e"


def draw_clip_bound(
    history: Sequence[RoundRecord], path: Path, *, low: float, high: float, anneal: Sequence[float]
) -> Path:
    """Draws quantiles of ‖v‖ over the rounds that have them, the run's A_t, and the recommended range.

    Args:
        history: The rounds, at least one of them with quantiles.
        path: The file to write.
        low: The recommended range of A_0 begins here,
        high: and ends here.
        anneal: A_t / A_0 of each round with quantiles.
    """
    shown = [record for record in history if record.norm_quantiles]
    rounds, factors = np.array([record.round_index for record in shown]) + 1, np.array(anneal)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    draw_norms(axes, shown)
    for value, style, label in ((high, "-.", "clips one in ten"), (low, ":", "clips half")):
        axes.plot(rounds, value * factors, color=GREEN, linestyle=style, label=f"A = {value:g} {label}")
    axes.set(xlabel="round", ylabel="‖v‖ of single steps", title="Where a clip bound A would bite")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=100)
    return path


def draw_norms(axes: Axes, records: Sequence[RoundRecord]) -> None:
    """Draws quantiles of ‖v‖ over the rounds of one run, and its A_t. All rounds have quantiles."""
    rounds = np.array([record.round_index for record in records]) + 1
    norms = np.array([record.norm_quantiles for record in records])
    bound = np.array([record.metrics["clip_bound"] for record in records])
    marker = "o" if len(records) == 1 else None
    for first, last, alpha, label in BANDS:
        ends = norms[:, LEVELS.index(first)], norms[:, LEVELS.index(last)]
        axes.fill_between(rounds, *ends, color=BOUNDED, alpha=alpha, linewidth=0, label=label)
    axes.plot(rounds, norms[:, LEVELS.index(0.5)], color=BOUNDED, label="median", marker=marker)
    axes.plot(rounds, norms[:, -1], color=BOUNDED, linestyle=":", label="largest", marker=marker)
    axes.plot(rounds, bound, color=BOUND, linestyle="--", label="this run's A", marker=marker)
    if max(norms.max(), bound.max()) > WIDE * norms[:, LEVELS.index(0.01)].min() > 0:
        axes.set_yscale("log")
        _label_plainly(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_shares(axes: Axes, sensitivity: BoundSensitivity) -> None:
    """Draws the share of the steps that a bound would clip over the bound, and the bound of the run."""
    norms, bound = sensitivity.norms, sensitivity.clip_bound
    low, high = min(norms[0], bound) / 1.2, max(norms[-1], bound) * 1.2
    if low > 0 and high > WIDE * low:
        axes.set_xscale("log")
        _label_plainly(axes.xaxis)
        bounds = np.geomspace(low, high, 200)
    else:
        bounds = np.linspace(low, high, 200)
    shares = 1 - np.searchsorted(norms, bounds, side="right") / len(norms)
    axes.plot(bounds, shares, color=BOUNDED)
    axes.axvline(bound, color=BOUND, linestyle="--", label=f"A = {bound:g}, as trained")
    axes.set(xlabel="clip bound A", ylim=(-0.02, 1.02), xlim=(low, high))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(loc="best")


def _label_plainly(axis: Axis) -> None:
    """Labels a logarithmic axis with a few plain numbers, such as 0.5, 1, 2, instead of powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
