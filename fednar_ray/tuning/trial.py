"""A trial: one experiment as Tune's Trainable, which trains several rounds per report.

A trial that is checkpointed, paused, resumed or copied to another trial (population-based training) continues from
its saved federation. Its result is bit for bit that of a trial that never stopped. A process trains one trial after
another, and keeps data, model and traced programs loaded for the next trial that uses them.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from fednar_ray.core.errors import BadInput, RunFailed
from fednar_ray.core.metric_names import CLIENT_METRICS, SHARES
from fednar_ray.execution.session import RaySession
from fednar_ray.tracking.journal import format_line
from fednar_ray.tuning.trial_federation import TrialFederation, average_records
from fednar_ray.tuning.trial_plan import TrialPlan, vary_seed
from fednar_ray.tuning.trial_report import TrialReport

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
        return self._plan.search.name or str(self._plan.raw.get("name", "search"))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another trial in the same process."""
        self.cleanup()
        self._start(new_config)
        return True

    def cleanup(self) -> None:
        """Releases the trial's actors, if it has any."""
        for federation in self._federations:
            federation.close()

    def _start(self, values: Mapping[str, Any]) -> None:
        start = time.perf_counter()
        self._federations: list[TrialFederation] = []
        self._recorded = self._plan.find_recorded(self.trial_id, values)
        if self._recorded is not None:
            return
        experiment = self._plan.build_experiment(values)
        self._rounds = experiment.federation.rounds
        seeds = vary_seed(experiment, self._plan.search.seeds)
        owner = f"{self} trial {self.trial_id}"
        owners = [owner] if len(seeds) == 1 else [f"{owner} seed {each.seed}" for each in seeds]
        self._federations = [
            TrialFederation(each, self._session, name, self._plan.given)
            for each, name in zip(seeds, owners, strict=True)
        ]
        self._reported_rounds = 0
        self._saved_at = time.monotonic()
        self._start_seconds = time.perf_counter() - start

    def step(self) -> dict[str, Any]:
        """Trains up to the next report. A trial that has ended before returns its last report again."""
        metric = self._plan.search.metric
        if self._recorded is not None:
            return self._recorded.to_tune(metric)
        start = time.perf_counter()
        failure = self._train_until_report()
        return self._build_report(failure, start).to_tune(metric)

    def _train_until_report(self) -> str | None:
        """Returns why a federation failed; None if none did.

        A scheduler, or ``search.report_rounds``, fixes the rounds per report. Without them, a report covers about a
        second of training.
        """
        search = self._plan.search
        fixed = search.scheduler.name != "none" or search.report_rounds != "auto"
        until = time.perf_counter() + (0.0 if fixed else min(REPORT_SECONDS, search.checkpoint_seconds))
        failure = self._train_some_rounds()
        while failure is None and not self._is_complete and time.perf_counter() < until:
            failure = self._train_some_rounds()
        return failure

    def _train_some_rounds(self) -> str | None:
        """Trains the rounds of one report in each federation; returns why one failed."""
        until = self._federations[0].rounds + self._plan.search.choose_report_rounds(self._rounds)
        failure = None
        for federation in self._federations:
            try:
                federation.train(min(until, self._rounds))
            except (RunFailed, BadInput) as error:
                failure = str(error)
        return failure

    @property
    def _rounds_done(self) -> int:
        return min(federation.rounds for federation in self._federations)

    @property
    def _is_complete(self) -> bool:
        return self._rounds_done == self._rounds or self._ended is not None

    @property
    def _ended(self) -> str | None:
        """Why callbacks have ended the trial, once those of all its federations have."""
        reasons = [federation.ended for federation in self._federations]
        return reasons[0] if None not in reasons else None

    def _build_report(self, failure: str | None, start: float) -> TrialReport:
        search, first = self._plan.search, self._federations[0]
        records = average_records([federation.records[self._reported_rounds :] for federation in self._federations])
        self._reported_rounds += len(records)
        value = records[-1].metrics.get(search.metric, math.nan) if records else math.nan
        if failure is None and not math.isfinite(value):
            failure = f"{search.metric} is not finite"
        ended = self._ended if self._rounds_done < self._rounds and failure is None else None
        done = failure is not None or self._is_complete
        seconds, self._start_seconds = self._start_seconds + time.perf_counter() - start, 0.0
        return TrialReport(
            value=value if failure is None else get_worst_value(search.metric, search.mode),
            rounds=self._rounds_done,
            lines=tuple(format_line(record) for record in records),
            failure=failure,
            ended=ended,
            train_seconds=seconds,
            group_size=first.execution.group_size,
            compiled=first.execution.compiled,
            lineage=first.find_lineage(search),
            done=done,
            should_checkpoint=not done and time.monotonic() - self._saved_at >= search.checkpoint_seconds,
        )

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes one checkpoint per seed."""
        for federation in self._federations:
            federation.save(_get_seed_directory(checkpoint_dir, federation))
        self._saved_at = time.monotonic()

    def load_checkpoint(self, checkpoint: str) -> None:
        """Continues from a checkpoint of this trial, or from one of another trial with this trial's settings."""
        for federation in self._federations:
            federation.load(_get_seed_directory(checkpoint, federation))
        self._reported_rounds = 0  # the recorder ignores rounds that it already has


def get_worst_value(metric: str, mode: str) -> float:
    """Returns the value that ranks a failed trial last, which no model can fall short of.

    Args:
        metric: The search's metric. R² and a user's own metrics have no lowest value.
        mode: ``max`` or ``min``: which values of the metric are better.
    """
    if mode == "min":
        return math.inf
    return 0.0 if metric in CLIENT_METRICS or metric.removeprefix("validation_") in SHARES else -math.inf


def _get_seed_directory(checkpoint: str, federation: TrialFederation) -> Path:
    return Path(checkpoint) / f"seed-{federation.experiment.seed}"
