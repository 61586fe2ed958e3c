"""Trains one federation of a trial. A trial has one federation per seed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from fednar_ray.checkpoint.locations import open_storage
from fednar_ray.checkpoint.store import CheckpointStore
from fednar_ray.config import Experiment, SearchSettings, flatten_settings
from fednar_ray.core.errors import RunFailed
from fednar_ray.core.flat_params import FloatVector
from fednar_ray.core.reports import RoundRecord, RoundReport
from fednar_ray.execution.devices import check_device
from fednar_ray.execution.serial import SerialPool
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.checkpoint_contents import check_fits, read_trial_experiment
from fednar_ray.experiments.given import NOTHING_GIVEN, Given
from fednar_ray.experiments.iter_rounds import build_initial_state, build_round_plan, train_rounds
from fednar_ray.experiments.pack_member import build_shared_preparation
from fednar_ray.experiments.placement import CPU_DEVICE, ExecutionPlan, open_pool, plan_execution, plan_in_this_process
from fednar_ray.experiments.prepare import adapt
from fednar_ray.experiments.private_runs import draw_unsaved_key, get_key_name, keep_key, open_key
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.collection import RoundStart
from fednar_ray.federated.server_state import FederationState
from fednar_ray.tracking.journal import format_line, parse_line
from fednar_ray.tuning.trial_callbacks import TRIAL_SPLITS, TrialCallbacks
from fednar_ray.tuning.trial_report import Lineage

_share_preparation = lru_cache(maxsize=1)(build_shared_preparation)  # for the next trials of the process


class TrialFederation:
    """A federation that is trained some rounds at a time, and can be saved and restored in between.

    Args:
        experiment: What is trained.
        session: The Ray session that its actors belong to.
        owner: What Ray's dashboard calls the actors by.
        given: What takes the place of the experiment's sections.
        device: Where this process trains clients. None: where the experiment's placement says.

    Raises:
        BadInput: The experiment cannot be trained.
        DeviceError: The device does not compute in the experiment's precision.
    """

    def __init__(
        self,
        experiment: Experiment,
        session: RaySession,
        owner: str,
        given: Given = NOTHING_GIVEN,
        device: torch.device | None = None,
    ) -> None:
        self.experiment = experiment
        self.records: list[RoundRecord] = []
        prepared, self._member = _share_preparation(given, device or CPU_DEVICE)(experiment)
        self._prepared = draw_unsaved_key(prepared)
        self._given = given
        self._callbacks: TrialCallbacks | None = None  # until the first round
        self._resources = ExitStack()
        if device is None:
            self._execution = plan_execution(self._prepared, session)
        else:
            check_device(device, experiment.execution.precision)
            self._execution = plan_in_this_process(self._prepared, device)
        pool = open_pool(self._prepared, self._execution, session, self._member.trainer, owner)
        self._pool = self._resources.enter_context(pool)
        self._resume(build_initial_state(self._prepared))

    @property
    def rounds(self) -> int:
        """Number of rounds that are trained."""
        return self._state.now.next_round

    @property
    def parameters(self) -> FloatVector:
        """The parameters after the last round, [d]."""
        return self._state.now.server.parameters

    @property
    def execution(self) -> ExecutionPlan:
        """Where and how clients are trained."""
        return self._execution

    def _resume(self, state: FederationState) -> None:
        self._state = state
        self._member.enter(self._pool, build_round_plan(self._prepared, self._execution), state)
        self._reports: Iterator[RoundReport] = train_rounds(
            self._prepared, self._execution, self._pool, state, splits=TRIAL_SPLITS
        )

    def train(self, until: int) -> None:
        """Trains until ``until`` rounds are done. Raises RunFailed if a round fails."""
        if self._callbacks is None:
            self._callbacks = TrialCallbacks(self._prepared, self._given, self.records)
        try:
            while self.rounds < until:
                report = next(self._reports)
                self.records.append(report.record())
                self._callbacks.on_round_end(report)
        except BaseException as error:
            self._callbacks.close(error)
            raise

    def start_next_round(self) -> tuple[GroupTrainer, RoundStart] | None:
        """Returns the next round, and who trains it; None if actors do, or if no round is left."""
        return self._member.start_next_round()

    def set_neighbors(self, has_neighbors: bool) -> None:
        """Says whether this process trains other trials as well; see ``SerialPool``."""
        if isinstance(self._pool, SerialPool):
            self._pool.has_neighbors = has_neighbors

    @property
    def ended(self) -> str | None:
        """Why a callback has ended the training; None if none has."""
        return None if self._callbacks is None else self._callbacks.reason

    def save(self, directory: Path) -> None:
        """Writes a checkpoint of the federation into a directory."""
        lines = [format_line(record) for record in self.records]
        if get_key_name(self._prepared):
            keep_key(self._prepared)
        facts = {
            "experiment": self.experiment.model_dump(mode="json", exclude_none=True),
            **get_key_name(self._prepared),
        }
        CheckpointStore(open_storage(str(directory)), 1).save(self._state.take_snapshot(lines, facts))

    def load(self, directory: Path) -> None:
        """Restores the federation of a checkpoint, and applies this trial's settings from its next round on.

        The checkpoint may be of another trial, if population-based training copies one trial to another.

        Raises:
            RunFailed: The directory has no checkpoint.
        """
        checkpoint = CheckpointStore(open_storage(str(directory)), 1).load()
        if checkpoint is None:
            raise RunFailed(f"no checkpoint in {directory}")
        saved = read_trial_experiment(checkpoint)
        self.experiment = change_settings(saved, self.experiment, checkpoint.next_round)
        self._prepared = open_key(adapt(self._prepared, self.experiment), checkpoint.facts.get("privacy_key"))
        self.records = [parse_line(line) for line in checkpoint.history]
        self._end_callbacks()  # others are told about the rounds of the checkpoint
        start = build_initial_state(self._prepared)
        check_fits(checkpoint, start.now, str(directory))
        self._resume(FederationState.from_checkpoint(checkpoint, start))

    def find_lineage(self, search: SearchSettings) -> Lineage | None:
        """Returns where the settings come from; None if they never changed."""
        if self.experiment.changes is None:
            return None
        initial = flatten_settings(self.experiment)
        changes = {str(first_round): dict(values) for first_round, values in self.experiment.changes.items()}
        return Lineage(initial_values={key: initial[key] for key in search.space}, changes=changes)

    def close(self) -> None:
        """Ends the callbacks, and releases the federation's actors, if it has any."""
        try:
            self._end_callbacks()
        finally:
            self._resources.close()

    def _end_callbacks(self) -> None:
        callbacks, self._callbacks = self._callbacks, None
        if callbacks is not None:
            callbacks.close()


def change_settings(saved: Experiment, wanted: Experiment, next_round: int) -> Experiment:
    """Returns ``saved`` with a change from ``next_round`` on to each setting that differs in ``wanted``."""
    before, after = flatten_settings(saved.apply_changes(next_round)), flatten_settings(wanted)
    different = {key: v for key, v in after.items() if not key.startswith("changes.") and before.get(key) != v}
    if not different:
        return saved
    changes = {**(saved.changes or {}), next_round: different}
    return Experiment.model_validate({**saved.model_dump(exclude_none=True), "changes": changes})


def average_records(federations: Sequence[Sequence[RoundRecord]]) -> list[RoundRecord]:
    """Averages each round's metrics over the federations, for the rounds that all of them have trained.

    Everything else in a record, such as the clients, is that of the first federation.
    """
    if len(federations) == 1:
        return list(federations[0])
    return [replace(each[0], metrics=_average_metrics(each)) for each in zip(*federations, strict=False)]


def _average_metrics(records: Sequence[RoundRecord]) -> Mapping[str, float]:
    return {
        name: float(np.mean([record.metrics[name] for record in records]))
        for name in records[0].metrics
        if all(name in record.metrics for record in records)
    }
