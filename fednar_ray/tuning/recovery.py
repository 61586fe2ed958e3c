"""What a search that is resumed knows of its trials: our own record first, then what Tune's last state has."""

import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray.cloudpickle import load as unpickle

from fednar_ray.config import SearchSettings
from fednar_ray.tracking.journal import recorded
from fednar_ray.tracking.lines import whole_lines
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tuning.trial import RecordedTrial, values_key
from fednar_ray.tuning.trial_table import FINISHED, RUNNING, TrialEntry, TrialTable, trial_directory

log = logging.getLogger("fednar_ray")

ENDED_IN_TUNE = ("TERMINATED", "ERROR")
STATE_FILES = "experiment_state-*.json"
SEARCHER_FILES = (  # pickles, whatever their names say
    "basic-variant-state-*.json",
    "search_gen_state-*.json",
    "searcher-state-*.pkl",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Where a search stands when it is resumed."""

    resumes_tune: bool  # from Tune's own state; else Tune starts anew, and recorded trials return what is recorded
    recorded: Mapping[str, RecordedTrial]  # ended trials that Tune would train again, as ``TrialPlan.recorded``
    lost: frozenset[str]  # ids in the ledger that Tune's state does not have


NOTHING = Recovery(resumes_tune=False, recorded={}, lost=frozenset())


def recover(ledger: TrialTable, search: SearchSettings, rounds: int, tune: Path) -> Recovery:
    """Compares the ledger with the state that Tune left in ``tune``, which may be behind, damaged or missing.

    Tune writes its state about once a second, and not in one step. A trial that the ledger knows to have ended is
    not trained again, whatever Tune knows of it.
    """
    if search.scheduler.name != "pbt":  # its trials have values of several rounds, which only the ledger has
        _end_whole_journals(ledger, search, rounds)
    statuses = _tune_statuses(tune)
    if statuses is None and tune.exists():
        log.warning("Tune's state in %s cannot be read: it starts anew, and trials that ended keep their results", tune)
        shutil.rmtree(tune)
    known = statuses or {}
    again: dict[str, RecordedTrial] = {}
    for trial_id, entry in ledger.trials.items():
        if entry.status == RUNNING or entry.value is None or known.get(trial_id) in ENDED_IN_TUNE:
            continue
        key = trial_id if trial_id in known else values_key(entry.begun or entry.values)
        again.setdefault(key, _recorded_trial(ledger, entry))
    lost = frozenset(ledger.trials) - frozenset(known)
    return Recovery(resumes_tune=bool(known), recorded=again, lost=lost)


def _end_whole_journals(ledger: TrialTable, search: SearchSettings, rounds: int) -> None:
    """A trial whose journal has all rounds has finished, also where its driver was killed before the ledger said so."""
    for entry in ledger.trials.values():
        if entry.status != RUNNING:
            continue
        records = recorded(trial_directory(ledger, entry))
        value = records[-1].metrics.get(search.metric, math.nan) if len(records) == rounds else math.nan
        if math.isfinite(value):
            entry.status, entry.rounds, entry.value, entry.failure = FINISHED, rounds, value, None
    ledger.save()


def _recorded_trial(ledger: TrialTable, entry: TrialEntry) -> RecordedTrial:
    assert entry.value is not None
    lineage = None if entry.changes is None else {"begun": entry.begun, "changes": entry.changes}
    return RecordedTrial(
        value=entry.value,
        rounds=entry.rounds,
        lines=whole_lines(RunDirectory(trial_directory(ledger, entry)).journal),
        failure=entry.failure,
        width=entry.group_size,
        lineage=lineage,
    )


def _tune_statuses(tune: Path) -> dict[str, str] | None:
    """Tune's status of each trial by id, in its newest state; None where there is none that can be resumed."""
    try:
        state = json.loads(sorted(tune.glob(STATE_FILES))[-1].read_text(encoding="utf-8"))
        trials = [json.loads(trial[0]) for trial in state["trial_data"]]
        for pattern in SEARCHER_FILES:
            for path in sorted(tune.glob(pattern))[-1:]:  # their names have the time
                with path.open("rb") as file:
                    unpickle(file)
        return {trial["trial_id"]: trial["status"] for trial in trials} or None
    except Exception:  # noqa: BLE001 - a file that is cut short raises many kinds, and a pickle any
        return None
