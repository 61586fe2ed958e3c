"""One sender for many runs: all of them are complete in MLflow, with few calls."""

import logging
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import fednar_ray as fr
from fednar_ray.tracking import shared_sender
from fednar_ray.tracking.journal import Journal
from fednar_ray.tracking.shared_sender import SharedSender
from fednar_ray.tracking.store import Store
from fednar_ray.tracking.sync import sync
from fednar_ray.tracking.tracker import RunTracker
from tests.support.journals import build_record
from tests.support.servers import wait_for
from tests.support.stores import create_store

pytestmark = pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)

ROUNDS, RUNS = 12, 3
EXPERIMENT = fr.Experiment.model_validate({"name": "many", "execution": {"placement": "serial"}})


class CountingClient(MlflowClient):  # type: ignore[misc]
    """MLflow's client, which counts the calls that store metrics, parameters and tags."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.batches: Counter[str] = Counter()

    def log_batch(self, run_id: str, *args: Any, **kwargs: Any) -> Any:
        self.batches[run_id] += 1
        return super().log_batch(run_id, *args, **kwargs)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(create_store(tmp_path / "m.db"))
    store.__dict__["client"] = CountingClient(store.uri)
    return store


def create_runs(store: Store) -> list[str]:
    experiment_id = store.ensure_experiment("many")
    return [store.create_run(experiment_id, f"run {index}", {}) for index in range(RUNS)]


def record(stack: ExitStack, tracker: RunTracker, directory: Path, rounds: range) -> Journal:
    stack.enter_context(tracker)
    journal = stack.enter_context(Journal(directory, EXPERIMENT))
    tracker.log_params({"directory": directory.name})
    tracker.follow(journal)
    for index in rounds:
        journal.log(build_record(index, loss=1 / (1 + index)))
    return journal


def load_steps(store: Store, run_id: str) -> list[int]:
    return sorted(point.step for point in store.client.get_metric_history(run_id, "loss/train"))


def test_runs_are_complete_after_one_call_each(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_sender, "LONGEST_WAIT_SECONDS", 600.0)
    run_ids = create_runs(store)
    with SharedSender(store.uri) as sender:
        for index, run_id in enumerate(run_ids):
            directory = tmp_path / f"run-{index}"
            tracker = RunTracker(store, run_id, directory, sender=sender)
            own = ExitStack()
            record(own, tracker, directory, range(ROUNDS))
            tracker.log_tags({"index": str(index)})
            tracker.log_metrics({"total": 3.0})
            sender.submit(own.close)
    assert isinstance(store.client, CountingClient)
    assert store.client.batches == dict.fromkeys(run_ids, 1)
    for index, run_id in enumerate(run_ids):
        run = store.client.get_run(run_id)
        assert (run.info.status, run.data.params) == ("FINISHED", {"directory": f"run-{index}"})
        assert (run.data.tags["index"], run.data.metrics["total"]) == (str(index), 3.0)
        assert (load_steps(store, run_id), run.data.metrics["loss/train"]) == (list(range(ROUNDS)), 1 / ROUNDS)


@pytest.mark.parametrize("limit", ["LONGEST_WAIT_SECONDS", "MOST_WAITING_METRICS"])
def test_rounds_of_open_runs_are_sent_when_they_are_due_or_too_many(
    limit: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_sender, limit, 0)
    (run_id, *_) = create_runs(store)
    with SharedSender(store.uri) as sender, ExitStack() as stack:
        record(stack, RunTracker(store, run_id, tmp_path / "run", sender=sender), tmp_path / "run", range(ROUNDS))
        wait_for(lambda: load_steps(store, run_id) == list(range(ROUNDS)))
        assert store.client.get_run(run_id).info.status == "RUNNING"
        sender.submit(stack.pop_all().close)
    assert store.client.get_run(run_id).info.status == "FINISHED"


def test_the_error_of_a_call_is_raised_at_the_end_and_stops_no_other_call(store: Store) -> None:
    called: list[str] = []

    def fail() -> None:
        raise OSError("the disk is full")

    def submit() -> None:
        with SharedSender(store.uri) as sender:
            sender.submit(fail)
            sender.submit(lambda: called.append("after"))

    with pytest.raises(OSError, match="the disk is full"):
        submit()
    assert called == ["after"]


def test_an_outage_delays_the_end_of_all_runs_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="fednar_ray")
    monkeypatch.setattr(shared_sender, "PATIENCE_SECONDS", 0.1)
    run_ids = create_runs(store)
    away = Store("http://127.0.0.1:1")
    with SharedSender(away.uri) as sender:
        for index, run_id in enumerate(run_ids):
            own, directory = ExitStack(), tmp_path / f"run-{index}"
            record(own, RunTracker(away, run_id, directory, sender=sender), directory, range(ROUNDS))
            sender.submit(own.close)
    messages = [entry.getMessage() for entry in caplog.records]
    assert [sum(f"fednar sync {tmp_path / f'run-{index}'}" in each for each in messages) for index in range(3)] == [
        1
    ] * 3
    assert str(sync(tmp_path / "run-2", store.uri)) == f"sent {ROUNDS} rounds and 2 other things"
    assert load_steps(store, run_ids[2]) == list(range(ROUNDS))
