"""Says in sentences what came out of a search, with its uncertainty."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from fednar_ray.algorithms.regularizers import CLIPPING
from fednar_ray.config.algorithm import RegularizerSettings
from fednar_ray.report.axes import REGULARIZER, build_plain_label, format_metric, format_searched_value
from fednar_ray.report.clip_bounds import describe_share
from fednar_ray.report.comparison_answer import name_regularizer
from fednar_ray.report.comparison_table import compute_paired_difference
from fednar_ray.report.differences import describe_difference
from fednar_ray.tracking.searches import SearchRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOutcome:
    """What came out of a search.

    Attributes:
        trials: The number of trials.
        metric: The metric that guided the search.
        best_value: Its value in the best trial; None if no trial ran all rounds.
        best_values: The values of the best trial, by searched key.
        test_metric: The metric on the test set that judges the search; None if it is not known yet.
        best_tests: Its last values in the runs of the best experiment, trained again, by seed.
        baseline_tests: The same in the runs of the baseline.
        baseline_changes: What makes the experiment the baseline, by key; None if it is not known.
        clipped: The share of steps that the best experiment's bound clips, trained again, averaged over rounds and
            seeds; None if it has no bound, or this is not known yet.
    """

    trials: int
    metric: str
    best_value: float | None
    best_values: Mapping[str, Any]
    test_metric: str | None = None
    best_tests: Sequence[float] = ()
    baseline_tests: Sequence[float] = ()
    baseline_changes: Mapping[str, Any] | None = None
    clipped: float | None = None

    @classmethod
    def of_record(cls, record: SearchRecord) -> Self:
        """Returns the outcome of a search that was read from MLflow."""
        trial, best, baseline = record.best_trial, record.best, record.baseline
        return cls(
            trials=len(record.trials),
            metric=record.metric,
            best_value=trial.final if trial else None,
            best_values=trial.values if trial else {},
            test_metric=record.test_metric,
            best_tests=best.test_values if best else (),
            baseline_tests=baseline.test_values if baseline else (),
            baseline_changes=record.baseline_changes,
            clipped=best.clipped if best and clips_steps(best.settings) else None,
        )


def describe_search(outcome: SearchOutcome) -> Iterator[str]:
    """Yields what the search found, how it compares with the baseline, and the values that it chose."""
    if outcome.best_value is None:
        yield f"None of {outcome.trials} trials ran all rounds, so there is no best one yet."
        return
    reached = f"{outcome.metric.replace('_', ' ')} of {format_metric(outcome.best_value)}"
    yield f"The best of {outcome.trials} trials reaches a {reached}{_describe_test(outcome)}."
    values = ", ".join(
        f"{build_plain_label(key)} = {format_searched_value(value)}" for key, value in outcome.best_values.items()
    )
    yield f"It has {values}."
    clipping = describe_clipping(outcome.clipped)
    if clipping is not None:
        yield clipping


def describe_clipping(clipped: float | None) -> str | None:
    """Says how many steps the bound of the best experiment clips, for its page, its note in MLflow and the terminal.

    Args:
        clipped: The share; None if the experiment has no bound, or this is not known. Then there is no sentence.
    """
    if clipped == 0:
        return (
            "At the best bound no step is clipped: the weight decay acts as without FedNAR. fednar suggest names "
            "bounds that clip."
        )
    return None if clipped is None else f"The best bound clips {describe_share(clipped)} of the steps."


def clips_steps(settings: Mapping[str, Any]) -> bool:
    """Returns whether an experiment's regularizer clips steps. Settings that are not listed have their defaults."""
    return settings.get("regularizer.name", RegularizerSettings().name) in CLIPPING


def explain_baseline(changes: Mapping[str, Any]) -> str:
    """Explains what the baseline is. ``changes`` are those that make the experiment the baseline."""
    described = f", with {_describe_changes(changes)}" if changes else ""
    return f"The baseline has the settings from before the search{described}."


def _describe_changes(changes: Mapping[str, Any]) -> str:
    if not changes:
        return "the settings from before the search"
    parts = (
        name_regularizer(str(value))
        if key == REGULARIZER
        else f"{build_plain_label(key)} = {format_searched_value(value)}"
        for key, value in changes.items()
    )
    return ", ".join(parts)


def _describe_test(outcome: SearchOutcome) -> str:
    """Compares the best trial and the baseline on the test set, where they were trained again."""
    metric, seeds = outcome.test_metric, min(len(outcome.best_tests), len(outcome.baseline_tests))
    if metric is None or not seeds:
        return ""
    ours, theirs = (np.array(values[:seeds]) for values in (outcome.best_tests, outcome.baseline_tests))
    ends = f"; trained again, it ends at a {metric.replace('_', ' ')} of {format_metric(float(ours.mean()))}"
    what = "" if outcome.baseline_changes is None else f" ({_describe_changes(outcome.baseline_changes)})"
    ends += f", the baseline{what} at {format_metric(float(theirs.mean()))}"
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return ends
    change, interval = compute_paired_difference(ours, theirs)
    return f"{ends}: {describe_difference(metric.partition('_')[2], change, interval, seeds)}"
