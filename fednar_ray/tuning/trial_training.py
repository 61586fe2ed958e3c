"""The training of one trial: its federations, one per seed, from its values to its reports. Knows nothing of Tune."""

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from fednar_ray.execution.session import RaySession
from fednar_ray.tracking.journal import format_line
from fednar_ray.tuning.trial_federation import TrialFederation, average_records
from fednar_ray.tuning.trial_plan import TrialPlan, vary_seed
from fednar_ray.tuning.trial_report import TrialReport, get_worst_value


class TrialTraining:
    """A trial that is being trained.

    Args:
        plan: What trials have in common.
        values: The trial's value of each searched key.
        session: The Ray session that its actors belong to.
        owner: What Ray's dashboard calls the actors by.
        device: Where this process trains clients. None: where the experiment's placement says.
    """

    def __init__(
        self,
        plan: TrialPlan,
        values: Mapping[str, Any],
        session: RaySession,
        owner: str,
        device: torch.device | None = None,
    ) -> None:
        start = time.perf_counter()
        self._search = plan.search
        experiment = plan.build_experiment(values)
        self._rounds = experiment.federation.rounds
        seeds = vary_seed(experiment, self._search.seeds)
        owners = [owner] if len(seeds) == 1 else [f"{owner} seed {each.seed}" for each in seeds]
        self.federations = [
            TrialFederation(each, session, name, plan.given, device) for each, name in zip(seeds, owners, strict=True)
        ]
        self._failure: str | None = None
        self._reported_rounds = 0
        self._saved_at = time.monotonic()
        self._start_seconds = time.perf_counter() - start

    @property
    def next_stop(self) -> int:
        """Number of rounds that are trained once the rounds of one more report are."""
        return min(self.federations[0].rounds + self._search.choose_report_rounds(self._rounds), self._rounds)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train: all rounds are trained, callbacks have ended the trial, or it failed."""
        return self._failure is not None or self._ended is not None or self._rounds_done == self._rounds

    def fail(self, failures: Iterable[str | None]) -> None:
        """Marks the trial as failed if any of its federations has; the last reason is the one that is reported."""
        for failure in failures:
            self._failure = failure or self._failure

    @property
    def _rounds_done(self) -> int:
        return min(federation.rounds for federation in self.federations)

    @property
    def _ended(self) -> str | None:
        """Why callbacks have ended the trial, once those of all its federations have."""
        reasons = [federation.ended for federation in self.federations]
        return reasons[0] if None not in reasons else None

    def build_report(self, seconds: float) -> TrialReport:
        """Builds the report of the rounds since the previous one.

        Args:
            seconds: How long they took to train.
        """
        search, first = self._search, self.federations[0]
        records = average_records([federation.records[self._reported_rounds :] for federation in self.federations])
        self._reported_rounds += len(records)
        value = records[-1].metrics.get(search.metric, math.nan) if records else math.nan
        if not math.isfinite(value):
            self._failure = self._failure or f"{search.metric} is not finite"
        failure, done = self._failure, self.is_done
        seconds, self._start_seconds = self._start_seconds + seconds, 0.0
        return TrialReport(
            value=value if failure is None else get_worst_value(search.metric, search.mode),
            rounds=self._rounds_done,
            lines=tuple(format_line(record) for record in records),
            failure=failure,
            ended=self._ended if self._rounds_done < self._rounds and failure is None else None,
            train_seconds=seconds,
            group_size=first.execution.group_size,
            compiled=first.execution.compiled,
            lineage=first.find_lineage(search),
            done=done,
            should_checkpoint=not done and time.monotonic() - self._saved_at >= search.checkpoint_seconds,
        )

    def save(self, directory: Path) -> None:
        """Writes one checkpoint per seed into a directory."""
        for federation in self.federations:
            federation.save(_get_seed_directory(directory, federation))
        self._saved_at = time.monotonic()

    def load(self, directory: Path) -> None:
        """Continues from a checkpoint of this trial, or from one of another trial with this trial's settings.

        Raises:
            RunFailed: The directory has no checkpoint of a seed.
        """
        for federation in self.federations:
            federation.load(_get_seed_directory(directory, federation))
        self._failure = None
        self._reported_rounds = 0  # the recorder ignores rounds that it already has

    def close(self) -> None:
        """Ends the callbacks, and releases the trial's actors, if it has any."""
        for federation in self.federations:
            federation.close()


def _get_seed_directory(checkpoint: Path, federation: TrialFederation) -> Path:
    return checkpoint / f"seed-{federation.experiment.seed}"
