"""Builds the notes that MLflow shows first: what came out, and a few key figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fednar_ray.config import Experiment
from fednar_ray.core.metric_names import format_metric_value
from fednar_ray.core.private_metrics import format_epsilon
from fednar_ray.core.reports import RoundRecord
from fednar_ray.report.axes import format_values
from fednar_ray.report.effort import format_bytes, format_seconds, measure_effort
from fednar_ray.report.facts import RunFacts
from fednar_ray.report.run_page import describe_run
from fednar_ray.report.run_plots import find_measure, get_curve
from fednar_ray.report.search_answer import SearchOutcome, describe_search
from fednar_ray.report.search_report import SEARCH_PICTURE
from fednar_ray.tracking.notes import Note
from fednar_ray.tracking.run_directory import RunDirectory

LISTED_TRIALS = 5
FILES = RunDirectory(Path())  # for the names of artifacts


def note_run(
    experiment: Experiment, history: Sequence[RoundRecord], primary: str, facts: RunFacts, report: str | None = None
) -> Note:
    """Builds the note of a finished run.

    Args:
        experiment: What was run.
        history: Its rounds.
        primary: The metric that counts, without its split.
        facts: How the run was made.
        report: The artifact with the page of the run; None if it has none.
    """
    measure = find_measure(history, primary)
    values = get_curve(history, measure.metric)
    values = values[np.isfinite(values)]
    effort = measure_effort(history)
    clipped = get_curve(history, "clip_fraction")
    clipped = clipped[np.isfinite(clipped)]
    figures = {
        "method": f"{experiment.algorithm.name} with {experiment.regularizer.name}",
        "rounds": str(len(history)),
        "clients per round": str(experiment.federation.clients_per_round),
        "clipped steps": f"{100 * clipped.mean():.0f} %" if len(clipped) else "–",
        "sent, down and up": format_bytes(effort.bytes_sent),
        "training, all clients": format_seconds(effort.client_seconds),
    }
    spent = format_epsilon(history[-1].metrics) if history else ""
    if spent:
        figures = {"privacy spent": spent, **figures}
    if len(values):
        best = float(values.max() if measure.higher_is_better else values.min())
        figures = {f"test {measure.name}, best round": format_metric_value(measure.name, best), **figures}
    picture = None if report is None else FILES.curves_plot.name
    return Note(answer=next(describe_run(history, measure, facts)), figures=figures, report=report, picture=picture)


def note_comparison(answer: Sequence[str], cells: Sequence[Mapping[str, str]], view: str, report: str) -> Note:
    """Builds the note of a finished comparison.

    Args:
        answer: What came out, in sentences.
        cells: The rows of its table, as text by column; the first row is the baseline.
        view: The key of the saved view of its runs.
        report: The artifact with its page.
    """
    column = next(name for name in cells[0] if name.startswith("final "))
    figures = {
        f"{row['regularizer']}, weight decay {row['weight decay']}: {column}": row[column]
        + ("" if row["difference"] == "–" else f" ({row['difference']})")
        for row in cells
    }
    picture = FILES.comparison_plot.name
    return Note(answer=" ".join(answer), figures=figures, view=view, report=report, picture=picture)


def note_search(
    outcome: SearchOutcome, trials: Sequence[Mapping[str, Any]], view: str, report: str | None = None
) -> Note:
    """Builds the note of a finished search.

    Args:
        outcome: What came out; the answer is that of the search's page.
        trials: The trials, best first: ``name``, ``value`` and ``values`` by searched key.
        view: The key of the saved view of the trials.
        report: The artifact with the report; None if it has none.
    """
    listed = [trial for trial in trials if trial["value"] is not None][:LISTED_TRIALS]
    metric = outcome.metric.replace("_", " ")
    figures = {
        f"{trial['name']}: {format_values(trial['values'])}": f"{metric} {trial['value']:.4g}" for trial in listed
    }
    picture = None if report is None else str(PurePosixPath(report).with_name(SEARCH_PICTURE))
    answer = " ".join(describe_search(outcome))
    return Note(answer=answer, figures=figures, view=view, report=report, picture=picture)
