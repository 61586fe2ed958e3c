"""Records Tune's events in the trial table, the trials' journals and MLflow; only the driver's process writes."""

from contextlib import ExitStack
from types import TracebackType
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from fednar_ray.tracking.store import Store
from fednar_ray.tuning.search_status import Show, build_status
from fednar_ray.tuning.stop_rules import StopRules
from fednar_ray.tuning.strategy import rename_in_rungs, save_scheduler
from fednar_ray.tuning.trial_plan import TrialPlan, to_plain_values
from fednar_ray.tuning.trial_report import TrialReport
from fednar_ray.tuning.trial_runs import TrialRuns
from fednar_ray.tuning.trial_table import FAILED, FINISHED, RUNNING, STOPPED, TrialEntry, TrialTable

FAILURE_CHARACTERS = 300  # of a crash's error


class Recorder(tune.Callback):  # type: ignore[misc]
    """Tune's callback, and a context manager around ``tune.run``.

    Args:
        table: The search's trials.
        store: The MLflow store.
        plan: What trials have in common.
        scheduler: Tune's scheduler, whose state is saved for a resumed search.
        trials: Number of trials of the whole search.
        show: Called with the state of the search after each event.
        lost: Ids of trials in the table that Tune has forgotten, and may propose again under other ids.
    """

    def __init__(
        self,
        table: TrialTable,
        store: Store,
        plan: TrialPlan,
        scheduler: TrialScheduler,
        trials: int,
        show: Show,
        lost: frozenset[str] = frozenset(),
    ) -> None:
        self._table, self._plan, self._search, self._show = table, plan, plan.search, show
        self._scheduler, self._lost = scheduler, set(lost)
        self._trials, self._rounds = trials, plan.build_experiment({}).federation.rounds
        self._runs = TrialRuns(table, store, plan)
        self._stop_rules = StopRules(plan.search, table)

    def __enter__(self) -> "Recorder":
        self._resources = ExitStack()
        self._resources.callback(self._table.save)
        self._resources.callback(self._stop_rules.clear)
        self._resources.enter_context(self._runs)
        self._stop_rules.clear()  # a killed process may have left its stop file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.__exit__(kind, error, trace)

    @property
    def ended_early(self) -> str | None:
        """The stop rule that ended the search; None if none did."""
        return self._stop_rules.met

    # Tune's events

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Checks the time limit in each iteration of Tune's loop."""
        self._stop_rules.check_time()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Opens the records of a trial that starts, or continues after a pause, a crash, or in a resumed search."""
        if trial.trial_id not in self._runs:
            self._open(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Records a report of a trial.

        The table records the end of a trial here, before Tune does. If the driver is killed afterwards, the trial is
        not trained again.
        """
        if trial.trial_id not in self._runs:
            self._open(trial)
        entry, report = self._table.trials[trial.trial_id], TrialReport.from_tune(result, self._search.metric)
        if entry.status == RUNNING:  # otherwise the trial ended before the search was resumed
            entry.update(report, to_plain_values(trial.config))
        self._runs.log_rounds(trial.trial_id, report.lines)
        if report.done:
            entry.status = self._determine_status(entry)
            self._table.save()
        if isinstance(self._scheduler, AsyncHyperBandScheduler):  # Tune does not restore ASHA's rungs by itself
            save_scheduler(self._scheduler, self._table.files.scheduler)
        self._show_status(None)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Records that a trial has trained all its rounds, was stopped early, or reported a failure."""
        entry = self._table.trials.get(trial.trial_id)
        if entry is None:
            return  # the trial never started
        entry.status = self._determine_status(entry)
        self._end(trial, entry)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Records that a trial has crashed more often than ``search.retries`` allows."""
        self.record_crash(trial, get_crash_message(trial))

    def record_crash(self, trial: Trial, message: str) -> None:
        """Records that a trial has failed since its process crashed.

        Args:
            trial: The trial.
            message: What it crashed with.
        """
        if trial.trial_id not in self._table.trials:
            self._open(trial)
        entry = self._table.trials[trial.trial_id]
        entry.status, entry.failure = FAILED, message
        self._end(trial, entry)

    # Their effects

    def _determine_status(self, entry: TrialEntry) -> str:
        if entry.failure is not None:
            return FAILED
        return FINISHED if entry.rounds >= self._rounds or entry.ended is not None else STOPPED

    def _open(self, trial: Trial) -> None:
        entry = self._table.trials.get(trial.trial_id) or self._find_lost(trial) or self._add_entry(trial)
        self._lost.discard(trial.trial_id)
        if self._plan.find_recorded(trial.trial_id, trial.config) is None:  # otherwise it has ended already
            entry.status = RUNNING
        self._runs.open(trial.trial_id, entry)
        self._show_status(None)

    def _find_lost(self, trial: Trial) -> TrialEntry | None:
        """Finds the entry of a trial that Tune has forgotten and now proposes again under another id."""
        for trial_id in sorted(self._lost):
            entry = self._table.trials[trial_id]
            if entry.initial_values == to_plain_values(trial.config):
                self._lost.remove(trial_id)
                rename_in_rungs(self._scheduler, trial_id, trial.trial_id)
                self._table.trials[trial.trial_id] = self._table.trials.pop(trial_id)
                return entry
        return None

    def _add_entry(self, trial: Trial) -> TrialEntry:
        entry = TrialEntry(name=f"trial-{len(self._table.trials):04d}", values=to_plain_values(trial.config))
        self._table.trials[trial.trial_id] = entry
        self._table.save()
        return entry

    def _end(self, trial: Trial, entry: TrialEntry) -> None:
        self._stop_rules.count_ended_trial(entry)
        if trial.trial_id in self._runs:
            self._runs.close(trial.trial_id)
        self._table.save()
        self._show_status(entry)

    def _show_status(self, ended: TrialEntry | None) -> None:
        self._show(
            build_status(
                self._table,
                mode=self._search.mode,
                trials=self._trials,
                rounds=self._rounds,
                ended=ended,
                seconds=self._stop_rules.seconds,
            )
        )


def get_crash_message(trial: Trial) -> str:
    """Returns the last line of a crashed trial's error."""
    error = trial.get_pickled_error()
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[-1][:FAILURE_CHARACTERS] if lines else "it crashed"
