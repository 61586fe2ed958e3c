"""Another process stores batches; whatever happens to it, nothing is lost and errors are those of this process."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from fednar_ray.tracking.database_process import DatabaseProcess, open_database_process
from fednar_ray.tracking.store import Store
from tests.support.servers import wait_for
from tests.support.stores import create_store

pytestmark = pytest.mark.usefixtures("processes")

PARENT = """
import signal, sys, time
from fednar_ray.tracking.database_process import DatabaseProcess

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts with & ignore it
with DatabaseProcess(sys.argv[1]):
    print(flush=True)
    time.sleep(600)
"""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'new.db'}"


@pytest.fixture(scope="module")
def shared_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('shared') / 'new.db'}"


@pytest.fixture(scope="module")
def process(shared_uri: str) -> Iterator[DatabaseProcess]:
    with open_process(shared_uri) as process:
        yield process


@contextmanager
def open_process(uri: str) -> Iterator[DatabaseProcess]:
    with DatabaseProcess(uri) as process:
        run_id = create_run(uri)  # waits until one of both processes has created the database
        wait_for(lambda: process.log_batch(uri, run_id, [], {}, {}), "the process")
        yield process


def create_run(uri: str) -> str:
    store = Store(uri)
    return store.create_run(store.ensure_experiment("here"), "run", {})


def find_children(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children() if "database_server" in " ".join(child.cmdline())]


def test_the_process_stores_batches_in_the_database_that_it_has_created(
    process: DatabaseProcess, shared_uri: str
) -> None:
    run_id = create_run(shared_uri)
    assert process.log_batch(shared_uri, run_id, [("loss", 0.5, 7, 1), ("loss", 2.5, 6, 0)], {"a": "1"}, {"b": "ü\n"})
    client = Store(shared_uri).client
    data = client.get_run(run_id).data
    assert (data.metrics, data.params, data.tags["b"]) == ({"loss": 0.5}, {"a": "1"}, "ü\n")
    history = client.get_metric_history(run_id, "loss")
    assert sorted((point.step, point.value, point.timestamp) for point in history) == [(0, 2.5, 6), (1, 0.5, 7)]


def test_clients_store_through_the_process_what_it_can_store(
    process: DatabaseProcess, shared_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, client, answers = create_run(shared_uri), Store(shared_uri).client, list[bool]()
    log_batch = process.log_batch

    def note(*batch: object) -> bool:
        answers.append(log_batch(*batch))  # type: ignore[arg-type]
        return answers[-1]

    monkeypatch.setattr(process, "log_batch", note)
    client.log_batch(run_id, [Metric("loss", 0.5, 7, 1)], [Param("a", "1")], [RunTag("b", "2")])
    with pytest.raises(MlflowException, match="Changing param values is not allowed"):
        client.log_batch(run_id, params=[Param("a", "other")])
    client.log_batch(run_id, [Metric("loss", 0.25, 8, 2)])
    assert answers == [True, False, True]
    data = client.get_run(run_id).data
    assert (data.metrics, data.params, data.tags["b"]) == ({"loss": 0.25}, {"a": "1"}, "2")
    model = client.create_logged_model(client.get_run(run_id).info.experiment_id, source_run_id=run_id)
    client.log_batch(run_id, [Metric("loss", 0.125, 9, 3, model.model_id, "digits", "5e1f")])
    assert answers[3:] == [True]
    (linked,) = client.get_logged_model(model.model_id).metrics
    assert (linked.value, linked.step, linked.dataset_name, linked.dataset_digest) == (0.125, 3, "digits", "5e1f")


def test_batches_for_another_store_are_not_stored_in_this_one(
    process: DatabaseProcess, shared_uri: str, tmp_path: Path
) -> None:
    other = create_store(tmp_path / "other.db")
    run_id = create_run(other)
    assert not process.log_batch(other, run_id, [("loss", 0.5, 7, 1)], {}, {})
    Store(other).client.log_batch(run_id, [Metric("loss", 0.5, 7, 1)])
    assert Store(other).client.get_run(run_id).data.metrics == {"loss": 0.5}


def test_a_process_that_was_killed_is_done_without(tmp_path: Path) -> None:
    uri = create_store(tmp_path / "existing.db")
    before = find_children(os.getpid())
    with open_process(uri):
        (child,) = set(find_children(os.getpid())) - set(before)
        child.kill()
        wait_for(lambda: child.status() == psutil.STATUS_ZOMBIE)
        run_id = create_run(uri)
        for step in range(2):
            Store(uri).client.log_batch(run_id, [Metric("loss", 0.5, 7, step)])
    assert len(Store(uri).client.get_metric_history(run_id, "loss")) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_process_survives_an_interrupt_of_its_parent_and_ends_with_it(number: signal.Signals, uri: str) -> None:
    command = [sys.executable, "-c", PARENT, uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as parent:
        assert parent.stdout is not None
        try:
            parent.stdout.readline()
            # a process that has just been started has no command line for a moment
            (child,) = wait_for(lambda: find_children(parent.pid), "the process")
            os.killpg(parent.pid, number)
        except BaseException:
            parent.kill()
            raise
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running()
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:  # it has created all of it
        assert database.execute("SELECT name FROM experiments").fetchall() == [("Default",)]


def test_no_process_is_started_for_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    before = find_children(os.getpid())
    with open_database_process("http://127.0.0.1:1"):
        assert find_children(os.getpid()) == before
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with open_database_process(None):
        assert find_children(os.getpid()) == before
