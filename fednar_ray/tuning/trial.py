"""A trial: one experiment as Tune's Trainable, which trains several rounds per report.

A trial that is checkpointed, paused, resumed or copied to another trial (population-based training) continues from
its saved federation. Its result is bit for bit that of a trial that never stopped. A process trains one trial after
another, and keeps data, model and traced programs loaded for the next trial that uses them.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from fednar_ray.config import SearchSettings
from fednar_ray.execution.session import RaySession
from fednar_ray.tuning.lockstep import train_alone
from fednar_ray.tuning.trial_plan import TrialPlan
from fednar_ray.tuning.trial_training import TrialTraining

REPORT_SECONDS = 1.0  # between reports without a scheduler: each report takes Tune's loop about 20 ms


class FederatedTrial(tune.Trainable):  # type: ignore[misc]
    """Trains the federations of one trial, one per seed, side by side."""

    def setup(self, config: dict[str, Any], *, plan: TrialPlan | None = None) -> None:
        """Starts the first trial of this process."""
        assert plan is not None
        self._plan = plan
        self._session = RaySession()
        self._start(config)

    def __repr__(self) -> str:
        """Returns the search's name. Ray's dashboard shows it, since a process trains one trial after another."""
        return name_search(self._plan)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another trial in the same process."""
        self.cleanup()
        self._start(new_config)
        return True

    def cleanup(self) -> None:
        """Releases the trial's actors, if it has any."""
        if self._training is not None:
            self._training.close()

    def _start(self, values: Mapping[str, Any]) -> None:
        self._training: TrialTraining | None = None
        self._recorded = self._plan.find_recorded(self.trial_id, values)
        if self._recorded is None:
            self._training = TrialTraining(self._plan, values, self._session, f"{self} trial {self.trial_id}")

    def step(self) -> dict[str, Any]:
        """Trains up to the next report. A trial that has ended before returns its last report again."""
        metric = self._plan.search.metric
        if self._recorded is not None:
            return self._recorded.to_tune(metric)
        assert self._training is not None
        start = time.perf_counter()
        until = start + get_report_seconds(self._plan.search)
        self._train_some_rounds(self._training)
        while not self._training.is_done and time.perf_counter() < until:
            self._train_some_rounds(self._training)
        return self._training.build_report(time.perf_counter() - start).to_tune(metric)

    def _train_some_rounds(self, training: TrialTraining) -> None:
        """Trains the rounds of one report in each federation."""
        until = training.next_stop
        training.fail([train_alone(federation, until) for federation in training.federations])

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes one checkpoint per seed."""
        if self._training is not None:
            self._training.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: str) -> None:
        """Continues from a checkpoint of this trial, or from one of another trial with this trial's settings."""
        if self._training is not None:
            self._training.load(Path(checkpoint))


def name_search(plan: TrialPlan) -> str:
    """Returns what Ray's dashboard calls the processes of a search by."""
    return plan.search.name or str(plan.raw.get("name", "search"))


def get_report_seconds(search: SearchSettings) -> float:
    """Returns for how long a process trains before it reports.

    A scheduler, or ``search.report_rounds``, fixes the rounds per report; then this is 0. Without them, a report covers
    about a second of training.
    """
    fixed = search.scheduler.name != "none" or search.report_rounds != "auto"
    return 0.0 if fixed else min(REPORT_SECONDS, search.checkpoint_seconds)
