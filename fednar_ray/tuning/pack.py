"""A pack: several trials that one process trains together, as Tune's Trainable.

Tune schedules, places, checkpoints and retries packs. Which trials a pack trains, the driver tells it between two steps
(see ``pack_scheduler``).
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from fednar_ray.core.errors import BadInput, DeviceError, RunFailed
from fednar_ray.execution.devices import choose_device
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.placement import CPU_DEVICE
from fednar_ray.federated.pack_trainer import PackTrainer
from fednar_ray.tuning.lockstep import train_together
from fednar_ray.tuning.trial import get_report_seconds, name_search
from fednar_ray.tuning.trial_plan import TrialPlan
from fednar_ray.tuning.trial_report import TrialReport, build_failure_report
from fednar_ray.tuning.trial_training import TrialTraining

log = logging.getLogger("fednar_ray")

REPORTS_KEY = "reports"  # in a pack's result: the reports of its trials by id; None before it knows its trials


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A trial that a pack is to train.

    Attributes:
        trial_id: Its id in the trial table.
        values: Its value of each searched key.
        checkpoints: Directories to continue from, newest first, if the pack does not have the trial yet. The first one
            that can be loaded is used. Without one, the trial starts at its first round.
    """

    trial_id: str
    values: Mapping[str, Any]
    checkpoints: tuple[str, ...] = ()


class PackTrainable(tune.Trainable):  # type: ignore[misc]
    """Trains several trials together.

    The first report of a process, also of one that takes the place of a crashed process, is empty: the driver then
    assigns the trials. A trial that fails ends alone, with a report that says why. A process that cannot use its GPU
    any more ends with an error, so that Tune starts another one.
    """

    def setup(self, config: dict[str, Any], *, plan: TrialPlan | None = None, gpu: bool = False) -> None:
        """Prepares a process that has no trials yet.

        Args:
            config: Empty: a pack's trials have settings, the pack has none.
            plan: What trials have in common.
            gpu: Whether Ray gave this process a GPU, on which it trains.

        Raises:
            DeviceError: Torch cannot use that GPU.
        """
        assert plan is not None
        self._plan = plan
        self._session = RaySession()
        self._device = _find_own_device() if gpu else CPU_DEVICE
        self._trainer = PackTrainer.on(self._device)
        self._forget()

    def __repr__(self) -> str:
        """Returns the search's name, which Ray's dashboard shows."""
        return name_search(self._plan)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Becomes another pack, which has no trials yet."""
        self.cleanup()
        self._forget()
        return True

    def _forget(self) -> None:
        self._trainings: dict[str, TrialTraining] = {}
        self._assigned: tuple[Assignment, ...] | None = None

    def cleanup(self) -> None:
        """Ends all trials."""
        for training in self._trainings.values():
            training.close()

    def assign(self, trials: Sequence[Assignment]) -> None:
        """Sets the trials that are trained from the next step on: these, and no others.

        Those that the pack has already continue where they are.
        """
        self._assigned = tuple(trials)

    def step(self) -> dict[str, Any]:
        """Trains up to the next report of the trials, and returns their reports."""
        if self._assigned is None:
            return {REPORTS_KEY: None}
        reports = self._follow(self._assigned)
        start = time.perf_counter()
        self._train()
        seconds = (time.perf_counter() - start) / max(1, len(self._trainings))  # each trial's share
        reports |= {trial_id: training.build_report(seconds) for trial_id, training in self._trainings.items()}
        for trial_id, report in reports.items():
            if report.done and trial_id in self._trainings:
                self._trainings.pop(trial_id).close()
        metric = self._plan.search.metric
        return {
            REPORTS_KEY: [(trial_id, report.to_tune(metric)) for trial_id, report in reports.items()],
            "should_checkpoint": any(report.should_checkpoint for report in reports.values()),
        }

    def _follow(self, assigned: Sequence[Assignment]) -> dict[str, TrialReport]:
        """Ends the trials that are not assigned, and starts the new ones; returns the reports of those that cannot."""
        wanted = {each.trial_id for each in assigned}
        for trial_id in [each for each in self._trainings if each not in wanted]:
            self._trainings.pop(trial_id).close()
        failures: dict[str, TrialReport] = {}
        for each in assigned:
            if each.trial_id not in self._trainings:
                try:
                    self._trainings[each.trial_id] = self._start(each)
                except (RunFailed, BadInput, DeviceError) as error:
                    failures[each.trial_id] = build_failure_report(self._plan.search, str(error))
        return failures

    def _start(self, trial: Assignment) -> TrialTraining:
        """Starts a trial, from the newest of its checkpoints that can be loaded."""
        for checkpoint in trial.checkpoints:
            training = self._build(trial)
            try:
                training.load(Path(checkpoint))
            except (RunFailed, BadInput) as error:
                log.warning("trial %s does not continue from %s: %s", trial.trial_id, checkpoint, error)
                training.close()
            else:
                return training
        return self._build(trial)

    def _build(self, trial: Assignment) -> TrialTraining:
        owner = f"{self} trial {trial.trial_id}"
        return TrialTraining(self._plan, trial.values, self._session, owner, self._device)

    def _train(self) -> None:
        """Trains the rounds of a report in each trial, several times as long as no trial ends and time is left."""
        until = time.perf_counter() + get_report_seconds(self._plan.search)
        trainings = list(self._trainings.values())
        train_some_rounds(trainings, self._trainer)
        while time.perf_counter() < until and not any(training.is_done for training in trainings):
            train_some_rounds(trainings, self._trainer)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes one checkpoint per trial and seed."""
        for trial_id, training in self._trainings.items():
            training.save(Path(checkpoint_dir, trial_id))

    def load_checkpoint(self, checkpoint: str) -> None:
        """Loads nothing: the driver assigns the trials, each with its newest checkpoint."""


def _find_own_device() -> torch.device:
    """Returns the device that Ray gave this process. Raises DeviceError if torch cannot use it."""
    assigned = ray.get_runtime_context().get_accelerator_ids().get("GPU", ())
    return torch.device(choose_device(assigned, torch.cuda.device_count()))


def train_some_rounds(trainings: Sequence[TrialTraining], pack: PackTrainer) -> None:
    """Trains the rounds of one report in each trial, all trials together."""
    owned = [(training, federation) for training in trainings for federation in training.federations]
    for _, federation in owned:
        federation.set_neighbors(len(trainings) > 1)
    stops = [training.next_stop for training, _ in owned]
    failures = train_together([federation for _, federation in owned], stops, pack)
    for (training, _), failure in zip(owned, failures, strict=True):
        training.fail([failure])
