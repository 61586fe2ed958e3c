"""Trials that tests run in their own process: a plan, a table, and Tune's events in Tune's order."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from fednar_ray.config import Document
from fednar_ray.config.loading import parse_document
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.recorder import Recorder
from fednar_ray.tuning.trial import FederatedTrial
from fednar_ray.tuning.trial_plan import TrialPlan
from fednar_ray.tuning.trial_table import TrialTable

RATE = "algorithm.local_lr"
ROUNDS = 3


def build_trial_search(**search: Any) -> Document:
    experiment = {
        "name": "small",
        "data": {"source": "digits", "validation": 0.1, "partition": {"kind": "iid", "clients": 4}},
        "model": {"name": "mlp", "hidden": 4},
        "federation": {"rounds": ROUNDS, "clients_per_round": 2, "local_steps": 1},
        "execution": {"placement": "serial"},
    }
    guide = {"metric": "validation_accuracy", "mode": "max"}  # only start_search replaces auto
    search = {**guide, "space": {RATE: {"uniform": [0.01, 0.2]}}, "algorithm": "random", "report_rounds": 1, **search}
    return parse_document(yaml.safe_dump({"experiment": experiment, "search": search}), "f.yaml", to_search=True)


def build_plan(document: Document | None = None) -> TrialPlan:
    document = build_trial_search() if document is None else document
    assert document.search is not None
    return TrialPlan(raw=document.raw, execution={"placement": "serial"}, search=document.search)


def create_table(store: Store) -> TrialTable:
    experiment_id = store.ensure_experiment("small")
    run_id = store.create_run(experiment_id, "small", {})
    return TrialTable(name="small", run_id=run_id, tracking_uri=store.uri, experiment_id=experiment_id)


@contextmanager
def record_trials(table: TrialTable, store: Store) -> Iterator[Recorder]:
    with Recorder(table, store, build_plan(), FIFOScheduler(), 100, lambda status: None) as recorder:
        yield recorder


def open_trial(values: dict[str, Any], plan: TrialPlan) -> FederatedTrial:
    """Returns a trial as it is in its own process."""
    trial = FederatedTrial.__new__(FederatedTrial)  # Tune's own __init__ needs a trial's directory
    trial._trial_info = None
    trial.setup(values, plan=plan)
    return trial


def train_trial(recorder: Recorder, trials: list[Trial], values: dict[str, Any]) -> None:
    """Trains one trial from its start to its end, and sends Tune's events in Tune's order."""
    trial = Trial("FederatedTrial", config=values, stub=True)
    trials.append(trial)
    trainable = open_trial(values, build_plan())
    recorder.on_trial_start(0, trials, trial)
    done = False
    while not done:
        result = trainable.step()
        recorder.on_trial_result(0, trials, trial, result)
        done = result["done"]
    recorder.on_trial_complete(0, trials, trial)
    trainable.cleanup()
