"""Runs a search's trials with Ray Tune."""

import os
import random
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
from ray import tune
from ray.tune import ResumeConfig
from ray.tune.schedulers import TrialScheduler

from fednar_ray.config import SearchSettings
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.recorder import Recorder
from fednar_ray.tuning.recovery import NEW_SEARCH, recover
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
    search = plan.search
    scheduler = build_scheduler(search, rounds)
    recovery = NEW_SEARCH
    if resume:
        restore_scheduler(scheduler, table.files.scheduler)
        recovery = recover(table, search, rounds, table.files.tune)
    plan = replace(plan, recorded=recovery.recorded)
    recorder = Recorder(table, store, plan, scheduler, count_trials(search), show, recovery.lost)
    with recorder, _seed_generators(search.seed), _set_environment(ENVIRONMENT), _end_on_signals():
        _run_tune(table, plan, resources, points, scheduler, recorder, resume=recovery.resumes_tune)
    return recorder.ended_early


def _run_tune(
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
    tune.run(
        tune.with_parameters(FederatedTrial, plan=plan),
        name=table.files.tune.name,
        storage_path=str(table.directory),
        config=build_space(search),
        num_samples=search.trials,
        resources_per_trial=resources.factory,
        search_alg=build_search_algorithm(search, points, concurrent),
        max_concurrent_trials=concurrent if search.algorithm == "optuna" else None,
        scheduler=scheduler,
        stop=StopFileStopper(table.name),
        max_failures=search.retries,
        raise_on_failed_trial=False,
        reuse_actors=True,
        callbacks=[recorder],
        verbose=0,
        resume_config=ResumeConfig() if resume else None,
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


def _count_concurrent_trials(search: SearchSettings, resources: TrialResources) -> int:
    """Returns how many trials exist at a time. All trials of a population exist at once, and take turns to train."""
    concurrent = count_trials(search) if search.scheduler.name == "pbt" else resources.concurrent
    return concurrent if search.concurrent == "auto" else min(concurrent, search.concurrent)


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
