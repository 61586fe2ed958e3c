"""Recovers the state of a search to resume from its trial table and the state that Tune saved last."""

import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray.cloudpickle import load as unpickle

from fednar_ray.config import SearchSettings
from fednar_ray.tracking.journal import load_records
from fednar_ray.tracking.json_lines import read_lines
from fednar_ray.tuning.trial_plan import build_values_key
from fednar_ray.tuning.trial_report import TrialReport
from fednar_ray.tuning.trial_table import FINISHED, RUNNING, TrialEntry, TrialTable

log = logging.getLogger("fednar_ray")

ENDED_IN_TUNE = ("TERMINATED", "ERROR")
STATE_FILES = "experiment_state-*.json"
SEARCHER_FILES = (  # these are pickles, in spite of their names
    "basic-variant-state-*.json",
    "search_gen_state-*.json",
    "searcher-state-*.pkl",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """The state that a search continues from.

    Attributes:
        resumes_tune: Whether Tune continues from its own state. If not, Tune proposes all trials again, and those that
            have ended return their recorded reports.
        recorded: Ended trials that Tune would train again, as in ``TrialPlan.recorded``.
        lost: Ids in the trial table that are missing in Tune's state.
    """

    resumes_tune: bool
    recorded: Mapping[str, TrialReport]
    lost: frozenset[str]


NEW_SEARCH = Recovery(resumes_tune=False, recorded={}, lost=frozenset())


def recover(table: TrialTable, search: SearchSettings, rounds: int, tune: Path) -> Recovery:
    """Compares the trial table with the state that Tune left in ``tune``, which may be old, damaged or missing.

    Tune writes its state about once per second, and not in one step. A trial that has ended according to the table is
    not trained again, even if Tune's state says otherwise.
    """
    if search.scheduler.name != "pbt":  # only the table knows the values that its trials had in each round
        finish_complete_trials(table, search, rounds)
    statuses = _load_tune_statuses(tune)
    if statuses is None and tune.exists():
        log.warning(
            "Tune's state in %s cannot be read. Tune proposes all trials again; those that have ended keep their "
            "results and are not trained again",
            tune,
        )
        shutil.rmtree(tune)
    known = statuses or {}
    recorded: dict[str, TrialReport] = {}
    for trial_id, entry in table.trials.items():
        if entry.status == RUNNING or entry.value is None or known.get(trial_id) in ENDED_IN_TUNE:
            continue
        key = trial_id if trial_id in known else build_values_key(entry.initial_values)
        recorded.setdefault(key, _build_last_report(table, entry))
    lost = frozenset(table.trials) - frozenset(known)
    return Recovery(resumes_tune=bool(known), recorded=recorded, lost=lost)


def finish_complete_trials(table: TrialTable, search: SearchSettings, rounds: int) -> None:
    """Sets trials to FINISHED whose journals have all rounds: the driver was killed before it wrote the table."""
    for entry in table.trials.values():
        if entry.status != RUNNING:
            continue
        records = load_records(table.get_trial_directory(entry))
        value = records[-1].metrics.get(search.metric, math.nan) if len(records) == rounds else math.nan
        if math.isfinite(value):
            entry.status, entry.rounds, entry.value, entry.failure = FINISHED, rounds, value, None
    table.save()


def _build_last_report(table: TrialTable, entry: TrialEntry) -> TrialReport:
    assert entry.value is not None
    return TrialReport(
        value=entry.value,
        rounds=entry.rounds,
        lines=read_lines(table.files.trial(entry.name).journal),
        failure=entry.failure,
        ended=entry.ended,
        train_seconds=0.0,
        group_size=entry.group_size,
        compiled=entry.compiled,
        lineage=entry.lineage,
        done=True,
        should_checkpoint=False,
    )


def _load_tune_statuses(tune: Path) -> dict[str, str] | None:
    """Loads Tune's status of each trial by id from its newest state; None if no state can be resumed."""
    try:
        state = json.loads(sorted(tune.glob(STATE_FILES))[-1].read_text(encoding="utf-8"))
        trials = [json.loads(trial[0]) for trial in state["trial_data"]]
        for pattern in SEARCHER_FILES:
            for path in sorted(tune.glob(pattern))[-1:]:  # file names contain the time
                with path.open("rb") as file:
                    unpickle(file)
        return {trial["trial_id"]: trial["status"] for trial in trials} or None
    except Exception:  # noqa: BLE001 - a truncated file raises many kinds of errors, and a pickle any kind
        return None
