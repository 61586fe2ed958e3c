"""Says what came out of a run, a comparison or a search: one sentence, and a few key figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fednar_ray.config import Experiment
from fednar_ray.core.metric_names import format_metric_value, is_higher_better
from fednar_ray.core.reports import RoundRecord
from fednar_ray.report.axes import format_values
from fednar_ray.report.run_plots import find_measure, get_curve
from fednar_ray.tracking.notes import Note

LISTED_TRIALS = 5
SECONDS_PER_HOUR = 3600


def describe_run(
    experiment: Experiment, history: Sequence[RoundRecord], primary: str, report: str | None = None
) -> Note:
    """Describes a finished run.

    Args:
        experiment: What was run.
        history: Its rounds.
        primary: The metric that counts, without its split.
        report: The artifact with the report of the run; None if it has none.
    """
    measure, regularizer = find_measure(history, primary), experiment.regularizer
    values = get_curve(history, measure.metric)
    values = values[np.isfinite(values)]
    settings = f"{experiment.algorithm.name} with {regularizer.name}"
    if not len(values):
        return Note(answer=f"{settings}: {len(history)} rounds, without a test.", report=report)
    last = format_metric_value(measure.name, float(values[-1]))
    best = format_metric_value(measure.name, float(values.max() if measure.higher_is_better else values.min()))
    sent = sum(float(np.nansum(get_curve(history, name))) for name in ("bytes_down", "bytes_up"))
    hours = float(np.nansum(get_curve(history, "client_seconds"))) / SECONDS_PER_HOUR
    clipped = get_curve(history, "clip_fraction")
    clipped = clipped[np.isfinite(clipped)]
    figures = {
        f"test {measure.name}, last round": last,
        f"test {measure.name}, best round": best,
        "rounds": str(len(history)),
        "clients per round": str(experiment.federation.clients_per_round),
        "clipped steps": f"{100 * clipped.mean():.0f} %" if len(clipped) else "–",
        "sent, down and up": f"{sent / 1e6:.1f} MB",
        "client-hours": f"{hours:.2g}",
    }
    answer = f"{settings} reaches a test {measure.name} of {last} after {len(history)} rounds."
    return Note(answer=answer, figures=figures, report=report)


def describe_comparison(
    cells: Sequence[Mapping[str, str]], measure: str, seeds: int, view: str, report: str | None = None
) -> Note:
    """Describes a finished comparison.

    Args:
        cells: The rows of its table, as text by column; the first row is the baseline.
        measure: The metric that counts, without its split.
        seeds: Runs per row.
        view: The key of the saved view of its runs.
        report: The artifact with its report; None if it has none.
    """
    column = f"final {measure}"
    by_row = {f"{row['regularizer']}, weight decay {row['weight decay']}": row for row in cells}
    figures = {
        f"{name}: test {measure}": row[column] + ("" if row["difference"] == "–" else f" ({row['difference']})")
        for name, row in by_row.items()
    }
    best = min(by_row, key=lambda name: _rank_text(by_row[name][column], measure))
    value, runs = by_row[best][column], "1 seed" if seeds == 1 else f"{seeds} seeds"
    answer = f"Of {len(cells)} variants, {best} is best: test {measure} {value} ({runs})."
    return Note(answer=answer, figures=figures, view=view, report=report)


def describe_search(
    trials: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    metric: str,
    test_metric: str,
    tests: tuple[float, float],
    view: str,
    report: str | None = None,
) -> Note:
    """Describes a finished search.

    Args:
        trials: The trials, best first: ``name``, ``value`` and ``values`` by searched key.
        keys: The searched keys.
        metric: The metric that the trials were judged by.
        test_metric: The metric on the test set.
        tests: Its value for the best trial trained again, and for the baseline.
        view: The key of the saved view of the trials.
        report: The artifact with the report; None if it has none.
    """
    name, (ours, theirs) = test_metric.removeprefix("test_"), tests
    best, baseline = (format_metric_value(name, value) for value in tests)
    better = ours > theirs if is_higher_better(test_metric) else ours < theirs
    verdict = "better than" if better else "no better than"
    found = format_values({key: trials[0]["values"][key] for key in keys})
    answer = f"Best of {len(trials)} trials: {found}. Test {name} {best}, {verdict} the baseline's {baseline}."
    listed = [trial for trial in trials if trial["value"] is not None][:LISTED_TRIALS]
    figures = {
        f"{trial['name']}: {format_values(trial['values'])}": f"{metric.replace('_', ' ')} {trial['value']:.4g}"
        for trial in listed
    }
    return Note(answer=answer, figures=figures, view=view, report=report)


def _rank_text(text: str, measure: str) -> float:
    """Returns a number that is lower for a better value; infinity for a text that is no number."""
    try:
        value = float(text.split()[0])
    except ValueError:
        return float("inf")
    return -value if is_higher_better(measure) else value
