"""Draws the charts of a run's page."""

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fednar_ray.core.metric_names import SHARES
from fednar_ray.core.private_metrics import EPSILON, is_simulated
from fednar_ray.core.reports import RoundRecord
from fednar_ray.report.page import PageFigure
from fednar_ray.report.plots import BOUND, BOUNDED, choose_marker, widen
from fednar_ray.report.run_plots import Measure
from fednar_ray.report.svg import draw

SPLITS = {"test": (BOUND, "-"), "validation": (BOUNDED, "--")}


def draw_run_charts(history: Sequence[RoundRecord], measure: Measure) -> Iterator[PageFigure]:
    """Draws the primary metric, the training loss, the share of clipped steps and the weight decay over rounds."""
    name = measure.name.replace("_", " ")
    shown = [split for split in SPLITS if _has(history, f"{split}_{measure.name}")]
    better = "higher" if measure.higher_is_better else "lower"
    if shown:
        yield PageFigure(
            f"{name[0].upper()}{name[1:]}",
            draw(
                lambda axes: _draw_lines(axes, history, {f"{s}_{measure.name}": (s, *SPLITS[s]) for s in shown}), name
            ),
            f"On {' and '.join(shown)} examples; {better} is better.",
        )
    if _has(history, "train_loss"):
        yield PageFigure(
            "Training loss",
            draw(lambda axes: _draw_lines(axes, history, {"train_loss": ("", BOUNDED, "-")}), "training loss"),
            "Mean loss of the batches that clients trained on.",
        )
    if _has(history, "clip_fraction"):
        yield PageFigure(
            "Share of clipped steps",
            draw(lambda axes: _draw_shares(axes, history), "share of clipped steps"),
            "How many steps were longer than the bound A.",
        )
    if _has(history, "effective_weight_decay"):
        yield PageFigure(
            "Weight decay",
            draw(lambda axes: _draw_decay(axes, history), "weight decay, given and in effect"),
            "What clipping left of the given weight decay.",
        )
    if _has(history, EPSILON):
        label = "ε, simulated" if is_simulated(history[-1].metrics) else "ε"
        yield PageFigure(
            f"Privacy spent ({label})",
            draw(lambda axes: _draw_lines(axes, history, {EPSILON: ("", BOUND, "-")}), f"{label}, over rounds"),
            f"{label[0].upper()}{label[1:]}, of all rounds so far together.",
        )


def _has(history: Sequence[RoundRecord], name: str) -> bool:
    return any(name in record.metrics for record in history)


def _draw_lines(axes: Axes, history: Sequence[RoundRecord], lines: dict[str, tuple[str, str, str]]) -> None:
    for name, (label, color, style) in lines.items():
        points = [(r.round_index + 1, r.metrics[name]) for r in history if name in r.metrics]
        if points:
            marker = choose_marker(len(points))
            axes.plot(*zip(*points, strict=True), style, color=color, label=label or None, marker=marker)
    _finish(axes)
    if len(lines) > 1:
        axes.legend(loc="best")
    if all(name.partition("_")[2] in SHARES for name in lines):
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.02))


def _draw_decay(axes: Axes, history: Sequence[RoundRecord]) -> None:
    lines = {
        "weight_decay": ("given", "#7f7f7f", "--"),
        "effective_weight_decay": ("in effect", BOUND, "-"),
    }
    _draw_lines(axes, history, lines)
    axes.set_ylim(bottom=0)


def _draw_shares(axes: Axes, history: Sequence[RoundRecord]) -> None:
    _draw_lines(axes, history, {"clip_fraction": ("", BOUND, "-")})
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _finish(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_yscale() == "linear":
        widen(axes)
