"""Trains the runs of a comparison that are left, one after the other, and loads the finished ones."""

import logging
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from fednar_ray.config import Experiment
from fednar_ray.core.errors import BadInput, CheckpointError, ConfigError, TrackingUnavailable
from fednar_ray.core.reports import RoundRecord, RoundReport
from fednar_ray.core.stages import announce
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.alerts import Alert, find_alerts
from fednar_ray.experiments.alerts.callback import compute_chance_level
from fednar_ray.experiments.comparison.outputs import log_outputs
from fednar_ray.experiments.comparison.record import ComparisonRecord, PlannedRun
from fednar_ray.experiments.comparison.result import Comparison
from fednar_ray.experiments.fixed_execution import fix_execution
from fednar_ray.experiments.given import Given
from fednar_ray.experiments.pack_member import PackMember, build_shared_preparation
from fednar_ray.experiments.placement import ExecutionPlan
from fednar_ray.experiments.prepared import choose_primary_metric
from fednar_ray.experiments.result import Result
from fednar_ray.experiments.resume import Resumption, resume_from
from fednar_ray.experiments.train import train
from fednar_ray.federated.pack_trainer import PackTrainer
from fednar_ray.report.comparison_table import Outcome
from fednar_ray.report.run_plots import Variant
from fednar_ray.tracking.identity import read_identity
from fednar_ray.tracking.journal import load_records
from fednar_ray.tracking.locks import DirectoryLocked
from fednar_ray.tracking.reading import find_mlflow_run, list_children
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.shared_sender import SharedSender
from fednar_ray.tracking.stop_record import Stop, read_stop
from fednar_ray.tracking.store import Store
from fednar_ray.tracking.sync import sync
from fednar_ray.tracking.tags import PARENT_TAG
from fednar_ray.tracking.tracker import RunTracker

log = logging.getLogger("fednar_ray")


class Progress(NamedTuple):
    """One round of one of the comparison's runs."""

    done: int  # rounds of all runs, those of finished runs included
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

    def __init__(
        self, record: ComparisonRecord, store: Store, run_id: str, session: RaySession, given: Given, width: int
    ) -> None:
        self._record, self._store, self._run_id, self._session = record, store, run_id, session
        self._given, self._width = given, width
        self._prepare = build_shared_preparation(given)
        self._primary: str | None = None  # of the last run; all runs have the same
        self._done: dict[int, int] = {}  # the rounds of each run that are trained
        self._sender = SharedSender(store.uri)

    def train_all(self, parent: RunTracker) -> Generator[Progress, None, Comparison]:
        """Trains the remaining runs, and then writes the table and the plots."""
        resumptions = [self._find_resumption(run) for run in self._record.runs]
        self._end_abandoned()
        found: dict[int, Outcome] = {}
        for index, run in enumerate(self._record.runs):
            if resumptions[index] is None and run.directory is not None:
                found[index] = self._load_outcome(run)
                self._done[index] = self._record.document.experiment.federation.rounds
        left = [index for index in range(len(self._record.runs)) if index not in found]
        width = self._width
        with self._sender:
            for batch in (left[start : start + width] for start in range(0, len(left), width)):
                trainings = {index: self._start(index, resumptions[index], len(batch)) for index in batch}
                found |= yield from self._train_together(trainings)
            outcomes: dict[Variant, list[Outcome]] = {}
            for index, run in enumerate(self._record.runs):
                outcomes.setdefault(run.variant, []).append(found[index])
            result = log_outputs(parent, self._record, outcomes, self._primary)
            announce("sending the last records to MLflow")
        return result

    def _train_together(self, trainings: dict[int, "_Training"]) -> Generator[Progress, None, dict[int, Outcome]]:
        """Trains runs round by round, one round of each at a time. If one of them fails, the others are interrupted."""
        outcomes: dict[int, Outcome] = {}
        pack = PackTrainer()
        with ExitStack() as stack:
            for training in trainings.values():
                stack.callback(training.rounds.close)
            while trainings:
                if len(trainings) > 1:
                    starts = [training.member.start_next_round() for training in trainings.values() if training.member]
                    pack.train_ahead([start for start in starts if start is not None])
                for index, training in list(trainings.items()):
                    try:
                        report = next(training.rounds)
                    except StopIteration as end:
                        outcomes[index] = _build_outcome(end.value.history, end.value.alerts, end.value.stop)
                        self._done[index] = self._record.document.experiment.federation.rounds
                        del trainings[index]
                    else:
                        self._done[index] = report.round_index + 1
                        yield Progress(sum(self._done.values()), training.label, report, training.primary)
        return outcomes

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

    def _start(self, index: int, resumption: Resumption | None, together: int) -> "_Training":
        """Returns the training of a run, one of so many that are trained together. Nothing is trained yet."""
        run, runs = self._record.runs[index], len(self._record.runs)

        def on_start(directory: Path, plan: ExecutionPlan) -> None:
            run.directory, run.group_size, run.compiled = directory.name, plan.group_size, plan.compiled
            self._record.save()

        experiment = self._build_experiment(run) if resumption is None else resumption.experiment
        member = None
        if together > 1:
            prepared, member = self._prepare(_place_in_this_process(experiment))
        else:
            prepared = self._given.prepare(experiment, self._session)
        self._primary = prepared.primary
        rounds = train(
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
            member=member,
            sender=self._sender,
        )
        what = f"{together} runs together" if together > 1 else f"{index + 1} of {runs}"
        return _Training(f"training {what}, {run.label}", prepared.primary, rounds, member)

    def _load_outcome(self, run: PlannedRun) -> Outcome:
        directory, experiment = self._record.find_directory(run), self._build_experiment(run)
        assert directory is not None
        _send_rest(directory)
        history = load_records(directory)[: experiment.federation.rounds]
        federation = self._given.load_data(experiment, self._session)
        self._primary, chance = choose_primary_metric(experiment, federation), compute_chance_level(federation)
        alerts = find_alerts(experiment, history, chance, is_compared=True)
        return _build_outcome(history, alerts, read_stop(directory))


def _build_outcome(history: Sequence[RoundRecord], alerts: Sequence[Alert], stop: Stop | None) -> Outcome:
    names, messages = tuple(a.name for a in alerts), tuple(a.message for a in alerts)
    return Outcome(tuple(history), names, messages, "" if stop is None else str(stop))


def _send_rest(directory: Path) -> None:
    """Sends what a finished run owes MLflow, if the process was killed before it had sent everything."""
    try:
        sync(directory)
    except TrackingUnavailable as error:
        log.warning("MLflow does not have everything of %s: %s", directory, error)


def _read_run_id(directory: Path) -> str:
    """Returns the MLflow run of a run directory; if its run.json is damaged, the part in the directory's name."""
    try:
        return read_identity(directory).run_id
    except BadInput:
        return directory.name.rpartition("-")[2]


class _Training(NamedTuple):
    """A run of the comparison that is being trained."""

    label: str
    primary: str
    rounds: Generator[RoundReport, None, Result]
    member: PackMember | None  # if it is trained together with others


def _place_in_this_process(experiment: Experiment) -> Experiment:
    """Returns the experiment as it is trained together with others. Rows of a shared matrix are not compiled."""
    execution = experiment.execution.model_copy(update={"placement": "serial", "compile": "off"})
    return experiment.model_copy(update={"execution": execution})
