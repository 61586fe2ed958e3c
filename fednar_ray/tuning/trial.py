"""A trial: one experiment as Tune's Trainable, several rounds a report.

A trial that is checkpointed, paused, resumed or handed to another (population-based training) goes on from the
federation it had, to the same bytes.  The process serves one trial after the other: data, model and what was traced
stay, where the next trial has the same.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from fednar_ray.checkpoint.storage import open_storage
from fednar_ray.checkpoint.store import CheckpointStore
from fednar_ray.config import Experiment, SearchSettings, dotted, varied
from fednar_ray.core.errors import BadInput, RunFailed
from fednar_ray.core.messages import RoundRecord, RoundReport
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.checkpoint_contents import experiment_of_trial
from fednar_ray.experiments.iter_rounds import initial_state, rounds_of
from fednar_ray.experiments.placement import SerialTrainer, place, resolve
from fednar_ray.experiments.prepare import Prepared, adapted, prepare
from fednar_ray.federated.server_state import FederationState
from fednar_ray.tracking.journal import line_of, parse

ROUNDS = "rounds"  # of a result: how many are done; schedulers go by it
RECORDS = "records"  # of a result: a line a round since the report before, as in metrics.jsonl
FAILURE = "failure"  # of a result: why the trial cannot go on, where it cannot
SECONDS = "train_seconds"  # of a result: of work since the report before, data and model taken up included
WIDTH = "vectorize"  # of a result
LINEAGE = "lineage"  # of a result: the values that the federation began with, and its changes, where there are some
REPORT_SECONDS = 1.0  # each report costs Tune's loop some 20 ms
KEPT_BENCHES = 8  # data sets and models that a process holds on to


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTrial:
    """A trial that ended before the search was resumed. It returns this, and trains nothing."""

    value: float  # of the metric, in its last report
    rounds: int
    lines: tuple[str, ...]  # its journal
    failure: str | None
    width: int | None
    lineage: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPlan:
    """What all trials of a search have in common."""

    raw: Mapping[str, Any]  # the experiment section as it was written
    execution: Mapping[str, Any]  # where a trial's clients train
    search: SearchSettings
    recorded: Mapping[str, RecordedTrial] = field(default_factory=dict)
    """By Tune's trial id; by ``values_key`` of a trial that Tune has forgotten, and proposes again under another id."""

    def recorded_of(self, trial_id: str, values: Mapping[str, Any]) -> RecordedTrial | None:
        """What is recorded of a trial that ended before the search was resumed."""
        return self.recorded.get(trial_id) or self.recorded.get(values_key(values))

    def experiment(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment of a trial. Raises ConfigError."""
        experiment = varied({**self.raw, "execution": dict(self.execution)}, values)
        report = self.search.rounds_a_report(experiment.federation.rounds)
        every = experiment.evaluation.every
        evaluation = experiment.evaluation.model_copy(update={"every": every if report % every == 0 else report})
        return experiment.model_copy(update={"evaluation": evaluation})


def values_key(values: Mapping[str, Any]) -> str:
    """A trial's values as text, the same wherever they come from."""
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}
    return json.dumps(plain, sort_keys=True, default=str)


def repeated(experiment: Experiment, seeds: int) -> list[Experiment]:
    """The experiment under seeds counted up from its own."""
    return [experiment.model_copy(update={"seed": experiment.seed + i}) for i in range(seeds)]


def worst(mode: str) -> float:
    """What a trial that cannot go on is worth."""
    return 0.0 if mode == "max" else math.inf


class FederatedTrial(tune.Trainable):  # type: ignore[misc]
    """Trains the federations of one trial, a seed each, side by side."""

    def setup(self, config: dict[str, Any], *, plan: TrialPlan | None = None) -> None:
        """Take up a trial."""
        assert plan is not None
        self._plan = plan
        self._session = RaySession()
        self._open(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial in the same process."""
        self.cleanup()
        self._open(new_config)
        return True

    def cleanup(self) -> None:
        """Let go of the trial."""
        for branch in self._branches:
            branch.close()

    def _open(self, values: Mapping[str, Any]) -> None:
        start = time.perf_counter()
        self._branches: list[_Branch] = []
        self._recorded = self._plan.recorded_of(self.trial_id, values)
        if self._recorded is not None:
            return
        self._experiment = self._plan.experiment(values)
        self._branches = [_Branch(each, self._session) for each in repeated(self._experiment, self._plan.search.seeds)]
        self._reported = 0  # rounds
        self._saved = time.monotonic()
        self._spent = time.perf_counter() - start

    def step(self) -> dict[str, Any]:
        """The rounds up to the next report; where nothing is decided on the way, as many as a second holds."""
        start, search = time.perf_counter(), self._plan.search
        if self._recorded is not None:
            return _as_result(self._recorded, search.metric)
        rounds = self._experiment.federation.rounds
        often = search.scheduler.name != "none" or search.report_rounds != "auto"
        seconds = 0.0 if often else min(REPORT_SECONDS, search.checkpoint_seconds)
        while True:
            failure, until = self._advanced(rounds)
            if failure is not None or until == rounds or time.perf_counter() - start >= seconds:
                break
        spent, self._spent = self._spent, 0.0
        records = _means([branch.records[self._reported :] for branch in self._branches])
        self._reported += len(records)
        value = records[-1].metrics.get(search.metric, math.nan) if records else math.nan
        if failure is not None or not math.isfinite(value):
            failure = failure or f"{search.metric} is not finite"
            value = worst(search.mode)
        return {
            search.metric: value,
            ROUNDS: min(branch.rounds for branch in self._branches),
            RECORDS: [line_of(record) for record in records],
            FAILURE: failure,
            SECONDS: spent + time.perf_counter() - start,
            WIDTH: self._branches[0].width,
            LINEAGE: _lineage(self._branches[0].experiment, search),
            "done": until == rounds or failure is not None,
            "should_checkpoint": until < rounds and time.monotonic() - self._saved >= search.checkpoint_seconds,
        }

    def _advanced(self, rounds: int) -> tuple[str | None, int]:
        """A report's rounds further: why not, where that failed; and how many should be done."""
        until = min(self._branches[0].rounds + self._plan.search.rounds_a_report(rounds), rounds)
        failure = None
        for branch in self._branches:
            try:
                branch.advance(until)
            except (RunFailed, BadInput) as error:
                failure = str(error)
        return failure, until

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A checkpoint a seed."""
        for branch in self._branches:
            branch.save(_place(checkpoint_dir, branch.experiment.seed))
        self._saved = time.monotonic()

    def load_checkpoint(self, checkpoint: str) -> None:
        """Go on from there: from this trial's own federations, or from those of another trial under our settings."""
        for branch in self._branches:
            branch.load(_place(checkpoint, branch.experiment.seed))
        self._reported = 0  # whoever listens knows which rounds it has


def _as_result(recorded: RecordedTrial, metric: str) -> dict[str, Any]:
    """The last report of a trial that has ended."""
    return {
        metric: recorded.value,
        ROUNDS: recorded.rounds,
        RECORDS: list(recorded.lines),
        FAILURE: recorded.failure,
        SECONDS: 0.0,
        WIDTH: recorded.width,
        LINEAGE: recorded.lineage,
        "done": True,
        "should_checkpoint": False,
    }


def _place(directory: str, seed: int) -> Path:
    return Path(directory) / f"seed-{seed}"


class _Branch:
    """One federation of a trial."""

    def __init__(self, experiment: Experiment, session: RaySession) -> None:
        self.experiment = experiment
        self.records: list[RoundRecord] = []
        assert experiment.data is not None
        assert experiment.model is not None
        prepared, bench = _bench(experiment.data.model_dump_json(), experiment.model.model_dump_json(), experiment.seed)
        self._prepared = adapted(prepared, experiment)
        self._held = ExitStack()
        self._resolved = resolve(self._prepared, session)
        self._pool = self._held.enter_context(place(self._prepared, self._resolved, session, bench))
        self._go_on_from(initial_state(self._prepared))

    @property
    def rounds(self) -> int:
        """How many are done."""
        return self._state.now.next_round

    @property
    def width(self) -> int:
        """C."""
        return self._resolved.width

    def _go_on_from(self, state: FederationState) -> None:
        self._state = state
        self._reports: Iterator[RoundReport] = rounds_of(
            self._prepared, self._resolved, self._pool, state, splits=("validation",)
        )

    def advance(self, until: int) -> None:
        """Train until so many rounds are done. Raises RunFailed."""
        while self.rounds < until:
            self.records.append(next(self._reports).record())

    def save(self, place: Path) -> None:
        """A checkpoint."""
        lines = [line_of(record) for record in self.records]
        facts = {"experiment": self.experiment.model_dump(mode="json", exclude_none=True)}
        CheckpointStore(open_storage(str(place)), 1).save(self._state.snapshot(lines, facts))

    def load(self, place: Path) -> None:
        """The federation of a checkpoint, under our settings from here on. Raises RunFailed where there is none."""
        checkpoint = CheckpointStore(open_storage(str(place)), 1).load()
        if checkpoint is None:
            raise RunFailed(f"no checkpoint in {place}")
        begun = experiment_of_trial(checkpoint)
        self.experiment = under_our_settings(begun, self.experiment, checkpoint.next_round)
        self._prepared = adapted(self._prepared, self.experiment)
        self.records = [parse(line) for line in checkpoint.history]
        self._go_on_from(FederationState.restored(checkpoint, initial_state(self._prepared)))

    def close(self) -> None:
        """Give its actors back, where it has some."""
        self._held.close()


def _lineage(experiment: Experiment, search: SearchSettings) -> dict[str, Any] | None:
    if experiment.changes is None:
        return None
    began = dotted(experiment)
    changes = {str(since): dict(values) for since, values in experiment.changes.items()}
    return {"begun": {key: began[key] for key in search.space}, "changes": changes}


def under_our_settings(begun: Experiment, ours: Experiment, next_round: int) -> Experiment:
    """What was begun, with what we have otherwise as a change from ``next_round`` on."""
    then, now = dotted(begun.in_force(next_round)), dotted(ours)
    differs = {key: value for key, value in now.items() if not key.startswith("changes.") and then.get(key) != value}
    if not differs:
        return begun
    changes = {**(begun.changes or {}), next_round: differs}
    return Experiment.model_validate({**begun.model_dump(exclude_none=True), "changes": changes})


@lru_cache(maxsize=KEPT_BENCHES)
def _bench(data: str, model: str, seed: int) -> tuple[Prepared, SerialTrainer]:
    """What trials of the same data and model, as JSON, share in a process."""
    sections = {"data": json.loads(data), "model": json.loads(model)}
    prepared = prepare(Experiment.model_validate({**sections, "seed": seed}))
    return prepared, SerialTrainer(prepared)


def _means(branches: Sequence[Sequence[RoundRecord]]) -> list[RoundRecord]:
    """Each round's metrics in the mean over the seeds, as far as all of them are; clients are those of the first."""
    if len(branches) == 1:
        return list(branches[0])
    return [_mean(records) for records in zip(*branches, strict=False)]


def _mean(records: Sequence[RoundRecord]) -> RoundRecord:
    first = records[0]
    metrics = {
        name: float(np.mean([record.metrics[name] for record in records]))
        for name in first.metrics
        if all(name in record.metrics for record in records)
    }
    return replace(first, metrics=metrics)
