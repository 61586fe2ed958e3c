"""A run that is being trained, with the callbacks that record it, and those of the caller."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednar_ray.config import Experiment, compute_digest
from fednar_ray.core.callbacks import CallbackList, RoundCallback
from fednar_ray.core.errors import RunFailed
from fednar_ray.execution.actor_info import ActorInfo
from fednar_ray.execution.prometheus import RoundMetrics
from fednar_ray.experiments.alerts.callback import AlertCallback
from fednar_ray.experiments.artifacts import log_client_names, log_inputs
from fednar_ray.experiments.checkpoint_callback import CheckpointCallback
from fednar_ray.experiments.placement import ExecutionPlan
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.experiments.private_runs import get_key_name
from fednar_ray.experiments.result import Result, build_final_model
from fednar_ray.experiments.run_start import RunIdentity, RunStart
from fednar_ray.federated.server_state import FederationState
from fednar_ray.tracking.journal import Journal
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.stop_record import Stop
from fednar_ray.tracking.tags import PARENT_TAG
from fednar_ray.tracking.tracker import RunTracker


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
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
            model=build_final_model(prepared, self.state),
            run_id=self.identity.run_id,
            tracking_uri=self.identity.store.uri,
            directory=self.identity.directory,
            placement=self.plan.placement,
            places=places,
            group_size=self.plan.group_size,
            compiled=self.plan.compiled,
            resumed_from_round=self.start.first_round,
            alerts=self.alerts.alerts,
            client_names=prepared.federation.client_names,
            primary=prepared.primary,
            stop=stop,
        )


def start_tracked_run(
    callbacks: CallbackList,
    start: RunStart,
    identity: RunIdentity,
    plan: ExecutionPlan,
    data_digest: str,
    on_start: Callable[[Path, ExecutionPlan], None] | None,
    *,
    is_compared: bool,
) -> TrackedRun:
    """Starts the callbacks: first the tracker, which locks the run directory for this process."""
    prepared, directory = start.prepared, identity.directory
    callbacks.start(ResumeHint(prepared.experiment, directory))
    tracker = callbacks.start(start.build_tracker(identity))
    if on_start is not None and start.is_new:
        on_start(directory, plan)
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
            _build_checkpoint_facts(prepared, identity, plan, data_digest),
            start.first_round,
        )
    )
    callbacks.start(RoundMetrics(directory.name))
    return TrackedRun(
        start=start, identity=identity, plan=plan, tracker=tracker, journal=journal, alerts=alerts, state=state
    )


def _build_checkpoint_facts(
    prepared: Prepared, identity: RunIdentity, plan: ExecutionPlan, data_digest: str
) -> dict[str, Any]:
    """Returns what a checkpoint records about its run."""
    experiment = prepared.experiment
    return {
        "experiment": experiment.model_dump(mode="json", exclude_none=True),
        "experiment_sha256": compute_digest(experiment),
        "data_digest": data_digest,
        "run_id": identity.run_id,
        "tracking_uri": identity.store.uri,
        "placement": plan.placement,
        "group_size": plan.group_size,
        "compiled": plan.compiled,
        **get_key_name(prepared),
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
