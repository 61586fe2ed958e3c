"""Runs an experiment: trains it, records it in MLflow and in a run directory, and checkpoints it."""

import hashlib
import logging
import shlex
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from torch import nn

from fednar_ray.config import Experiment, compute_digest
from fednar_ray.core.callbacks import CallbackList, RoundCallback, RunInfo
from fednar_ray.core.errors import ConfigError, RunFailed
from fednar_ray.core.flat_params import FloatVector, load_buffers, load_parameters
from fednar_ray.core.generators import drain
from fednar_ray.core.module_state import copy_with_leaf_parameters
from fednar_ray.core.postprocessing import append_postprocessing
from fednar_ray.core.preprocessing import join_preprocessing
from fednar_ray.core.reports import RoundRecord, RoundReport
from fednar_ray.data.federation import Federation
from fednar_ray.execution.actor_info import ActorInfo
from fednar_ray.execution.prometheus import RoundMetrics
from fednar_ray.execution.session import RaySession
from fednar_ray.execution.shared_session import open_session
from fednar_ray.experiments.alerts import Alert, find_alerts
from fednar_ray.experiments.alerts.callback import AlertCallback, compute_chance_level
from fednar_ray.experiments.artifacts import (
    log_client_names,
    log_inputs,
    log_optional_file,
    log_outputs,
    log_page,
)
from fednar_ray.experiments.checkpoint_callback import CheckpointCallback
from fednar_ray.experiments.given import Given, add_metrics, name_metrics
from fednar_ray.experiments.iter_rounds import build_initial_state, train_rounds
from fednar_ray.experiments.placement import ExecutionPlan, open_pool, plan_execution
from fednar_ray.experiments.prepare import Prepared
from fednar_ray.experiments.resume import Resumption, resume_from
from fednar_ray.experiments.run_facts import collect_facts
from fednar_ray.experiments.run_start import ResumedRun, RunIdentity, RunStart, build_start
from fednar_ray.federated.evaluation import SPLITS, list_metric_names
from fednar_ray.federated.server_state import FederationState
from fednar_ray.report.chart import render_card
from fednar_ray.report.facts import RunFacts
from fednar_ray.report.notebook_progress import open_progress
from fednar_ray.report.notes import note_run
from fednar_ray.report.run_view import build_run_chart, build_run_frame, describe_run, tabulate_run
from fednar_ray.tracking.file_writes import raise_as_run_failed
from fednar_ray.tracking.journal import Journal
from fednar_ray.tracking.locks import lock_run_directory
from fednar_ray.tracking.mlflow import RunTracker, Store
from fednar_ray.tracking.mlflow_names import START_UP
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.stop_record import Stop, read_stop
from fednar_ray.tracking.tags import END_TAG, PARENT_TAG
from fednar_ray.tracking.ui_url import build_run_url

log = logging.getLogger("fednar_ray")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Result:
    """A finished run: its rounds, its model, and where it was recorded.

    A notebook shows it as a table and a curve.

    Examples:
        >>> result = fr.run(fr.load("digits"))
        >>> result.to_frame()["test_accuracy"].max()
        >>> result.plot("clip_fraction")
    """

    experiment: Experiment
    history: tuple[RoundRecord, ...]  # one record per round
    parameters: FloatVector  # [d] the final iterate
    model: nn.Module  # takes raw inputs; has the evaluated parameters (FedExP: the average of the last two iterates)
    run_id: str  # the id of the MLflow run
    tracking_uri: str
    directory: Path  # runs/<name>-<id>
    placement: str  # serial, pooled or dedicated
    places: tuple[ActorInfo, ...]  # where each actor lived; for dedicated by client; empty if no round was trained
    group_size: int  # C, how many clients were trained as one matrix
    resumed_from_round: int | None  # None: the run was started by this process
    alerts: tuple[Alert, ...]  # what a person should look at
    client_names: tuple[str, ...]  # by client id; "0", "1", … if the clients have no names
    primary: str  # the metric that counts, without its split
    stop: Stop | None = None  # why a callback ended the run early; None: all rounds were trained

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of the last round, by name."""
        return self.history[-1].metrics

    @property
    def parameters_sha256(self) -> str:
        """SHA-256 of the final parameters, flat little-endian float32."""
        return hashlib.sha256(np.ascontiguousarray(self.parameters, dtype="<f4").tobytes()).hexdigest()

    @property
    def url(self) -> str | None:
        """The run's page in MLflow's UI; None if MLflow is a local file, which ``fednar ui`` shows."""
        return build_run_url(self.tracking_uri, self.run_id)

    def to_frame(self) -> pd.DataFrame:
        """Returns the metrics as a data frame: one row per round, counted from 0, and one column per metric."""
        return build_run_frame(self.history)

    def plot(self, metric: str | None = None, *, axes: Axes | None = None) -> Axes:
        """Draws a metric over rounds.

        Args:
            metric: Its name, such as ``train_loss``. None: the primary metric, on all splits.
            axes: The matplotlib axes to draw into; None: new ones.

        Returns:
            The axes.

        Raises:
            BadInput: No round has the metric.
        """
        return build_run_chart(self.history, self.experiment.name, self.primary, metric).plot(axes)

    def __repr__(self) -> str:
        return f"<{self._summary}; {self.directory.name}>"

    @property
    def _summary(self) -> str:
        return describe_run(self.experiment.name, self.history, self.primary, self.stop)

    def _repr_html_(self) -> str:
        """Returns the table and the curve that a notebook shows."""
        chart = build_run_chart(self.history, self.experiment.name, self.primary)
        notes = [f"{alert.name}: {alert.message}" for alert in self.alerts]
        return render_card(self._summary, tabulate_run(self.history, self.primary), chart, notes)


def run(
    experiment: Experiment | None = None,
    *,
    federation: Federation | None = None,
    model: nn.Module | None = None,
    metrics: Sequence[Callable[..., Any]] = (),
    callbacks: Sequence[RoundCallback] = (),
    session: RaySession | None = None,
    progress: bool | None = None,
    resume: str | Path | None = None,
    resume_newest: bool = False,
    may_change: Sequence[str] = (),
) -> Result:
    """Trains an experiment, and records it in MLflow and in ``runs/``.

    Args:
        experiment: The experiment. It can be left out if ``resume`` names a run, which then keeps its experiment.
        federation: The data, in place of the experiment's ``data`` section.
        model: The model, in place of the experiment's ``model`` section. It is copied; training starts from its
            parameters.
        metrics: Metrics of your own: functions of (y, predictions), or of (y, outputs) if the second parameter is
            called outputs, that return a number, of which higher is better. They are added to ``evaluation.metrics``.
        callbacks: What observes the run, and may end it, such as ``fr.EarlyStopping``. See ``fr.RoundCallback``.
        session: The Ray session. Without one, all calls share one Ray until the process ends; see ``fr.shutdown``.
        progress: Whether to show the progress. None: in a notebook and in IPython.
        resume: A run to resume from its newest whole checkpoint: its name, id or directory, or the path or URI of its
            checkpoints.
        resume_newest: Whether to resume the newest run of the experiment. If it has none, a new run is started.
        may_change: Keys or sections of the experiment that may differ from those that the run was started with.
            ``federation.rounds`` may always grow, and ``execution`` and ``checkpoint`` may always change. A run that a
            callback has ended is finished; it continues only if it is resumed with more rounds than it had planned.

    Returns:
        The finished run.

    Raises:
        BadInput: An argument, the data or the model is invalid. Nothing has been trained.
        RunFailed: The run had started and could not be finished.

    Examples:
        >>> result = fr.run(fr.load("digits"))
        >>> longer = fr.run(fr.load("digits", ["federation.rounds=200"]), resume=result.directory)
    """
    if resume is not None and resume_newest:
        raise ConfigError(("resume: set only one of resume= and resume_newest=",))
    if experiment is None and resume is None:
        raise ConfigError(("experiment: missing; pass experiment=, or resume= to continue a run",))
    given = Given(federation=federation, model=model, metrics=name_metrics(metrics))
    if experiment is not None:
        experiment = add_metrics(experiment, given.metrics)
    resumption = None
    if resume is not None or resume_newest:
        resumption = resume_from(None if resume is None else str(resume), experiment, may_change)
    settings = experiment if resumption is None else resumption.experiment
    assert settings is not None
    with open_session(session) as ray_session, open_progress(progress, settings.federation.rounds) as show:
        prepared = given.prepare(settings, ray_session)
        with closing(train(prepared, ray_session, resumption=resumption, callbacks=callbacks)) as training:
            return drain(
                training, lambda report: show(report.round_index + 1, settings.name, report.metrics, prepared.primary)
            )


def register(result: Result, name: str) -> int:
    """Registers a run's model in MLflow's model registry.

    Args:
        result: The run.
        name: The registered model, which is created if it is new.

    Returns:
        The version that the model got.

    Raises:
        BadInput: MLflow does not accept the name.
        TrackingUnavailable: MLflow does not answer, or has not received the model yet.
    """
    store = Store(result.tracking_uri)
    store.check_registration(name)
    return store.register_model(result.run_id, name)


def train(
    prepared: Prepared,
    session: RaySession,
    *,
    tags: Mapping[str, str] | None = None,
    name: str | None = None,
    resumption: Resumption | None = None,
    on_start: Callable[[Path, int], None] | None = None,
    ready_first: bool = False,
    with_page: bool = True,
    callbacks: Sequence[RoundCallback] = (),
    actors_of: str | None = None,
) -> Generator[RoundReport, None, Result]:
    """Trains and records a run, yielding one report per round. The generator returns the result.

    Args:
        prepared: The experiment with its data and model.
        session: The Ray session that clients train in.
        tags: Tags of a new MLflow run.
        name: Name of a new MLflow run; None: the experiment's. Log lines call the run by it, too.
        resumption: The run and checkpoint to resume from. None starts a new run.
        on_start: Called before the first round of a new run, with its directory and its client group size.
        ready_first: Whether the first round waits until all actors have warmed up, so that its time is comparable.
        with_page: Whether the run gets a page of its own; those of a comparison are part of the comparison's page.
        callbacks: The caller's callbacks, which see each round after it was recorded.
        actors_of: The name by which Ray's dashboard names the actors; None: the name of the run,
            or of the experiment.
    """
    _prepare_callbacks(prepared, callbacks)
    start = build_start(prepared, resumption, name, tags or {})
    start.check()
    if isinstance(start, ResumedRun) and start.is_finished:
        return _load_result(start)
    with ThreadPoolExecutor(1) as background:
        opening = background.submit(start.open_store)
        digesting = background.submit(prepared.federation.digest)
        plan, starting = plan_execution(prepared, session), time.perf_counter()
        owner = actors_of or start.name or prepared.experiment.name  # MLflow's id of the run is not known yet
        with open_pool(prepared, plan, session, owner=owner) as pool, CallbackList() as started:
            opened, data_digest = opening.result(), digesting.result()
            start.check_data(data_digest)
            identity = start.open_run(opened)
            tracked = _start_callbacks(started, start, identity, plan, data_digest, on_start, is_compared=not with_page)
            tracked.start_callbacks(callbacks, started)
            pool.wait_until_ready(first=not ready_first)
            if start.is_new:
                tracked.tracker.log_metrics({START_UP: time.perf_counter() - starting})
            reason = None
            for report in train_rounds(prepared, plan, pool, tracked.state):
                reason = started.on_round_end(report)
                yield report
                if reason is not None:
                    break
            places = tuple(pool.list_actors())
            result = tracked.build_result(places, reason)
            _log_end(tracked, result, collect_facts(prepared, plan, places, data_digest), with_page=with_page)
    mark = RunDirectory(result.directory).finished_mark
    with raise_as_run_failed(mark):
        mark.touch()
    return result


def _log_end(tracked: "_TrackedRun", result: Result, facts: RunFacts, *, with_page: bool) -> None:
    """Logs what a run leaves at its end: the model, its facts, its page, and the note that MLflow shows first."""
    prepared, tracker, files = tracked.start.prepared, tracked.tracker, RunDirectory(result.directory)
    log_outputs(prepared, tracker, result.directory, result.history, result.model)
    log_optional_file(tracker, facts.write, files.facts)
    if with_page:
        log_page(prepared, tracker, result.directory, result.history, facts, result.alerts)
    page = files.report.name if with_page else None
    note = note_run(prepared.experiment, result.history, prepared.primary, facts, page)
    tracker.log_note(note, None if PARENT_TAG in tracked.start.tags else result.directory.name)
    if result.stop is not None:
        result.stop.save(result.directory)
        tracker.log_tags({END_TAG: str(result.stop)})


@dataclass(frozen=True, slots=True, kw_only=True)
class _TrackedRun:
    """A run that is being trained, with the callbacks from which its result is built."""

    start: RunStart
    identity: RunIdentity
    plan: ExecutionPlan
    tracker: RunTracker
    journal: Journal
    alerts: AlertCallback
    state: FederationState

    def start_callbacks(self, callbacks: Sequence[RoundCallback], started: CallbackList) -> None:
        """Starts the caller's callbacks, and tells them about the rounds that were trained before."""
        for callback in callbacks:
            started.start(callback)
            if self.start.first_round is not None:
                callback.on_resume(self.journal.get_records()[: self.start.first_round])

    def build_result(self, places: tuple[ActorInfo, ...], reason: str | None) -> Result:
        """Returns the result of the run after its last round; ``reason`` is why it may be the last one."""
        prepared = self.start.prepared
        rounds, done = prepared.experiment.federation.rounds, self.state.now.next_round
        stop = None
        if reason is not None and done < rounds:
            stop = Stop(rounds=done, planned=rounds, reason=reason)
        return Result(
            experiment=prepared.experiment,
            history=self.journal.get_records()[:done],
            parameters=self.state.now.server.parameters,
            model=_build_model(prepared, self.state),
            run_id=self.identity.run_id,
            tracking_uri=self.identity.store.uri,
            directory=self.identity.directory,
            placement=self.plan.placement,
            places=places,
            group_size=self.plan.group_size,
            resumed_from_round=self.start.first_round,
            alerts=self.alerts.alerts,
            client_names=prepared.federation.client_names,
            primary=prepared.primary,
            stop=stop,
        )


def _prepare_callbacks(prepared: Prepared, callbacks: Sequence[RoundCallback]) -> None:
    """Tells the caller's callbacks about the run before anything is started. Raises BadInput if one does not fit."""
    problems = tuple(
        f"callbacks.{index}: {callback!r}: is not a callback; give an instance of a subclass of fr.RoundCallback"
        for index, callback in enumerate(callbacks)
        if not isinstance(callback, RoundCallback)
    )
    if problems:
        raise ConfigError(problems)
    experiment = prepared.experiment
    evaluation = experiment.evaluation
    metrics = list_metric_names(prepared.federation, SPLITS, federated=evaluation.federated, own=evaluation.own_metrics)
    info = RunInfo(name=experiment.name, rounds=experiment.federation.rounds, primary=prepared.primary, metrics=metrics)
    for callback in callbacks:
        callback.on_prepare(info)


def _start_callbacks(
    callbacks: CallbackList,
    start: RunStart,
    identity: RunIdentity,
    plan: ExecutionPlan,
    data_digest: str,
    on_start: Callable[[Path, int], None] | None,
    *,
    is_compared: bool,
) -> _TrackedRun:
    """Starts the callbacks: first the tracker, which locks the run directory for this process."""
    prepared, directory = start.prepared, identity.directory
    callbacks.start(ResumeHint(prepared.experiment, directory))
    tracker = callbacks.start(start.build_tracker(identity))
    if on_start is not None and start.is_new:
        on_start(directory, plan.group_size)
    callbacks.start(start.build_system_metrics(identity))
    journal = callbacks.start(start.open_journal(directory))
    if start.is_new:
        log_inputs(prepared, plan, tracker, directory, data_digest, nested=PARENT_TAG in start.tags)
    else:
        log_client_names(prepared, tracker, directory)
    tracker.follow(journal)  # MLflow may not have received all earlier rounds of a resumed run
    label, history = start.name or directory.name, journal.get_records()
    alerts = callbacks.start(AlertCallback(label, prepared, tracker, history, is_compared=is_compared))
    state = start.load_state(directory)
    callbacks.start(
        CheckpointCallback(
            start.open_checkpoints(directory),
            prepared.experiment.checkpoint.every,
            state,
            journal,
            _build_facts(prepared.experiment, identity, plan, data_digest),
            start.first_round,
        )
    )
    callbacks.start(RoundMetrics(directory.name))
    return _TrackedRun(
        start=start, identity=identity, plan=plan, tracker=tracker, journal=journal, alerts=alerts, state=state
    )


def _build_facts(
    experiment: Experiment, identity: RunIdentity, plan: ExecutionPlan, data_digest: str
) -> dict[str, Any]:
    """Returns what a checkpoint records about its run."""
    return {
        "experiment": experiment.model_dump(mode="json", exclude_none=True),
        "experiment_sha256": compute_digest(experiment),
        "data_digest": data_digest,
        "run_id": identity.run_id,
        "tracking_uri": identity.store.uri,
        "placement": plan.placement,
        "group_size": plan.group_size,
    }


class ResumeHint(RoundCallback):
    """Adds a note to the error that ended a run: how to resume it."""

    def __init__(self, experiment: Experiment, directory: Path) -> None:
        self._experiment, self._directory = experiment, directory

    def on_error(self, error: BaseException) -> None:
        """Adds the note if the run has a checkpoint to resume from."""
        kept = self._experiment.checkpoint.every is not None and RunDirectory(self._directory).journal.exists()
        if isinstance(error, RunFailed) and kept:
            command = f"fednar run --resume {shlex.quote(self._directory.name)}"
            error.add_note(f"once the cause is fixed, resume with: {command}")


def _load_result(start: ResumedRun) -> Result:
    """Loads the result of a finished run from its last checkpoint. Nothing is trained or sent to MLflow."""
    prepared, resumption = start.prepared, start.resumption
    checkpoint, directory = resumption.checkpoint, resumption.ref.directory
    state = FederationState.from_checkpoint(checkpoint, build_initial_state(prepared))
    with lock_run_directory(directory), Journal(directory, prepared.experiment, lines=checkpoint.history) as journal:
        history = journal.get_records()
    return Result(
        experiment=prepared.experiment,
        history=history,
        parameters=state.now.server.parameters,
        model=_build_model(prepared, state),
        run_id=resumption.run_id,
        tracking_uri=resumption.tracking_uri,
        directory=directory,
        placement=checkpoint.facts["placement"],
        places=(),
        group_size=checkpoint.facts["group_size"],
        resumed_from_round=checkpoint.next_round,
        alerts=find_alerts(
            prepared.experiment,
            history,
            compute_chance_level(prepared.federation),
            prepared.federation.client_names,
        ),
        client_names=prepared.federation.client_names,
        primary=prepared.primary,
        stop=read_stop(directory),
    )


def _build_model(prepared: Prepared, state: FederationState) -> nn.Module:
    """Returns the model with the parameters that are evaluated, from raw inputs to outputs in the label's unit."""
    module = copy_with_leaf_parameters(prepared.model).cpu()
    load_parameters(module, prepared.algorithm.server.eval_params(state.now.server))
    load_buffers(module, state.now.buffers, prepared.traits.changed_buffers)
    federation = prepared.federation
    return append_postprocessing(join_preprocessing(federation.preprocessing, module.eval()), federation.target_scale)
