"""Tune's events to MLflow, the trials' journals and the ledger; everything is written from the driver."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from weakref import WeakValueDictionary

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.stopper import Stopper

from fednar_ray.config import SearchSettings
from fednar_ray.tracking.mlflow import Store
from fednar_ray.tuning.open_trial import OpenTrial, owes_mlflow
from fednar_ray.tuning.strategy import better, rename_in_rungs, save_scheduler
from fednar_ray.tuning.trial import FAILURE, LINEAGE, RECORDS, ROUNDS, SECONDS, WIDTH, TrialPlan
from fednar_ray.tuning.trial_table import FAILED, FINISHED, RUNNING, STOPPED, TrialEntry, TrialTable, trial_directory

SCHEDULER_FILE = "scheduler.pickle"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStatus:
    """Where a search stands, for whoever watches."""

    trials: int  # in all
    rounds: int  # of a trial
    running: tuple[TrialEntry, ...]
    finished: int
    stopped: int
    failed: int
    best: TrialEntry | None  # of the trials that ran all rounds
    ended: TrialEntry | None  # by this event
    seconds: float  # since the search began, or went on


Show = Callable[[SearchStatus], None]


_recorders: WeakValueDictionary[str, "Recorder"] = WeakValueDictionary()


class EarlyEnd(Stopper):  # type: ignore[misc]
    """Ends the search once its recorder has seen enough. Tune pickles it with its own state, so it goes by a name."""

    def __init__(self, search: str) -> None:
        self._search = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is stopped here."""
        return False

    def stop_all(self) -> bool:
        """Is it over?"""
        return _recorders[self._search].enough()


class Recorder(tune.Callback):  # type: ignore[misc]
    """A context manager around ``tune.run``, and its callback."""

    def __init__(
        self,
        ledger: TrialTable,
        store: Store,
        plan: TrialPlan,
        scheduler: TrialScheduler,
        trials: int,
        show: Show,
        lost: frozenset[str] = frozenset(),
    ) -> None:
        """``lost``: ids of trials in the ledger that Tune has forgotten, and may propose again under other ids."""
        self.ended_early: str | None = None  # which stop rule ended the search
        self._ledger, self._store, self._plan, self._show = ledger, store, plan, show
        self._scheduler, self._lost = scheduler, set(lost)
        self._trials, self._rounds = trials, plan.experiment({}).federation.rounds
        self._open: dict[str, OpenTrial] = {}
        self._opened: set[str] = set()  # ids of all trials that were open at some time
        self._told: list[Future[None]] = []
        self._start = time.monotonic()
        self._best = ledger.best(plan.search.mode)
        self._since_best = 0  # trials that ended since the best did

    @property
    def _search(self) -> SearchSettings:
        return self._plan.search

    def __enter__(self) -> "Recorder":
        _recorders[self._ledger.name] = self
        self._held = ExitStack()
        self._telling = self._held.enter_context(ThreadPoolExecutor(1, thread_name_prefix="trials"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for trial_id in list(self._open):
            self._close(trial_id)
        if kind is None:
            self._close_untold()
        self._held.close()
        self._ledger.save()
        if kind is None:
            for done in self._told:
                done.result()  # raises what went wrong there

    def enough(self) -> bool:
        """Has a stop rule been met?"""
        stop = self._search.stop
        if stop.wall_seconds is not None and time.monotonic() - self._start >= stop.wall_seconds:
            self.ended_early = f"search.stop.wall_seconds ({stop.wall_seconds:g}) are over"
        if stop.patience_trials is not None and self._since_best >= stop.patience_trials:
            self.ended_early = f"{stop.patience_trials} trials ended without a new best"
        return self.ended_early is not None

    # Tune's events

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial starts, or goes on after a pause, a crash, or with the search."""
        if trial.trial_id not in self._open:
            self._begin(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Some rounds are done."""
        if trial.trial_id not in self._open:
            self._begin(trial)
        entry = self._ledger.trials[trial.trial_id]
        if entry.status == RUNNING:  # else it had ended before the search was resumed
            self._update(entry, trial, result)
        self._open[trial.trial_id].log(result[RECORDS])
        if result["done"]:  # before Tune has heard of it: a driver that is killed from here on trains it no more
            entry.status = self._final_status(entry)
            self._ledger.save()
        if isinstance(self._scheduler, AsyncHyperBandScheduler):  # Tune itself forgets who stood on which rung
            save_scheduler(self._scheduler, self._ledger.directory / SCHEDULER_FILE)
        self._tell(None)

    def _update(self, entry: TrialEntry, trial: Trial, result: Mapping[str, Any]) -> None:
        entry.values, entry.value = _values(trial), float(result[self._search.metric])
        entry.rounds, entry.failure = result[ROUNDS], result[FAILURE]
        entry.seconds += result[SECONDS]
        entry.group_size = result[WIDTH]
        if result[LINEAGE] is not None:
            entry.begun, entry.changes = result[LINEAGE]["begun"], result[LINEAGE]["changes"]

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial ended: it ran all its rounds, was stopped, or could not go on."""
        entry = self._ledger.trials.get(trial.trial_id)
        if entry is None:
            return  # it never started
        entry.status = self._final_status(entry)
        target = self._search.stop.target
        if target is not None and entry.status == FINISHED and not better(self._search.mode, target, entry.value):
            self.ended_early = f"{entry.name} reached search.stop.target ({target:g})"
        best = self._ledger.best(self._search.mode)
        self._since_best = 0 if best is not self._best else self._since_best + 1
        self._best = best
        self._end(trial.trial_id, entry)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial crashed as often as it may."""
        entry = self._ledger.trials.get(trial.trial_id)
        if entry is None:
            self._begin(trial)
            entry = self._ledger.trials[trial.trial_id]
        entry.status, entry.failure = FAILED, _last_line(trial)
        self._since_best += 1
        self._end(trial.trial_id, entry)

    # what they lead to

    def _final_status(self, entry: TrialEntry) -> str:
        """What a trial comes to that reports no more."""
        if entry.failure is not None:
            return FAILED
        return FINISHED if entry.rounds >= self._rounds else STOPPED

    def _begin(self, trial: Trial) -> None:
        entry = self._ledger.trials.get(trial.trial_id) or self._found_again(trial) or self._new_entry(trial)
        self._lost.discard(trial.trial_id)
        if self._plan.recorded_of(trial.trial_id, trial.config) is None:  # else it has ended, and stays so
            entry.status = RUNNING
        opened = OpenTrial(self._store, self._ledger, entry, self._plan.experiment(entry.values))
        self._open[trial.trial_id] = opened
        self._opened.add(trial.trial_id)
        self._told.append(self._telling.submit(opened.tell))
        self._tell(None)

    def _found_again(self, trial: Trial) -> TrialEntry | None:
        """The entry of a trial that Tune had forgotten, and that it proposes once more under another id."""
        for trial_id in sorted(self._lost):
            entry = self._ledger.trials[trial_id]
            if (entry.begun or entry.values) == _values(trial):
                self._lost.remove(trial_id)
                rename_in_rungs(self._scheduler, trial_id, trial.trial_id)
                self._ledger.trials[trial.trial_id] = self._ledger.trials.pop(trial_id)
                return entry
        return None

    def _new_entry(self, trial: Trial) -> TrialEntry:
        entry = TrialEntry(name=f"trial-{len(self._ledger.trials):04d}", values=_values(trial))
        self._ledger.trials[trial.trial_id] = entry
        self._ledger.save()
        return entry

    def _end(self, trial_id: str, entry: TrialEntry) -> None:
        if trial_id in self._open:
            self._close(trial_id)
        self._ledger.save()
        self._tell(entry)

    def _close(self, trial_id: str) -> None:
        entry, opened = self._ledger.trials[trial_id], self._open.pop(trial_id)
        opened.end_journal()
        self._told.append(self._telling.submit(opened.close, entry.status, entry.failure))

    def _close_untold(self) -> None:
        """End the MLflow runs of trials whose driver was killed before it had done so."""
        for trial_id, entry in self._ledger.trials.items():
            if trial_id not in self._opened and owes_mlflow(trial_directory(self._ledger, entry)):
                opened = OpenTrial(self._store, self._ledger, entry, self._plan.experiment(entry.values))
                opened.end_journal()
                self._told.append(self._telling.submit(opened.close, entry.status, entry.failure))

    def _tell(self, ended: TrialEntry | None) -> None:
        ledger = self._ledger
        self._show(
            SearchStatus(
                trials=self._trials,
                rounds=self._rounds,
                running=tuple(entry for entry in ledger.trials.values() if entry.status == RUNNING),
                finished=ledger.count(FINISHED),
                stopped=ledger.count(STOPPED),
                failed=ledger.count(FAILED),
                best=ledger.best(self._search.mode),
                ended=ended,
                seconds=time.monotonic() - self._start,
            )
        )


def _values(trial: Trial) -> dict[str, Any]:
    """What the trial was given, by searched key, in Python's own types."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in trial.config.items()}


def _last_line(trial: Trial) -> str:
    """What the crash was, in a line."""
    error = trial.get_pickled_error()
    text = str(error) if error is not None else "it crashed"
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it crashed").strip()[:300]


def table_of(ledger: TrialTable, mode: str) -> list[Mapping[str, Any]]:
    """The results, a row a trial, best first. Keys have slashes: MLflow's UI shows no column whose name has a dot."""
    return [
        {
            "trial": entry.name,
            "status": entry.status,
            "rounds": entry.rounds,
            "value": entry.value,
            "seconds": round(entry.seconds, 3),
            **{key.replace(".", "/"): entry.values[key] for key in sorted(entry.values)},
            "failure": entry.failure,
        }
        for entry in ledger.ranked(mode)
    ]
