"""Starts a run from the beginning, or from the checkpoint of an interrupted run.

``NewRun`` and ``ResumedRun`` have the same methods, so that training is the same for both.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from fednar_ray.checkpoint.locations import open_storage
from fednar_ray.checkpoint.store import CheckpointStore
from fednar_ray.config import Experiment
from fednar_ray.core.errors import ConfigError
from fednar_ray.core.stages import announce
from fednar_ray.experiments.checkpoint_contents import check_fits
from fednar_ray.experiments.iter_rounds import build_initial_state
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.experiments.resume import Resumption
from fednar_ray.federated.server_state import FederationState
from fednar_ray.tracking.journal import Journal
from fednar_ray.tracking.quiet import quiet_libraries
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.run_lookup import find_checkpoint_location
from fednar_ray.tracking.shared_sender import SharedSender
from fednar_ray.tracking.stop_record import read_stop
from fednar_ray.tracking.store import Store
from fednar_ray.tracking.system_metrics import SystemMetrics
from fednar_ray.tracking.tags import COPIED_FROM_TAG, PARENT_TAG
from fednar_ray.tracking.tracker import RunTracker

log = logging.getLogger("fednar_ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedStore:
    """A tracking store, and the MLflow experiment in which a run is created. None: no run is created."""

    store: Store
    experiment_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """The MLflow run and the directory of a run."""

    store: Store
    run_id: str
    directory: Path


def open_store(experiment: Experiment) -> tuple[Store, str]:
    """Opens the tracking store of an experiment, which must answer.

    Returns:
        The store, and the id of the MLflow experiment there.

    Raises:
        TrackingUnavailable: The store does not answer.
    """
    quiet_libraries()
    store = Store(experiment.tracking.uri)
    announce(f"opening MLflow at {store.uri}")
    return store, _open_experiment(store, experiment)


def _open_experiment(store: Store, experiment: Experiment) -> str:
    store.check()
    return store.ensure_experiment(experiment.tracking.experiment or experiment.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run that starts before round 0, with a new MLflow run and a new directory."""

    prepared: Prepared
    name: str | None = None  # of the MLflow run; None: the experiment's
    tags: Mapping[str, str] = field(default_factory=dict)
    sender: SharedSender | None = None  # shared with other runs

    is_new: ClassVar[bool] = True
    first_round: ClassVar[int | None] = None  # the round at which a run resumes
    is_finished: ClassVar[bool] = False

    def check(self) -> None:
        """Raises BadInput for problems that can be found before Ray starts."""
        Store(self.prepared.experiment.tracking.uri)  # refuses an address with a password

    def open_store(self) -> OpenedStore:
        """Opens the experiment's store. Raises TrackingUnavailable if it does not answer."""
        store, experiment_id = open_store(self.prepared.experiment)
        return OpenedStore(store=store, experiment_id=experiment_id)

    def check_data(self, data_digest: str) -> None:
        """Does nothing, since a new run accepts any data."""

    def open_run(self, opened: OpenedStore) -> RunIdentity:
        """Creates the MLflow run, and returns it with the directory."""
        experiment = self.prepared.experiment
        assert opened.experiment_id is not None
        run_id = opened.store.create_run(opened.experiment_id, self.name or experiment.name, self.tags)
        return RunIdentity(
            store=opened.store, run_id=run_id, directory=RunDirectory.of_run(experiment.name, run_id).path
        )

    def build_tracker(self, identity: RunIdentity) -> RunTracker:
        """Returns the tracker of the MLflow run."""
        return RunTracker(
            identity.store, identity.run_id, identity.directory, parent_id=self.tags.get(PARENT_TAG), sender=self.sender
        )

    def build_system_metrics(self, identity: RunIdentity) -> SystemMetrics:
        """Returns the recorder of system metrics."""
        enabled = self.prepared.experiment.tracking.system_metrics
        return SystemMetrics(enabled, identity.run_id, identity.store.uri, resumed=False)

    def open_journal(self, directory: Path) -> Journal:
        """Opens an empty journal in the run's directory."""
        return Journal(directory, self.prepared.experiment)

    def load_state(self, directory: Path) -> FederationState:
        """Returns the state before round 0."""
        return build_initial_state(self.prepared, directory)

    def open_checkpoints(self, directory: Path) -> CheckpointStore:
        """Returns the store of the run's checkpoints, which is empty."""
        settings = self.prepared.experiment.checkpoint
        return CheckpointStore(
            open_storage(find_checkpoint_location(self.prepared.experiment, directory)), settings.keep
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumedRun:
    """A run that continues from a checkpoint, in its MLflow run and its directory.

    A run whose directory was copied gets a new MLflow run, so that two runs never record into one.
    """

    prepared: Prepared
    resumption: Resumption
    name: str | None = None  # of the new MLflow run of a copy, as are the tags
    tags: Mapping[str, str] = field(default_factory=dict)
    sender: SharedSender | None = None  # shared with other runs

    is_new: ClassVar[bool] = False

    @property
    def first_round(self) -> int | None:
        """The round at which the run resumes."""
        return self.resumption.checkpoint.next_round

    @property
    def is_finished(self) -> bool:
        """Whether the run is finished and has no rounds left: a callback ended it, or it has trained all of them."""
        rounds, done = self.prepared.experiment.federation.rounds, self.resumption.checkpoint.next_round
        stop = read_stop(self.resumption.ref.directory)
        enough = done if stop is None or stop.rounds != done else stop.planned
        return self.resumption.ref.files.finished and enough >= rounds

    def check(self) -> None:
        """Raises BadInput or CheckpointError for problems that can be found before Ray starts."""
        check_fits(self.resumption.checkpoint, build_initial_state(self.prepared).now, self.resumption.ref.name)
        Store(self.resumption.tracking_uri)  # refuses an address with a password

    def open_store(self) -> OpenedStore:
        """Opens the run's store. It must answer only if the run is a copy, which needs a new MLflow run in it."""
        store = Store(self.resumption.tracking_uri)
        if not self._is_copy(store):
            return OpenedStore(store=store, experiment_id=None)
        return OpenedStore(store=store, experiment_id=_open_experiment(store, self.prepared.experiment))

    def _is_copy(self, store: Store) -> bool:
        """Returns whether the run's directory was copied, so that another one continues in its MLflow run."""
        original, identity = self.resumption.copied_from, self.resumption.identity
        directory = self.resumption.ref.directory
        if original is not None:
            log.warning("%s is a copy of %s: it gets a new MLflow run", directory, original)
            return True
        if identity is None or identity.writer is None:
            return False
        writer = store.find_last_writer(identity.run_id)
        if writer is None or writer in identity.writers:
            return False
        log.warning(
            "MLflow run %s was resumed from another copy of %s: this one gets a new MLflow run",
            identity.run_id, directory,
        )  # fmt: skip
        return True

    def check_data(self, data_digest: str) -> None:
        """Raises ConfigError if the data changed since the run was started."""
        if data_digest != self.resumption.data_digest:
            raise ConfigError((f"{self.resumption.ref.name}: the data changed since the run was started",))

    def open_run(self, opened: OpenedStore) -> RunIdentity:
        """Returns the run's MLflow run, even if its store does not answer; creates a new one for a copy."""
        run_id, directory = self.resumption.run_id, self.resumption.ref.directory
        if opened.experiment_id is not None:
            tags = {**self.tags, COPIED_FROM_TAG: run_id}
            run_id = opened.store.create_run(opened.experiment_id, self.name or self.prepared.experiment.name, tags)
        return RunIdentity(store=opened.store, run_id=run_id, directory=directory)

    def build_tracker(self, identity: RunIdentity) -> RunTracker:
        """Returns the tracker of the MLflow run."""
        copied = identity.run_id != self.resumption.run_id
        return RunTracker(
            identity.store,
            identity.run_id,
            identity.directory,
            resumed=not copied,
            copied=copied,
            parent_id=self.tags.get(PARENT_TAG),
            sender=self.sender,
        )

    def build_system_metrics(self, identity: RunIdentity) -> SystemMetrics:
        """Returns the recorder of system metrics."""
        enabled = self.prepared.experiment.tracking.system_metrics
        return SystemMetrics(enabled, identity.run_id, identity.store.uri, resumed=True)

    def open_journal(self, directory: Path) -> Journal:
        """Returns the journal, with the rounds of the checkpoint, and without later ones that may now differ."""
        RunDirectory(directory).finished_mark.unlink(missing_ok=True)
        RunDirectory(directory).stop.unlink(missing_ok=True)
        journal = Journal(directory, self.prepared.experiment, lines=self.resumption.checkpoint.history)
        if self.resumption.rewrites:
            journal.truncate(self.resumption.checkpoint.next_round)
        return journal

    def load_state(self, directory: Path) -> FederationState:
        """Restores the state from the checkpoint."""
        checkpoint = self.resumption.checkpoint
        log.info("resuming %s at round %d", self.resumption.ref.name, checkpoint.next_round)
        return FederationState.from_checkpoint(checkpoint, build_initial_state(self.prepared, directory))

    def open_checkpoints(self, directory: Path) -> CheckpointStore:
        """Returns the store that the checkpoint was loaded from, unless checkpoints are now written elsewhere.

        That store does not write files again that the checkpoint has.
        """
        settings, location = (
            self.prepared.experiment.checkpoint,
            find_checkpoint_location(self.prepared.experiment, directory),
        )
        if self.resumption.ref.storage != location:
            return CheckpointStore(open_storage(location), settings.keep)
        self.resumption.checkpoints.keep = settings.keep
        return self.resumption.checkpoints


RunStart = NewRun | ResumedRun


def build_start(
    prepared: Prepared,
    resumption: Resumption | None,
    name: str | None,
    tags: Mapping[str, str],
    sender: SharedSender | None,
) -> RunStart:
    """Builds the start of a run: a ResumedRun, or a NewRun if there is nothing to resume."""
    if resumption is None:
        return NewRun(prepared=prepared, name=name, tags=tags, sender=sender)
    return ResumedRun(prepared=prepared, resumption=resumption, name=name, tags=tags, sender=sender)
