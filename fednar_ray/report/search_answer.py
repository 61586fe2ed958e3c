"""Says in sentences what came out of a search, with its uncertainty."""

from collections.abc import Iterator

import numpy as np

from fednar_ray.core.metric_names import SHARES, is_higher_better
from fednar_ray.report.axes import build_plain_label, format_metric, format_searched_value, name_metric
from fednar_ray.report.comparison_table import compute_paired_difference
from fednar_ray.report.search_results import SearchFacts
from fednar_ray.tracking.searches import SearchRecord


def describe_search(record: SearchRecord, facts: SearchFacts) -> Iterator[str]:
    """Yields what the search found, how it compares with the baseline, and the values that it chose."""
    trials = len(record.trials)
    if facts.best_trial is None:
        yield f"None of {trials} trials ran all rounds, so there is no best one yet."
        return
    reached = f"{name_metric(record)} of {format_metric(facts.best_value)}"
    yield f"The best of {trials} trials reaches a {reached}{_describe_difference(record)}."
    values = ", ".join(
        f"{build_plain_label(key)} = {format_searched_value(value)}" for key, value in facts.best_values.items()
    )
    yield f"It has {values}."


def _describe_difference(record: SearchRecord) -> str:
    """Compares the best trial and the baseline on the test set, where they were trained again."""
    best, baseline, metric = record.best, record.baseline, record.test_metric
    if best is None or baseline is None or metric is None or not best.test_values or not baseline.test_values:
        return ""
    seeds = min(len(best.test_values), len(baseline.test_values))
    ours, theirs = (np.array(each.test_values[:seeds]) for each in (best, baseline))
    name = metric.replace("_", " ")
    ends = f"; trained again, it ends at a {name} of {format_metric(ours.mean())}, the baseline at "
    ends += format_metric(theirs.mean())
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return ends
    change, interval = compute_paired_difference(ours, theirs)
    bare = metric.partition("_")[2]
    scale, unit = (100.0, " points") if bare in SHARES else (1.0, "")
    number = f"{scale * change:+.3g}{unit}".replace("-", "−")
    if interval is None:
        return f"{ends}: {number}, from one seed, which cannot tell it from luck"
    low, high = (f"{scale * (change + side * interval):+.3g}".replace("-", "−") for side in (-1, 1))
    span = f"{number} (95 % interval {low} to {high})"
    if abs(change) <= interval:
        return f"{ends}: {span}, not more than luck with {seeds} seeds"
    return f"{ends}: {span}, {'better' if (change > 0) == is_higher_better(bare) else 'worse'} beyond luck"
