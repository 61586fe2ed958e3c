"""Summarizes a search, and ranks its trials."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fednar_ray.tracking.searches import FINISHED, STATUS_ORDER, STOPPED, SearchRecord, TrialRecord, compute_place


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFacts:
    """The summary of a search. A field is None if the search has not got that far."""

    statuses: Mapping[str, int]  # status → number of trials
    best_trial: str | None
    best_value: float | None
    best_values: Mapping[str, Any]  # by searched key
    best_test_value: float | None
    baseline_value: float | None
    baseline_test_value: float | None
    rounds_trained: int  # over all trials and their seeds
    rounds_saved: int  # not trained because trials were stopped early


def compute_search_facts(record: SearchRecord) -> SearchFacts:
    """Computes the summary of a search."""
    best, baseline = record.best_trial, record.baseline
    whole = count_full_rounds(record)
    stopped = [trial for trial in record.trials if trial.status in (FINISHED, STOPPED)]  # callbacks end a trial, too
    return SearchFacts(
        statuses={status: sum(trial.status == status for trial in record.trials) for status in STATUS_ORDER},
        best_trial=best.name if best else None,
        best_value=best.final if best else None,
        best_values=best.values if best else {},
        best_test_value=record.best.test_value if record.best else None,
        baseline_value=baseline.history[-1][1] if baseline and baseline.history else None,
        baseline_test_value=baseline.test_value if baseline else None,
        rounds_trained=record.seeds * sum(trial.rounds for trial in record.trials),
        rounds_saved=record.seeds * sum(max(0, whole - trial.rounds) for trial in stopped),
    )


def count_full_rounds(record: SearchRecord) -> int:
    """Returns the number of rounds of a trial that is not stopped."""
    return int(record.settings.get("federation.rounds") or max((trial.rounds for trial in record.trials), default=0))


def rank_trials(record: SearchRecord) -> list[TrialRecord]:
    """Sorts the trials best first; see ``compute_place``."""
    return sorted(record.trials, key=lambda each: compute_place(each.name, each.status, each.value, record.mode))


def list_columns(record: SearchRecord, importances: Iterable[str] = ()) -> list[str]:
    """Returns the names in the rows of ``tabulate_trials``, in the order of the table on the page.

    Args:
        record: The search.
        importances: The searched keys that are known to matter, most important first. The others follow them.
    """
    return ["trial", record.metric, *dict.fromkeys([*importances, *record.space]), "status", "rounds"]


def tabulate_trials(record: SearchRecord) -> Sequence[Mapping[str, Any]]:
    """Returns one row per trial, ranked: its name, status, rounds, metric and searched values."""
    return [
        {
            "trial": trial.name,
            "status": trial.status,
            "rounds": trial.rounds,
            record.metric: trial.value,
            **{key: trial.values[key] for key in record.space},
        }
        for trial in rank_trials(record)
    ]
