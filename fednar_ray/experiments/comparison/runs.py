"""Trains the runs of a comparison that are left, one after the other, and loads the finished ones."""

import logging
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

from fednar_ray.config import Experiment
from fednar_ray.core.errors import BadInput, CheckpointError, ConfigError
from fednar_ray.core.reports import RoundRecord, RoundReport
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.alerts import Alert, find_alerts
from fednar_ray.experiments.alerts.callback import compute_chance_level
from fednar_ray.experiments.comparison.outputs import log_outputs
from fednar_ray.experiments.comparison.record import ComparisonRecord, PlannedRun
from fednar_ray.experiments.comparison.result import Comparison
from fednar_ray.experiments.fixed_execution import fix_execution
from fednar_ray.experiments.given import Given
from fednar_ray.experiments.placement import ExecutionPlan
from fednar_ray.experiments.prepare import choose_primary_metric
from fednar_ray.experiments.result import Result
from fednar_ray.experiments.resume import Resumption, resume_from
from fednar_ray.experiments.train import train
from fednar_ray.report.comparison_table import Outcome
from fednar_ray.report.run_plots import Variant
from fednar_ray.tracking.identity import read_identity
from fednar_ray.tracking.journal import load_records
from fednar_ray.tracking.locks import DirectoryLocked
from fednar_ray.tracking.reading import find_mlflow_run, list_children
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.stop_record import Stop, read_stop
from fednar_ray.tracking.store import Store
from fednar_ray.tracking.tags import PARENT_TAG
from fednar_ray.tracking.tracker import RunTracker

log = logging.getLogger("fednar_ray")


class Progress(NamedTuple):
    """One round of one of the comparison's runs."""

    run: int  # counted from 0
    runs: int
    label: str
    report: RoundReport
    primary: str  # the metric that counts, without its split


def is_finished(record: ComparisonRecord, run: PlannedRun) -> bool:
    """Returns whether a run has trained all rounds or was ended by a callback, and its last records are complete."""
    directory = record.find_directory(run)
    if directory is None or not RunDirectory(directory).finished:
        return False
    rounds = record.document.experiment.federation.rounds
    return len(load_records(directory)) >= rounds or read_stop(directory) is not None


class ComparisonRuns:
    """The runs of a comparison that is being trained."""

    def __init__(self, record: ComparisonRecord, store: Store, run_id: str, session: RaySession, given: Given) -> None:
        self._record, self._store, self._run_id, self._session = record, store, run_id, session
        self._given = given
        self._primary: str | None = None  # of the last run; all runs have the same

    def train_all(self, parent: RunTracker) -> Generator[Progress, None, Comparison]:
        """Trains the remaining runs, and then writes the table and the plots."""
        outcomes: dict[Variant, list[Outcome]] = {}
        resumptions = [self._find_resumption(run) for run in self._record.runs]
        self._end_abandoned()
        for index, (run, resumption) in enumerate(zip(self._record.runs, resumptions, strict=True)):
            outcome = yield from self._train_or_load(index, run, resumption)
            outcomes.setdefault(run.variant, []).append(outcome)
        return log_outputs(parent, self._record, outcomes, self._primary)

    def _find_resumption(self, run: PlannedRun) -> Resumption | None:
        """Returns where an interrupted run resumes; None if it is finished, or has to be trained from round 0."""
        directory = self._record.find_directory(run)
        if directory is None or is_finished(self._record, run):
            return None
        try:
            return resume_from(str(directory), self._build_experiment(run))
        except (ConfigError, DirectoryLocked):  # another experiment now; or a process that is training the run
            raise
        except (BadInput, CheckpointError) as error:
            log.warning("%s is trained from its first round: %s", run.label, error)
            run.directory = None
            return None

    def _end_abandoned(self) -> None:
        """Ends the MLflow runs that a killed process left and that are not resumed."""
        directories = [self._record.find_directory(run) for run in self._record.runs]
        kept = {_read_run_id(directory) for directory in directories if directory is not None}
        parent = find_mlflow_run(self._store, self._run_id)
        for child in () if parent is None else list_children(self._store, parent):
            if kept.isdisjoint((child.info.run_id, child.info.run_id[:8])):
                self._store.abandon_run(child.info.run_id)

    def _build_experiment(self, run: PlannedRun) -> Experiment:
        """Builds the run's experiment, which trains as the earlier runs did, even if those ran on other hardware."""
        base = self._record.document.experiment
        started = next((each for each in self._record.runs if each.group_size is not None), None)
        if started is not None:
            base = fix_execution(base, started.group_size, started.compiled)
        return run.build_experiment(base)

    def _train_or_load(
        self, index: int, run: PlannedRun, resumption: Resumption | None
    ) -> Generator[Progress, None, Outcome]:
        """Returns the outcome of a run, which is trained or resumed unless it is finished."""
        if resumption is None and run.directory is not None:
            return self._load_outcome(run)

        def on_start(directory: Path, plan: ExecutionPlan) -> None:
            run.directory, run.group_size, run.compiled = directory.name, plan.group_size, plan.compiled
            self._record.save()

        experiment = self._build_experiment(run) if resumption is None else resumption.experiment
        prepared = self._given.prepare(experiment, self._session)
        self._primary = prepared.primary
        training = train(
            prepared,
            self._session,
            tags={PARENT_TAG: self._run_id},
            name=run.label,
            resumption=resumption,
            on_start=on_start,
            ready_first=True,
            with_page=False,
            callbacks=self._given.build_callbacks(),
            actors_of=self._record.name,  # the runs share their actors
        )
        result = yield from _add_label(training, index, len(self._record.runs), run.label, prepared.primary)
        return _build_outcome(result.history, result.alerts, result.stop)

    def _load_outcome(self, run: PlannedRun) -> Outcome:
        directory, experiment = self._record.find_directory(run), self._build_experiment(run)
        assert directory is not None
        history = load_records(directory)[: experiment.federation.rounds]
        federation = self._given.load_data(experiment, self._session)
        self._primary, chance = choose_primary_metric(experiment, federation), compute_chance_level(federation)
        alerts = find_alerts(experiment, history, chance, is_compared=True)
        return _build_outcome(history, alerts, read_stop(directory))


def _build_outcome(history: Sequence[RoundRecord], alerts: Sequence[Alert], stop: Stop | None) -> Outcome:
    names, messages = tuple(a.name for a in alerts), tuple(a.message for a in alerts)
    return Outcome(tuple(history), names, messages, "" if stop is None else str(stop))


def _read_run_id(directory: Path) -> str:
    """Returns the MLflow run of a run directory; if its run.json is damaged, the part in the directory's name."""
    try:
        return read_identity(directory).run_id
    except BadInput:
        return directory.name.rpartition("-")[2]


def _add_label(
    training: Generator[RoundReport, None, Result], run: int, runs: int, label: str, primary: str
) -> Generator[Progress, None, Result]:
    """Turns the reports of a training into progress, and returns its result."""
    try:
        while True:
            yield Progress(run, runs, f"training {run + 1} of {runs}, {label}", next(training), primary)
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        training.close()
