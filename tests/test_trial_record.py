"""What the driver records of trials, driven in this process: real trials and a real MLflow, without Ray."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from fednar_ray.config import Document
from fednar_ray.config.files import parse_document
from fednar_ray.tracking.mlflow import Store
from fednar_ray.tuning.ledger import FINISHED, Ledger
from fednar_ray.tuning.recorder import Recorder
from fednar_ray.tuning.trial import FederatedTrial, TrialPlan

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Tune, about itself
    pytest.mark.filterwarnings(  # of SQLAlchemy about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]

RATE = "algorithm.local_lr"
ROUNDS = 3


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store(f"sqlite:///{tmp_path}/m.db")


def document(**search: Any) -> Document:
    experiment = {
        "name": "small",
        "data": {"source": "digits", "validation": 0.1, "partition": {"kind": "iid", "clients": 4}},
        "model": {"name": "mlp", "hidden": 4},
        "federation": {"rounds": ROUNDS, "clients_per_round": 2, "local_steps": 1},
        "execution": {"placement": "serial"},
    }
    search = {"space": {RATE: {"uniform": [0.01, 0.2]}}, "algorithm": "random", "report_rounds": 1, **search}
    return parse_document(yaml.safe_dump({"experiment": experiment, "search": search}), "f.yaml", to_search=True)


def plan_of(document: Document) -> TrialPlan:
    assert document.search is not None
    return TrialPlan(raw=document.raw, execution={"placement": "serial"}, search=document.search)


def new_ledger(store: Store) -> Ledger:
    experiment_id = store.experiment_id("small")
    run_id = store.create_run(experiment_id, "small", {})
    return Ledger(name="small", run_id=run_id, tracking_uri=store.uri, experiment_id=experiment_id)


@contextmanager
def recording(ledger: Ledger, store: Store) -> Iterator[Recorder]:
    with Recorder(ledger, store, plan_of(document()), FIFOScheduler(), 100, lambda standing: None) as recorder:
        yield recorder


def train(recorder: Recorder, trials: list[Trial], values: dict[str, Any]) -> None:
    """One trial from its start to its end, with Tune's events in Tune's order."""
    trial = Trial("FederatedTrial", config=values, stub=True)
    trials.append(trial)
    trainable = FederatedTrial.__new__(FederatedTrial)
    trainable.setup(values, plan=plan_of(document()))
    recorder.on_trial_start(0, trials, trial)
    done = False
    while not done:
        result = trainable.step()
        recorder.on_trial_result(0, trials, trial, result)
        done = result["done"]
    recorder.on_trial_complete(0, trials, trial)
    trainable.cleanup()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_ended_trials_hold_no_files_open_while_mlflow_is_slow(store: Store, tmp_path: Path) -> None:
    ledger, trials = new_ledger(store), []
    with recording(ledger, store) as recorder:
        train(recorder, trials, {RATE: 0.05})
        with closing(sqlite3.connect(tmp_path / "m.db", isolation_level=None)) as busy:
            busy.execute("BEGIN EXCLUSIVE")  # MLflow waits, and trials go on ending
            counts = []
            for index in range(12):
                train(recorder, trials, {RATE: 0.01 + index / 1000})
                counts.append(open_files())
    assert counts[11] - counts[5] <= 3, counts  # of MLflow's own connections
    client = MlflowClient(store.uri)
    assert len(ledger.trials) == 13
    for entry in ledger.trials.values():
        run = client.get_run(str(entry.run_id))
        assert (run.info.status, run.data.tags["fednar.status"]) == ("FINISHED", FINISHED)
        assert [m.step for m in client.get_metric_history(run.info.run_id, "train_loss")] == list(range(ROUNDS))
