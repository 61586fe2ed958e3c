"""Runs a search's trials with Ray Tune."""

import os
import random
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from types import FrameType
from typing import Any

import numpy as np
from ray import tune
from ray.tune import ResumeConfig
from ray.tune.schedulers import TrialScheduler

from fednar_ray.config import SearchSettings
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.pack import PackTrainable
from fednar_ray.tuning.pack_scheduler import PackCallback, PackScheduler, PackSearcher
from fednar_ray.tuning.packs import Packs
from fednar_ray.tuning.proposals import Proposals
from fednar_ray.tuning.recorder import Recorder
from fednar_ray.tuning.recovery import NEW_SEARCH, finish_complete_trials, recover
from fednar_ray.tuning.resources import TrialResources
from fednar_ray.tuning.search_status import Show
from fednar_ray.tuning.stop_rules import StopFileStopper
from fednar_ray.tuning.strategy import (
    build_scheduler,
    build_search_algorithm,
    build_space,
    count_trials,
    restore_scheduler,
)
from fednar_ray.tuning.trial import FederatedTrial
from fednar_ray.tuning.trial_plan import TrialPlan
from fednar_ray.tuning.trial_table import TrialTable

PACKED_TRIAL = "packed-trial"  # the search algorithm of a packed search wants a registered name; Tune does not run it
ENVIRONMENT: Mapping[str, str] = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's own log files: MLflow and the journals have their contents
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # otherwise Tune prints a banner at every verbosity
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # Tune loses at most this many seconds of its state when the driver is killed
}


def run_trials(
    table: TrialTable,
    store: Store,
    plan: TrialPlan,
    resources: TrialResources,
    points: Sequence[Mapping[str, Any]],
    show: Show,
    *,
    rounds: int,
    resume: bool,
) -> str | None:
    """Trains the trials of a search that have not ended, and records them.

    Args:
        table: The search's trials, which this updates.
        store: The MLflow store.
        plan: What trials have in common.
        resources: What each trial reserves.
        points: Values to try before all others.
        show: Called with the state of the search after each event.
        rounds: Number of rounds of a trial.
        resume: Whether the search has been started before.

    Returns:
        The stop rule that ended the search; None if none did.
    """
    if table.pack > 1:
        return _run_packs(table, store, plan, resources, show, rounds)
    search = plan.search
    scheduler = build_scheduler(search, rounds)
    recovery = NEW_SEARCH
    if resume:
        restore_scheduler(scheduler, table.files.scheduler)
        recovery = recover(table, search, rounds, table.files.tune)
    plan = replace(plan, recorded=recovery.recorded)
    recorder = Recorder(table, store, plan, scheduler, count_trials(search), show, recovery.lost)
    with recorder, _prepare_process(search.seed):
        _run_single_trials(table, plan, resources, points, scheduler, recorder, resume=recovery.resumes_tune)
    return recorder.ended_early


def _run_packs(
    table: TrialTable, store: Store, plan: TrialPlan, resources: TrialResources, show: Show, rounds: int
) -> str | None:
    """Trains the trials of a packed search, new or resumed; see ``run_trials``."""
    search, trials = plan.search, count_trials(plan.search)
    scheduler = build_scheduler(search, rounds)
    restore_scheduler(scheduler, table.files.scheduler)
    finish_complete_trials(table, search, rounds)
    recorder = Recorder(table, store, plan, scheduler, trials, show)
    with recorder, _prepare_process(search.seed):
        concurrent = resources.concurrent * table.pack if search.concurrent == "auto" else search.concurrent
        tune.register_trainable(PACKED_TRIAL, FederatedTrial)
        proposals = Proposals(search, table, PACKED_TRIAL, table.pack)
        packs = Packs(table, search.metric, proposals, scheduler, recorder, width=table.pack, concurrent=concurrent)
        if not proposals.left:
            return recorder.ended_early
        slots = min(resources.concurrent, ceil(min(concurrent, proposals.left) / table.pack))
        _call_tune(
            tune.with_parameters(PackTrainable, plan=plan, gpu=resources.gpu),
            table,
            plan,
            resources,
            num_samples=-1,
            search_alg=PackSearcher(packs),
            max_concurrent_trials=slots,
            scheduler=PackScheduler(packs),
            callbacks=[PackCallback(packs, recorder)],
        )
    return recorder.ended_early


def _run_single_trials(
    table: TrialTable,
    plan: TrialPlan,
    resources: TrialResources,
    points: Sequence[Mapping[str, Any]],
    scheduler: TrialScheduler,
    recorder: Recorder,
    *,
    resume: bool,
) -> None:
    search = plan.search
    concurrent = _count_concurrent_trials(search, resources)
    _call_tune(
        tune.with_parameters(FederatedTrial, plan=plan),
        table,
        plan,
        resources,
        config=build_space(search),
        num_samples=search.trials,
        search_alg=build_search_algorithm(search, points, concurrent),
        max_concurrent_trials=concurrent if search.algorithm == "optuna" else None,
        scheduler=scheduler,
        callbacks=[recorder],
        resume_config=ResumeConfig() if resume else None,
    )


def _call_tune(trainable: Any, table: TrialTable, plan: TrialPlan, resources: TrialResources, **arguments: Any) -> None:
    """Calls ``tune.run`` with what trials and packs have in common, and these arguments."""
    with _end_on_signals():
        tune.run(
            trainable,
            name=table.files.tune.name,
            storage_path=str(table.directory),
            resources_per_trial=resources.factory,
            stop=StopFileStopper(table.name),
            max_failures=plan.search.retries,
            raise_on_failed_trial=False,
            reuse_actors=True,
            verbose=0,
            trial_dirname_creator=lambda trial: trial.trial_id,
            **arguments,
        )


def _count_concurrent_trials(search: SearchSettings, resources: TrialResources) -> int:
    """Returns how many trials exist at a time. All trials of a population exist at once, and take turns to train."""
    concurrent = count_trials(search) if search.scheduler.name == "pbt" else resources.concurrent
    return concurrent if search.concurrent == "auto" else min(concurrent, search.concurrent)


@contextmanager
def _prepare_process(seed: int) -> Iterator[None]:
    """Prepares this process for Tune's loop, and restores what it has changed at the end."""
    with _seed_generators(seed), _set_environment(ENVIRONMENT):
        yield


@contextmanager
def _seed_generators(seed: int) -> Iterator[None]:
    """Seeds the global random generators, which some of Tune's schedulers use, and restores their states at the end."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _set_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables, and restores their earlier values at the end."""
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
def _end_on_signals() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM end Tune's loop, so that Tune saves its state; then calls their earlier handlers.

    Tune replaces the handler of Ctrl-C, and puts it back at the first Ctrl-C. So a handler that is back after the loop
    shows that there was a Ctrl-C.
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
