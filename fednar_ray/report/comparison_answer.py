"""Says in sentences what came out of a comparison, with its uncertainty."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from fednar_ray.config import CompareSettings
from fednar_ray.core.counting import format_count
from fednar_ray.core.metric_names import format_metric_value
from fednar_ray.report.comparison_table import Row
from fednar_ray.report.differences import describe_difference
from fednar_ray.report.run_plots import Variant

METHODS = {"fednar": "FedNAR", "none": "no weight decay"}
"""How methods are written in sentences; others by their names, as the decay that they are."""


def name_method(variant: Variant) -> str:
    """Returns how a sentence calls a variant's method."""
    return name_regularizer(variant.regularizer)


def name_regularizer(name: str) -> str:
    """Returns how a sentence calls the method of a regularizer."""
    return METHODS.get(name, f"{name} decay")


@dataclass(frozen=True, slots=True)
class Contest:
    """The two rows that the answer is about: a method, and the baseline with the same weight decay."""

    row: Row
    baseline: Row

    @classmethod
    def choose(cls, rows: Sequence[Row], settings: CompareSettings) -> Self:
        """Chooses FedNAR, or else the last method, at the weight decay at which the baseline does best."""
        first = [row for row in rows if row.variant.regularizer == settings.regularizers[0]]
        baseline = min(first or rows, key=_rank)
        others = [
            row for row in rows if row.variant.weight_decay == baseline.variant.weight_decay and row is not baseline
        ]
        return cls(next((r for r in others if r.variant.regularizer == "fednar"), (others or [baseline])[-1]), baseline)


def _rank(row: Row) -> float:
    mean = float(row.final.mean())
    if not np.isfinite(mean):
        return np.inf
    return -mean if row.measure.higher_is_better else mean


def describe_comparison(rows: Sequence[Row], settings: CompareSettings) -> Iterator[str]:
    """Yields the answer, and then what a badly chosen weight decay costs if there are several.

    Args:
        rows: The rows of the comparison, at least one.
        settings: What was varied, and the target.
    """
    contest = Contest.choose(rows, settings)
    decays = {row.variant.weight_decay for row in rows}
    if contest.row is contest.baseline:
        yield f"{_name(contest.row)} ends at {_describe_value(contest.row)}; there is nothing to compare it with."
        return
    parts = filter(None, (_describe_target(contest, settings), _describe_difference(contest)))
    yield "; ".join(parts) + "."
    if len(decays) > 1:
        best = contest.baseline.variant.weight_decay
        yield f"This is at weight decay λ = {best:g}, where {_name(contest.baseline, capital=False)} does best."
        yield _describe_forgiveness(rows, contest)


def explain_values(rows: Sequence[Row], settings: CompareSettings) -> str:
    """Explains what the numbers of a comparison's table are, and what their spreads do and do not cover."""
    seeds, rounds = len(rows[0].final), settings.final_rounds
    last = "that of the last round" if rounds == 1 else f"the mean over the last {rounds} rounds, or all if fewer"
    metric = rows[0].measure.name.replace("_", " ")
    if seeds == 1:
        return f"Final {metric} is {last}, on the test set."
    text = f"Final {metric} is {last}, on the test set: its mean over {seeds} seeds ± their standard deviation."
    if len(settings.regularizers) > 1:
        text += (
            f" Differences are to {settings.regularizers[0]} with the same seed and weight decay, ± the half-width of "
            "their 95 % interval."
        )
    return f"{text} All seeds have the same test set."


def _name(row: Row, *, capital: bool = True) -> str:
    name = name_method(row.variant)
    return name[0].upper() + name[1:] if capital else name


def _describe_value(row: Row) -> str:
    mean = float(row.final.mean())
    value = f"of {format_metric_value(row.measure.name, mean)}" if np.isfinite(mean) else "that is no number"
    return f"a test {row.measure.name.replace('_', ' ')} {value}"


def _describe_target(contest: Contest, settings: CompareSettings) -> str | None:
    row, baseline = contest.row, contest.baseline
    target = settings.get_target(row.measure.name)
    if target is None:
        return None
    goal = f"a test {row.measure.name.replace('_', ' ')} of {target:g}"
    ours, theirs = row.rounds_to_target, baseline.rounds_to_target
    name, other = _name(row), _name(baseline, capital=False)
    if ours is None and theirs is None:
        return f"Neither {name} nor {other} reaches {goal}"
    if ours is None:
        return f"{name} does not reach {goal}, {other} does in {_count(theirs)}{_count_seeds(baseline)}"
    ending = "does not reach it" if theirs is None else f"in {theirs:g}{_count_seeds(baseline)}"
    return f"{name} reaches {goal} in {_count(ours)}{_count_seeds(row)}, {other} {ending}"


def _count(rounds: float | None) -> str:
    assert rounds is not None  # the target is reached
    return format_count(rounds, "round")


def _count_seeds(row: Row) -> str:
    return "" if row.reached == len(row.final) else f" (with {row.reached} of {len(row.final)} seeds)"


def _describe_difference(contest: Contest) -> str:
    """Says how much better or worse a method ends than the baseline, and whether that is more than luck."""
    row, baseline = contest.row, contest.baseline
    if row.difference is None:
        whose = [_name(each, capital=False) for each in (row, baseline) if not np.isfinite(each.final).all()]
        return (
            f"no difference can be given, because {' and '.join(whose)} diverged" if whose else "no difference is known"
        )
    ends = f"{_name(row)} ends at {_describe_value(row)}, {_name(baseline, capital=False)} at {_format_mean(baseline)}"
    return f"{ends}: {describe_difference(row.measure.name, row.difference, row.interval, len(row.final))}"


def _format_mean(row: Row) -> str:
    mean = float(row.final.mean())
    return format_metric_value(row.measure.name, mean) if np.isfinite(mean) else "no number"


def _describe_forgiveness(rows: Sequence[Row], contest: Contest) -> str:
    """Says how the two methods do at the weight decay that suits each of them least."""
    worst = [
        max((row for row in rows if row.variant.regularizer == one.variant.regularizer), key=_rank)
        for one in (contest.row, contest.baseline)
    ]
    ours, theirs = worst
    return (
        f"At the weight decay that suits each least, {_name(ours)} still ends at {_format_mean(ours)} "
        f"(λ = {ours.variant.weight_decay:g}), {_name(theirs, capital=False)} at {_format_mean(theirs)} "
        f"(λ = {theirs.variant.weight_decay:g})."
    )
