"""Draws where a clip bound would bite: the distribution of ‖v‖ over rounds, and the bound as a line."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fednar_ray.core.reports import RoundRecord
from fednar_ray.core.step_norms import LEVELS
from fednar_ray.report.plots import BOUND, BOUNDED, WIDE

BANDS = (
    (0.01, 0.99, 0.12, "98 % of the steps"),
    (0.1, 0.9, 0.18, "80 % of the steps"),
    (0.25, 0.75, 0.28, "half of the steps"),
)
"""Low level, high level, opacity and label of each band."""


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
    rounds = np.array([record.round_index for record in shown]) + 1
    norms = np.array([record.norm_quantiles for record in shown])
    bound = np.array([record.metrics["clip_bound"] for record in shown])
    factors, marker = np.array(anneal), "o" if len(shown) == 1 else None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for first, last, alpha, label in BANDS:
        ends = norms[:, LEVELS.index(first)], norms[:, LEVELS.index(last)]
        axes.fill_between(rounds, *ends, color=BOUNDED, alpha=alpha, linewidth=0, label=label)
    axes.plot(rounds, norms[:, LEVELS.index(0.5)], color=BOUNDED, label="median", marker=marker)
    axes.plot(rounds, norms[:, -1], color=BOUNDED, linestyle=":", label="largest", marker=marker)
    for value, style, label in ((high, "-.", "clips one in ten"), (low, ":", "clips half")):
        axes.plot(rounds, value * factors, color="#6a994e", linestyle=style, label=f"A = {value:g} {label}")
    axes.plot(rounds, bound, color=BOUND, linestyle="--", label="this run's A", marker=marker)
    axes.set(xlabel="round", ylabel="‖v‖ of single steps", title="Where a clip bound A would bite")
    if max(norms.max(), bound.max()) > WIDE * norms[:, LEVELS.index(0.01)].min() > 0:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=100)
    return path
