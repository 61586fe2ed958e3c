"""Names of searched keys and values, and their positions on an axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from fednar_ray.tracking.searches import SearchRecord, TrialRecord

CLIP_BOUND, WEIGHT_DECAY, LOCAL_LR = "regularizer.clip_bound", "regularizer.weight_decay", "algorithm.local_lr"
REGULARIZER = "regularizer.name"
ANNEAL = "_anneal"  # the suffix of annealing rates

NAMES = {
    CLIP_BOUND: ("clip bound", "A"),
    CLIP_BOUND + ANNEAL: ("annealing rate", "γ_A"),
    WEIGHT_DECAY: ("weight decay", "λ"),
    WEIGHT_DECAY + ANNEAL: ("annealing rate", "γ_λ"),
    LOCAL_LR: ("local learning rate", "η"),
    LOCAL_LR + ANNEAL: ("annealing rate", "γ_η"),
    "algorithm.server_lr": ("server learning rate", "η_g"),
    "algorithm.mu": ("proximal weight", "μ"),
    "algorithm.alpha": ("dynamic weight", "α"),
    "algorithm.beta": ("momentum", "β"),
    "algorithm.epsilon": ("epsilon", "ε"),
    "algorithm.epsilon_anneal": ("annealing rate", "γ_ε"),
    REGULARIZER: ("regularizer", ""),
    "algorithm.name": ("preset", ""),
}
"""Keys in words, with the paper's symbols, where λ, η and ε are those of round 0. Other keys are shown by their dotted
names."""

NAMELESS = (REGULARIZER, "algorithm.name")  # their values say what they are
COLOR_MAPS = {"max": "viridis", "min": "viridis_r"}  # bright is good
DECADE = 10.0


def build_label(key: str) -> str:
    """Returns the label of a key on a plot: words and symbol, as on the page around it."""
    words, symbol = NAMES.get(key, (key, ""))
    return f"{words} ${symbol}$" if symbol else words


def build_plain_label(key: str) -> str:
    """Returns the label of a key as text: words and symbol."""
    words, symbol = NAMES.get(key, (key, ""))
    return f"{words} {symbol}" if symbol else words


def format_searched_value(value: Any) -> str:
    """Formats a searched value as in a YAML file, but with four digits."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.4g}"
    return "null" if value is None else str(value)


def shorten_key(key: str) -> str:
    """Returns the paper's symbol of a key for tables, such as ``λ``; of other keys, the last part of the name."""
    return NAMES.get(key, ("", ""))[1] or key.rpartition(".")[2]


def format_values(values: Mapping[str, Any]) -> str:
    """Formats searched values on one short line, by the paper's symbols, such as ``A=3.16 λ=0.01 γ_λ=0.97``."""
    texts = {
        key: f"{value:.3g}" if isinstance(value, float) else format_searched_value(value)
        for key, value in values.items()
    }
    return " ".join(text if key in NAMELESS else f"{shorten_key(key)}={text}" for key, text in texts.items())


def format_for_plot(value: Any) -> str:
    """Formats a value for a plot, where an unescaped dollar sign would start a formula."""
    return format_searched_value(value).replace("$", r"\$")


def format_metric(value: float | None) -> str:
    """Formats the value of a metric: three decimals, or three digits if it is 10 or more."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def name_metric(record: SearchRecord) -> str:
    """Returns the name of the metric in words."""
    return record.metric.replace("_", " ")


def is_number(value: Any) -> bool:
    """Returns whether a searched value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisScale:
    """The axis of one key: linear, logarithmic, or a sequence of categories."""

    key: str
    log: bool
    categories: tuple[str, ...]  # empty for a numeric axis
    low: float  # the ends, as ``compute_coordinate`` returns them
    high: float

    def compute_coordinate(self, value: Any) -> float:
        """Returns the coordinate of a value: itself, its logarithm to base 10, or the index of its category."""
        if self.categories:
            return float(self.categories.index(format_searched_value(value)))
        return log10(value) if self.log else float(value)

    def compute_position(self, value: Any) -> float:
        """Returns the position of a value on the axis, from 0 to 1."""
        return self.compute_share(self.compute_coordinate(value))

    def compute_share(self, measure: float) -> float:
        """Returns the position of a coordinate on the axis, from 0 to 1; 0.5 if the axis has no length."""
        return (measure - self.low) / (self.high - self.low) if self.high > self.low else 0.5

    def list_ticks(self) -> list[tuple[float, str]]:
        """Returns the coordinates of the ticks, with their labels."""
        if self.categories:
            return [(float(place), format_for_plot(name)) for place, name in enumerate(self.categories)]
        if self.high == self.low:
            return [(self.low, format_searched_value(10**self.low if self.log else self.low))]
        places = _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)
        return [(place, f"{(10**place if self.log else place):.4g}") for place in places]


def _linear_ticks(low: float, high: float) -> list[float]:
    slack = 1e-9 * (high - low)
    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low - slack <= tick <= high + slack]


def _log_ticks(low: float, high: float) -> list[float]:
    """Returns powers of ten, and some multiples if there are few; ``low`` and ``high`` are logarithms."""
    steps = (1, 2, 5) if high - low < 1.5 else (1, 3) if high - low < 4 else (1,)
    ticks = [log10(step) + power for power in range(floor(low), floor(high) + 1) for step in steps]
    within = [tick for tick in ticks if low - 1e-9 <= tick <= high + 1e-9]
    return within if len(within) > 1 else [low, high]


def build_axis_scale(record: SearchRecord, key: str, trials: Sequence[TrialRecord]) -> AxisScale:
    """Builds the axis of a key from the values of some trials."""
    values = [trial.values[key] for trial in trials]
    kind, listed = next(iter(record.space[key].items()))
    if not all(map(is_number, values)):
        known = [format_searched_value(value) for value in (*(listed if kind in ("choice", "grid") else ()), *values)]
        categories = tuple(dict.fromkeys(known))
        return AxisScale(key=key, log=False, categories=categories, low=0.0, high=float(len(categories) - 1))
    log = min(values) > 0 and (kind == "loguniform" or max(values) > DECADE * min(values))
    ends = [log10(end) if log else float(end) for end in (min(values), max(values))]
    return AxisScale(key=key, log=log, categories=(), low=ends[0], high=ends[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class ColorScale:
    """The mapping from values of the metric to colors."""

    norm: Normalize
    map: str
    extend: str  # the end of the color bar that has values beyond it


def build_color_scale(record: SearchRecord, values: Sequence[float]) -> ColorScale:
    """Builds a color scale of which the better half of the values takes at least a quarter.

    Otherwise a few trials that learned nothing would leave a single color to all others.
    """
    best, worst = sorted((min(values), max(values)), key=record.compute_cost)
    limit = best - 4 * (best - float(np.median(values)))
    bounded = min(worst, limit, key=record.compute_cost) if limit != best else worst
    low, high = sorted((best, bounded))
    if low == high:
        low, high = low - 0.01, high + 0.01
    beyond = "neither" if bounded == worst else "min" if record.mode == "max" else "max"
    return ColorScale(norm=Normalize(low, high), map=COLOR_MAPS[record.mode], extend=beyond)
