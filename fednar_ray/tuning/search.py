"""A search from its file to its best experiment: Tune runs the trials, the driver records and concludes."""

import json
import logging
import os
import random
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from ray import tune
from ray.tune import ResumeConfig

from fednar_ray.config import Document, Experiment, SearchSettings, dotted, dump
from fednar_ray.core.errors import BadInput, CheckpointError, ConfigError, FednarError, RunFailed
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.prepare import prepare
from fednar_ray.experiments.resume import Resumption, resume_from
from fednar_ray.experiments.run import Result, drain, open_store, train
from fednar_ray.report import Report
from fednar_ray.report.redraw import report_on
from fednar_ray.tracking import lines
from fednar_ray.tracking.identity import check_no_copy
from fednar_ray.tracking.mlflow import RunTracker, Store
from fednar_ray.tracking.reading import run_of
from fednar_ray.tracking.tags import BEST_RUN_ID_TAG, BEST_TRIAL_TAG, KIND_TAG, PARENT_TAG, SEARCH_TAG
from fednar_ray.tuning.checking import check_trials
from fednar_ray.tuning.creation import add_parent_run, create_search, kept_document, name_of
from fednar_ray.tuning.recorder import SCHEDULER_FILE, EarlyEnd, Recorder, Show, table_of
from fednar_ray.tuning.recovery import NOTHING, recover
from fednar_ray.tuning.resources import TrialResources, plan_resources
from fednar_ray.tuning.search_lock import hold_search
from fednar_ray.tuning.strategy import algorithm_of, restore_scheduler, scheduler_of, space_of, trials_of
from fednar_ray.tuning.trial import FederatedTrial, TrialPlan, repeated
from fednar_ray.tuning.trial_table import STOPPED, TrialEntry, TrialTable, check_unused

log = logging.getLogger("fednar_ray")


BEST, BASELINE = "best", "baseline"
QUIET: Mapping[str, str] = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a file of each kind a trial: MLflow and the journals have it all
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # its banner shows whatever the verbosity
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # the most that a killed driver forgets
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """A finished search."""

    name: str
    directory: Path  # searches/<name>
    trials: tuple[TrialEntry, ...]  # best first
    best: TrialEntry
    best_file: Path
    test_metric: str  # test_accuracy; in regression test_rmse
    best_test: float  # of the best, trained once more; the mean over search.seeds
    baseline_test: float
    rounds_trained: int
    rounds_saved: int  # that the trials which were stopped early did not train
    ended_early: str | None  # the stop rule that was met
    report: Report | None  # None: MLflow did not answer
    run_id: str  # the parent's in MLflow
    tracking_uri: str


def begin(document: Document, session: RaySession, show: Show, register: str | None = None) -> SearchResult:
    """Run a search.

    Raises:
        BadInput: Something that was given is wrong, or another process runs the search. Nothing was started.
        RunFailed: No trial ran all its rounds.
    """
    name = name_of(document)
    with hold_search(name):
        check_unused(name)
        assert document.search is not None
        resources = plan_resources(document.experiment, session)
        check_trials(document, session)
        points = _first_points(document.search)
        with ThreadPoolExecutor(1) as background:
            opening = background.submit(open_store, document.experiment)
            session.connect()  # a local Ray starts meanwhile
            store, experiment_id = opening.result()
        ledger = create_search(document, store, experiment_id)
        return _Search(document, ledger, store, session, resources, show).run(points=points, register=register)


def go_on(name: str, session: RaySession, show: Show, register: str | None = None) -> SearchResult:
    """Resume a search whose driver died or was interrupted. One that is finished is concluded again.

    Raises:
        BadInput: There is no search of that name, or another process runs it.
    """
    check_no_copy(TrialTable.load(name).directory, "search")  # there is one
    with hold_search(name):
        ledger = TrialTable.load(name)  # as the process that held it before left it
        document = kept_document(ledger)
        resources = plan_resources(document.experiment, session)
        check_trials(document, session)
        store = Store(ledger.tracking_uri)
        store.check()
        session.connect()
        add_parent_run(ledger, store)
        search = _Search(document, ledger, store, session, resources, show)
        return search.run(points=(), register=register, resume=True)


class _Search:
    """A search that is under way."""

    def __init__(
        self,
        document: Document,
        ledger: TrialTable,
        store: Store,
        session: RaySession,
        resources: TrialResources,
        show: Show,
    ) -> None:
        assert document.search is not None
        self._document, self._search, self._ledger = document, document.search, ledger
        self._store, self._session, self._resources, self._show = store, session, resources, show
        self._plan = TrialPlan(raw=document.raw, execution=resources.execution, search=document.search)
        self._rounds = document.experiment.federation.rounds

    def run(self, *, points: Sequence[Mapping[str, Any]], register: str | None, resume: bool = False) -> SearchResult:
        """The trials, then what follows from them."""
        ledger = self._ledger
        with RunTracker(self._store, ledger.parent_id, ledger.directory, resumed=resume) as parent:
            if not ledger.described:
                self._log_inputs(parent)
                ledger.described = True
                ledger.save()
            ended_early = self._run_trials(points, resume)
            parent.log_table(table_of(ledger, self._search.mode), ledger.files.results_table.name)
            best = ledger.best(self._search.mode)
            if best is None:
                raise RunFailed(self._why_none())
            experiment = self._best_experiment(best)
            lines.replace(ledger.files.best_yaml, dump(experiment))
            parent.log_file(ledger.files.best_yaml)
            baseline = self._as_single_run(self._document.varied(self._search.baseline), BASELINE, None)
            tested = {
                BEST: self._trained_once(BEST, experiment, resume),
                BASELINE: self._trained_once(BASELINE, baseline, resume),
            }
            test_metric = "test_accuracy" if "test_accuracy" in tested[BEST][0].metrics else "test_rmse"
            test_values = {role: _mean(test_metric, runs) for role, runs in tested.items()}
            _check_repeats(tested[BEST], best, self._search)
            self._log_outputs(parent, best, tested, {f"{role}/{test_metric}": v for role, v in test_values.items()})
            if register is not None:
                self._store.register_model(tested[BEST][0].run_id, register)
        stopped = [entry for entry in ledger.trials.values() if entry.status == STOPPED]
        return SearchResult(
            name=ledger.name,
            directory=ledger.directory,
            trials=tuple(ledger.ranked(self._search.mode)),
            best=best,
            best_file=ledger.files.best_yaml,
            test_metric=test_metric,
            best_test=test_values[BEST],
            baseline_test=test_values[BASELINE],
            rounds_trained=self._search.seeds * sum(entry.rounds for entry in ledger.trials.values()),
            rounds_saved=self._search.seeds * sum(self._rounds - entry.rounds for entry in stopped),
            ended_early=ended_early,
            report=_reported(ledger),
            run_id=ledger.parent_id,
            tracking_uri=self._store.uri,
        )

    def _log_inputs(self, parent: RunTracker) -> None:
        search = self._search.model_dump(mode="json")
        described = {f"search.{key}": value for key, value in search.items() if value not in (None, [], {})}
        described |= {"search.scheduler": self._search.scheduler.name, "search.space": json.dumps(search["space"])}
        parent.log_params({**dotted(self._document.experiment), **described})
        parent.log_experiment(self._document.experiment)
        parent.log_file(self._ledger.files.search_yaml)

    def _run_trials(self, points: Sequence[Mapping[str, Any]], resume: bool) -> str | None:
        """Returns the stop rule that ended the search, if one did."""
        search, ledger = self._search, self._ledger
        # a population is there as a whole, and takes turns on what there is
        at_once = trials_of(search) if search.scheduler.name == "pbt" else self._resources.at_once
        if search.concurrent != "auto":
            at_once = min(at_once, search.concurrent)
        scheduler = scheduler_of(search, self._rounds)
        if resume:
            restore_scheduler(scheduler, ledger.directory / SCHEDULER_FILE)
        tune_directory = ledger.files.tune
        recovery = recover(ledger, search, self._rounds, tune_directory) if resume else NOTHING
        plan = replace(self._plan, recorded=recovery.recorded)
        recorder = Recorder(ledger, self._store, plan, scheduler, trials_of(search), self._show, recovery.lost)
        self._session.discard_idle()
        with recorder, _seeded(search.seed), _environment(QUIET), _ended_by_signals():
            tune.run(
                tune.with_parameters(FederatedTrial, plan=plan),
                name=tune_directory.name,
                storage_path=str(ledger.directory),
                config=space_of(search),
                num_samples=search.trials,
                resources_per_trial=self._resources.factory,
                search_alg=algorithm_of(search, points, at_once),
                max_concurrent_trials=at_once if search.algorithm == "optuna" else None,
                scheduler=scheduler,
                stop=EarlyEnd(ledger.name),
                max_failures=search.retries,
                raise_on_failed_trial=False,
                reuse_actors=True,
                callbacks=[recorder],
                verbose=0,
                resume_config=ResumeConfig() if recovery.resumes_tune else None,
                trial_dirname_creator=lambda trial: trial.trial_id,
            )
        return recorder.ended_early

    def _why_none(self) -> str:
        failures = [entry for entry in self._ledger.trials.values() if entry.failure is not None]
        why = f"; {failures[0].name} failed: {failures[0].failure}" if failures else ""
        return f"no trial of {self._ledger.name} ran all {self._rounds} rounds, so there is no best one{why}"

    def _best_experiment(self, best: TrialEntry) -> Experiment:
        experiment = self._plan.experiment(best.begun or best.values)
        changes = best.changes
        changed = Experiment.model_validate({**experiment.model_dump(exclude_none=True), "changes": changes})
        return self._as_single_run(changed, BEST, best.group_size)

    def _as_single_run(self, experiment: Experiment, role: str, width: int | None) -> Experiment:
        """As ``fednar run`` takes it: placed and evaluated as the file says, in the search's MLflow experiment."""
        own = self._document.experiment
        execution = own.execution.model_copy(update={"vectorize": width} if width is not None else {})
        tracking = own.tracking.model_copy(update={"experiment": own.tracking.experiment or own.name})
        return experiment.model_copy(
            update={
                "name": f"{self._ledger.name}-{role}",
                "execution": execution,
                "evaluation": own.evaluation,
                "tracking": tracking,
            }
        )

    def _trained_once(self, role: str, experiment: Experiment, resume: bool) -> list[Result]:
        """A tracked run for each seed, which measures test accuracy.

        Where the search is resumed, runs of before are taken as they are if they have finished, and else resumed.
        """
        results = []
        for index, each in enumerate(repeated(experiment, self._search.seeds)):
            kind = role if index == 0 else f"{role}, another seed"
            tags = {PARENT_TAG: self._ledger.parent_id, KIND_TAG: kind, SEARCH_TAG: self._ledger.name}
            name = role if index == 0 else f"{role}, seed {each.seed}"
            kept = self._kept_run(each) if resume else None
            prepared = prepare(each if kept is None else kept.experiment, session=self._session)
            results.append(drain(train(prepared, self._session, tags=tags, name=name, resumption=kept)))
        return results

    def _kept_run(self, experiment: Experiment) -> Resumption | None:
        """The run of this search that an earlier process began with this experiment."""
        try:
            kept = resume_from(None, experiment)
        except (ConfigError, CheckpointError):
            return None
        run = None if kept is None else run_of(self._store, kept.run_id)
        return kept if run is not None and run.data.tags.get(PARENT_TAG) == self._ledger.parent_id else None

    def _log_outputs(
        self,
        parent: RunTracker,
        best: TrialEntry,
        tested: Mapping[str, Sequence[Result]],
        means: Mapping[str, float],
    ) -> None:
        """The best trial's values, and what was measured."""
        figures = {f"{BEST}/{name}": value for name, value in tested[BEST][0].metrics.items()}
        figures |= {f"{BASELINE}/{name}": value for name, value in tested[BASELINE][0].metrics.items()}
        assert best.value is not None
        parent.log_metrics({**figures, **means, f"{BEST}/{self._search.metric}": best.value})
        parent.log_params({f"best.{key}": value for key, value in best.values.items()})
        parent.log_tags({BEST_TRIAL_TAG: best.name, BEST_RUN_ID_TAG: tested[BEST][0].run_id})


def _mean(metric: str, runs: Sequence[Result]) -> float:
    return float(np.mean([run.metrics[metric] for run in runs]))


def _check_repeats(runs: Sequence[Result], best: TrialEntry, search: SearchSettings) -> None:
    """Says so where the best trial, trained once more, comes out differently."""
    again = _mean(search.metric, runs)
    if again != best.value:
        log.warning("%s reached a %s of %s, and trained once more %s", best.name, search.metric, best.value, again)


def _reported(ledger: TrialTable) -> Report | None:
    try:
        return report_on(ledger.name, ledger.tracking_uri, ledger.files.report)
    except (FednarError, OSError) as error:
        log.warning("no report: %s; fednar report %s makes it", error, ledger.name)
        return None


def _first_points(search: SearchSettings) -> list[Mapping[str, Any]]:
    """Those of the file, then the best of an earlier search. Raises BadInput."""
    points: list[Mapping[str, Any]] = list(search.points)
    if search.warm_start is None:
        return points
    earlier = TrialTable.load(search.warm_start.search)
    ranked = [entry for entry in earlier.ranked(search.mode) if entry.value is not None]
    for entry in ranked[: search.warm_start.points]:
        missing = [key for key in search.space if key not in entry.values]
        if missing:
            raise BadInput(f"search.warm_start.search: {earlier.name} did not search {', '.join(missing)}")
        points.append({key: entry.values[key] for key in search.space})
    return points


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Some of Tune's schedulers draw from the global generators; they are given back as they were."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM end Tune's loop, which writes where it stands; then they do what they did before.

    Tune takes Ctrl-C over, and at the first one puts the handler back that it found: that tells whether there was one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    received = [signal.SIGINT]

    def terminate(number: int, frame: FrameType | None) -> None:
        received[0] = signal.SIGTERM
        signal.raise_signal(signal.SIGINT)

    if callable(handlers[signal.SIGTERM]):
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
        interrupted = signal.getsignal(signal.SIGINT) is handlers[signal.SIGINT]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    handler = handlers[received[0]]
    if interrupted and callable(handler):
        handler(received[0], None)
