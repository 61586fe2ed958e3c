"""The facts of a search, and its trials as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fednar_ray.tracking.searches import FAILED, FINISHED, STOPPED, UNFINISHED, SearchRecord, TrialRecord

ORDER = (FINISHED, STOPPED, UNFINISHED, FAILED)
COLUMNS = ("trial", "status", "rounds")
"""Of the results; after them the metric, and the searched keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFacts:
    """What a search did, and what came of it; None where it did not get that far."""

    statuses: Mapping[str, int]  # status → trials
    best_trial: str | None
    best_value: float | None
    best_values: Mapping[str, Any]  # of the searched keys
    best_test_accuracy: float | None
    baseline_value: float | None
    baseline_test_accuracy: float | None
    rounds_trained: int  # over all trials and their seeds
    rounds_saved: int  # not trained, since trials were stopped early


def summarize_search(record: SearchRecord) -> SearchFacts:
    """The facts of a search."""
    best, baseline = record.best_trial, record.baseline
    whole = full_rounds(record)
    stopped = [trial for trial in record.trials if trial.status == STOPPED]
    return SearchFacts(
        statuses={status: sum(trial.status == status for trial in record.trials) for status in ORDER},
        best_trial=best.name if best else None,
        best_value=best.final if best else None,
        best_values=best.values if best else {},
        best_test_accuracy=record.best.test_accuracy if record.best else None,
        baseline_value=baseline.history[-1][1] if baseline and baseline.history else None,
        baseline_test_accuracy=baseline.test_accuracy if baseline else None,
        rounds_trained=record.seeds * sum(trial.rounds for trial in record.trials),
        rounds_saved=record.seeds * sum(max(0, whole - trial.rounds) for trial in stopped),
    )


def full_rounds(record: SearchRecord) -> int:
    """The rounds of a trial that is not stopped."""
    return int(record.settings.get("federation.rounds") or max((trial.rounds for trial in record.trials), default=0))


def ranked(record: SearchRecord) -> list[TrialRecord]:
    """Those that ran all rounds first, best first; then those that were stopped, that run, and that failed."""

    def place(trial: TrialRecord) -> tuple[int, bool, float]:
        status = ORDER.index(trial.status) if trial.status in ORDER else len(ORDER)
        return status, trial.value is None, 0.0 if trial.value is None else record.cost(trial.value)

    return sorted(record.trials, key=place)


def results(record: SearchRecord) -> Sequence[Mapping[str, Any]]:
    """A row a trial, as ``ranked``: name, status, rounds, the metric, and the searched values."""
    return [
        {
            **dict(zip(COLUMNS, (trial.name, trial.status, trial.rounds), strict=True)),
            record.metric: trial.value,
            **{key: trial.values[key] for key in record.space},
        }
        for trial in ranked(record)
    ]
