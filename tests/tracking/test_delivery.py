"""Delivery to an MLflow server that dies, hangs or answers nonsense: runs continue, and everything arrives once."""

import dataclasses
import json
import logging
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

import fednar_ray as fr
from fednar_ray.core.errors import BadInput, TrackingUnavailable
from fednar_ray.core.generators import drain
from fednar_ray.experiments.prepare import prepare
from fednar_ray.experiments.train import train
from fednar_ray.tracking import outage, sender
from fednar_ray.tracking.datasets import DataSummary
from fednar_ray.tracking.journal import Journal, load_records
from fednar_ray.tracking.json_lines import read_lines
from fednar_ray.tracking.mlflow_names import START_UP, name_in_mlflow
from fednar_ray.tracking.store import Store
from fednar_ray.tracking.sync import sync
from fednar_ray.tracking.tracker import RunTracker
from tests.conftest import set_mlflow_store
from tests.support.journals import build_record
from tests.support.mlflow_server import Server
from tests.support.processes import ForkedProcess, finish
from tests.support.servers import Proxy, wait_for
from tests.support.stores import create_store

pytestmark = [
    pytest.mark.usefixtures("recorded_runs"),
    pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]

ROUNDS = 12
EXPERIMENT = fr.Experiment.model_validate(
    {
        "name": "outage",
        "data": {"partition": {"clients": 4}},
        "model": {"hidden": 4},
        "federation": {"rounds": ROUNDS, "clients_per_round": 2, "local_steps": 1},
        "execution": {"placement": "serial"},
    }
)
FILES = {"experiment.yaml", "curves.png", "report.html", "facts.json", "metrics.jsonl"}
AWAY, BACK = "does not answer", "answers again"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Returns a store that needs no server."""
    store = Store(create_store(tmp_path_factory.mktemp("database") / "m.db"))
    store.check()
    return store


@pytest.fixture(scope="module")
def server(processes: None, database: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yields the one server of these tests, which runs at the start and the end of each test."""
    shared = Server(database.uri, tmp_path_factory.mktemp("server"))
    try:
        shared.start()
        yield shared
    finally:
        shared.kill()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shortens intervals and timeouts, so that outages occur within short runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sender, "FLUSH_SECONDS", 0.02)
    monkeypatch.setattr(sender, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(outage, "LONGEST_PAUSE_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


@pytest.fixture(autouse=True)
def warnings_enabled(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="fednar_ray")


def count_warnings(caplog: pytest.LogCaptureFixture, text: str) -> int:
    """Counts the warnings that contain a text."""
    return sum(text in record.getMessage() for record in caplog.records)


def start_training(uri: str) -> Any:
    tracking = EXPERIMENT.tracking.model_copy(update={"uri": uri, "experiment": "outages"})
    return train(prepare(EXPERIMENT.model_copy(update={"tracking": tracking})), fr.RaySession())


def load_steps(client: MlflowClient, run_id: str, metric: str = "loss/train") -> list[int]:
    return sorted(point.step for point in client.get_metric_history(run_id, metric))


def find_newest_run(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name("outages")
    return str(client.search_runs([experiment.experiment_id], max_results=1)[0].info.run_id)


def assert_all_is_there_once(uri: str, result: fr.Result) -> None:
    """Asserts through MLflow's client that everything arrived once."""
    client = MlflowClient(uri)
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["federation.rounds"] == str(ROUNDS)
    assert run.data.tags["fednar.placement"] == "serial"
    assert len(run.inputs.dataset_inputs) == 2  # training and test
    assert {file.path for file in client.list_artifacts(result.run_id)} == FILES
    assert set(run.data.metrics) == {*map(name_in_mlflow, result.metrics), name_in_mlflow(START_UP)}
    for metric in result.metrics:
        points = sorted(client.get_metric_history(result.run_id, name_in_mlflow(metric)), key=lambda point: point.step)
        assert [point.step for point in points] == list(range(ROUNDS))
        assert [point.value for point in points] == [record.metrics[metric] for record in result.history]
    (output,) = run.outputs.model_outputs
    assert [model.model_id for model in client.search_logged_models([run.info.experiment_id])
            if model.source_run_id == result.run_id] == [output.model_id]  # fmt: skip
    x = torch.zeros(3, 1, 8, 8)
    with set_mlflow_store(uri):
        assert torch.equal(mlflow.pytorch.load_model(f"runs:/{result.run_id}/model")(x), result.model(x))


def test_a_server_that_dies_during_a_run_receives_everything_after_its_restart(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = start_training(server.uri)
    for _ in range(4):
        next(rounds)
    client = MlflowClient(server.uri)
    wait_for(lambda: load_steps(client, find_newest_run(client)) == [0, 1, 2, 3])
    server.kill()
    for _ in range(5):
        next(rounds)
    wait_for(lambda: count_warnings(caplog, AWAY))
    server.start()
    wait_for(lambda: count_warnings(caplog, BACK))
    result = drain(rounds)
    assert_all_is_there_once(server.uri, result)
    assert (count_warnings(caplog, AWAY), count_warnings(caplog, BACK), count_warnings(caplog, "fednar sync")) == (
        1,
        1,
        0,
    )
    assert str(sync(result.directory)) == "MLflow has everything"


@pytest.mark.usefixtures("processes")
def test_sync_in_another_process_sends_the_rest_after_an_outage(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = start_training(server.uri)
    for _ in range(4):
        next(rounds)
    server.send(signal.SIGSTOP)  # it hangs: connections are accepted but never answered
    with monkeypatch.context() as short:
        short.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # no answer will come
        result = drain(rounds)
        assert count_warnings(caplog, f"fednar sync {result.directory}") == 1
        with pytest.raises(TrackingUnavailable, match=f"MLflow at {server.uri} does not answer"):
            sync(result.directory)
    server.send(signal.SIGCONT)
    report = sync_elsewhere(result.directory)
    assert ROUNDS - 4 <= report["rounds"] <= ROUNDS
    assert report["operations"] >= len(["curves", "model", "end"])
    assert_all_is_there_once(server.uri, result)
    assert str(sync(result.directory)) == "MLflow has everything"


def sync_and_print(directory: Path) -> None:
    print(json.dumps(dataclasses.asdict(sync(directory)), default=str))


def sync_elsewhere(directory: Path) -> dict[str, Any]:
    """Runs ``sync`` in its own process outside of the run's working directory, and returns its report."""
    done = finish(ForkedProcess(sync_and_print, directory, cwd="/"))
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report["skipped"] is None
    return report


class AlwaysBroken(BaseHTTPRequestHandler):
    """A handler that answers 500 to every request."""

    def _fail(self) -> None:
        body = b"<html>out of order</html>"
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = _fail  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@contextmanager
def run_broken_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), AlwaysBroken) as broken:
        thread = Thread(target=broken.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{broken.server_port}"
        broken.shutdown()
        thread.join()


NONSENSE = {
    "an empty object": b"{}",
    "null": b"null",
    "a list": b"[]",
    "nothing": b"",
    "text": b"OK",
    "HTML": b"<html><body>Please log in</body></html>",
    "foreign JSON": b'{"status": "ok", "data": {"items": [1, 2]}}',
    "an empty run": b'{"run": {}, "experiment": {}, "experiment_id": ""}',
    "another experiment": b'{"experiment": {"experiment_id": "7", "name": "other"}, "experiments": []}',
    "a path for an id": b'{"experiment": {"experiment_id": "0", "name": "outages"}, "experiments": [],'
    b' "run": {"info": {"run_id": "../../x", "experiment_id": "0"}}}',
    "fields of other kinds": b'{"run": 5, "experiment": [], "experiments": "none"}',
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_server_that_answers_nonsense_is_refused_before_anything_is_trained(kind: str, tmp_path: Path) -> None:
    with Proxy(nonsense=NONSENSE[kind]) as proxy:
        with pytest.raises(TrackingUnavailable, match=f"{proxy.uri} answers, but not as an MLflow server: "):
            next(start_training(proxy.uri))
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["an empty object", "HTML"])
def test_a_nonsense_answer_during_a_run_does_not_count_as_a_confirmation(
    kind: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with Proxy(server.uri) as proxy:
        rounds = start_training(proxy.uri)
        for _ in range(4):
            next(rounds)
        client = MlflowClient(server.uri)
        wait_for(lambda: load_steps(client, find_newest_run(client)) == [0, 1, 2, 3])
        proxy.nonsense = NONSENSE[kind]
        result = drain(rounds)
        assert count_warnings(caplog, f"fednar sync {result.directory}") == 1
        assert load_steps(client, result.run_id) == [0, 1, 2, 3]
        with pytest.raises(TrackingUnavailable, match="answers, but not as an MLflow server"):
            sync(result.directory)
        proxy.nonsense = None
        report = sync(result.directory)
        assert ROUNDS - 4 <= report.rounds <= ROUNDS
        assert_all_is_there_once(server.uri, result)
        assert str(sync(result.directory)) == "MLflow has everything"


@pytest.mark.parametrize("only", ["log-batch", "mlflow-artifacts", "logged-models", "runs/update"])
def test_a_lost_part_is_detected_and_sent_again(
    only: str, server: Server, database: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id, directory = create_run(database, server.uri), tmp_path / "run"
    with Proxy(server.uri, NONSENSE["an empty object"], only) as proxy:
        with RunTracker(Store(proxy.uri), run_id, directory) as tracker, Journal(directory, EXPERIMENT) as journal:
            log_everything(tracker, directory)
            follow(tracker, journal, range(7))
        assert count_warnings(caplog, "fednar sync") == 1
        proxy.nonsense = None
        report = sync(directory, proxy.uri)
        assert report.operations + report.rounds > 0
    assert_by_hand_once(Store(server.uri), run_id, rounds=7)


@pytest.mark.parametrize("only", ["runs/get", "logged-models"])
def test_one_nonsense_answer_loses_nothing_whichever_it_is(
    only: str, server: Server, database: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "PATIENCE_SECONDS", 0.0)
    for at in count():
        run_id, directory = create_run(database, server.uri), tmp_path / f"run-{at}"
        with (
            Proxy(nonsense=NONSENSE["HTML"]) as away,
            RunTracker(Store(away.uri), run_id, directory) as tracker,
            Journal(directory, EXPERIMENT) as journal,
        ):
            log_everything(tracker, directory)
            follow(tracker, journal, range(2))
        with Proxy(server.uri, NONSENSE["an empty object"], only, at) as proxy:
            with suppress(TrackingUnavailable):
                sync(directory, proxy.uri)
            sync(directory, proxy.uri)
            assert_by_hand_once(Store(server.uri), run_id, rounds=2)
            if proxy.count_matching() <= at:
                break
    assert at > 2  # places of files, of the model, and confirmations were asked for


@pytest.mark.parametrize("status", [400, 404, 405, 410, 422])
def test_an_error_of_a_proxy_without_its_server_is_not_a_refusal(status: int, database: Store, tmp_path: Path) -> None:
    run_id, directory = create_run(database), tmp_path / "run"
    with Proxy(nonsense=b"<html>nothing here</html>") as proxy:
        proxy.status = status
        with RunTracker(Store(proxy.uri), run_id, directory) as tracker, Journal(directory, EXPERIMENT) as journal:
            tracker.log_params({"a": 1})
            follow(tracker, journal, range(3))
    assert str(sync(directory, database.uri)) == "sent 3 rounds and 2 other things"
    assert database.client.get_run(run_id).data.params == {"a": "1"}
    assert load_steps(database.client, run_id) == [0, 1, 2]


def test_a_resumed_run_sends_rounds_that_are_missing_in_mlflow(database: Store, tmp_path: Path) -> None:
    """An earlier version, which accepted any answer as MLflow's, left such runs."""
    run_id, directory = create_run(database), tmp_path / "run"
    with (
        run_broken_server() as uri,
        RunTracker(Store(uri), run_id, directory) as tracker,
        Journal(directory, EXPERIMENT) as journal,
    ):
        follow(tracker, journal, range(6))
    lines = [json.loads(line) for line in read_lines(directory / "metrics.jsonl")]
    for index in (0, 1, 4):
        for name, value in lines[index]["metrics"].items():
            database.client.log_metric(run_id, name, value, lines[index]["time"], index)
    (directory / "outbox.sent").write_text(json.dumps({"operations": 1, "rounds": 6}))
    with RunTracker(database, run_id, directory, resumed=True) as tracker, Journal(directory, EXPERIMENT) as journal:
        tracker.follow(journal)
    assert load_steps(database.client, run_id) == list(range(6))


def test_many_rounds_are_confirmed_at_growing_intervals(server: Server, database: Store, tmp_path: Path) -> None:
    """Little is sent again after a crash, and the number of confirmations grows slower than the rounds."""
    run_id, directory = create_run(database, server.uri), tmp_path / "run"
    with Proxy(server.uri) as proxy:
        with RunTracker(Store(proxy.uri), run_id, directory) as tracker, Journal(directory, EXPERIMENT) as journal:
            for chunk in range(10):
                follow(tracker, journal, range(100 * chunk, 100 * (chunk + 1)))
                wait_for(lambda: count_sent_rounds(directory) >= 100 if chunk else True)  # noqa: B023 - called at once
        asked = sum("get-history" in call for call in proxy.calls)
    assert 2 <= asked <= 6  # at 100, 200, 400, 800 and the end at most
    assert load_steps(database.client, run_id) == list(range(1000))


def count_sent_rounds(directory: Path) -> int:
    path = directory / "outbox.sent"
    return int(json.loads(path.read_text())["rounds"]) if path.exists() else 0


def create_run(database: Store, uri: str | None = None) -> str:
    """Creates a run directly; with ``uri``, its artifacts go through that server."""
    store = database if uri is None else Store(uri)
    return store.create_run(
        store.ensure_experiment("by hand" if uri is None else "by hand, by a server"), "by hand", {}
    )


def follow(tracker: RunTracker, journal: Journal, rounds: range) -> None:
    """Records rounds in the journal and reports them to the tracker."""
    for index in rounds:
        journal.log(build_record(index))
        tracker.follow(journal)


def log_everything(tracker: RunTracker, directory: Path) -> None:
    """Logs one operation of each kind except the end."""
    tracker.log_params({"a": 1, "b": None})
    tracker.log_tags({"color": "red"})
    tracker.log_data(DataSummary(name="d", digest="0", clients=2, examples=5, input_shape=(2,), classes=3))
    tracker.log_experiment(EXPERIMENT)
    tracker.log_table([{"client": 1, "why": "late"}, {"client": 2, "why": float("nan")}], "dropped.json")
    tracker.log_metrics({"gain": 0.25, "lost": float("inf")})
    tracker.save_model(torch.nn.Linear(2, 3).eval(), np.ones((2, 2), dtype=np.float32))


def test_a_run_continues_if_the_server_answers_500_to_everything(
    database: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id, directory = create_run(database), tmp_path / "run"
    with run_broken_server() as uri:
        with RunTracker(Store(uri), run_id, directory) as tracker, Journal(directory, EXPERIMENT) as journal:
            log_everything(tracker, directory)
            follow(tracker, journal, range(7))
            wait_for(lambda: count_warnings(caplog, AWAY))
        assert count_warnings(caplog, AWAY) == 1
        assert count_warnings(caplog, "7 rounds and 8 other records") == 1
        assert f"confirm it with --uri {uri}" in str(sync(directory))  # no run was ever created there
        with pytest.raises(TrackingUnavailable):
            sync(directory, uri)
        with pytest.raises(fr.BadInput, match="does not answer"):
            next(start_training(uri))  # an unavailable MLflow is an error before anything is trained
    assert not load_steps(database.client, run_id)
    assert str(sync(directory, database.uri)) == "sent 7 rounds and 8 other things"
    assert str(sync(directory, database.uri)) == "MLflow has everything"
    assert_by_hand_once(database, run_id, rounds=7)


def assert_by_hand_once(database: Store, run_id: str, rounds: int) -> None:
    """Asserts that MLflow has everything that ``log_everything`` and ``follow`` log, once."""
    client = database.client
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1", "b": "None"}
    assert run.data.tags["color"] == "red"
    assert run.data.metrics == {"gain": 0.25, "loss/train": 0.5, "clients/trained": 2.0}
    assert load_steps(client, run_id) == list(range(rounds))
    assert len(client.get_metric_history(run_id, "gain")) == 1
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["d"]
    assert {file.path for file in client.list_artifacts(run_id)} == {"experiment.yaml", "dropped.json"}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "dropped.json", "type": "table"}]
    with set_mlflow_store(database.uri):
        table = client.load_table(run.info.experiment_id, "dropped.json", [run_id])
    assert table["client"].to_list() == [1, 2]
    assert table["why"].fillna("unknown").to_list() == ["late", "unknown"]
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert [model.model_id for model in models] == [output.model_id for output in run.outputs.model_outputs]
    assert [model.status for model in models] == ["READY"]


def test_sending_everything_a_second_time_changes_nothing(database: Store, tmp_path: Path) -> None:
    run_id, directory = create_run(database), tmp_path / "run"
    rounds = 700  # two metrics per round: more than MLflow accepts in one call
    with RunTracker(database, run_id, directory) as tracker, Journal(directory, EXPERIMENT) as journal:
        log_everything(tracker, directory)
        follow(tracker, journal, range(rounds))
    assert_by_hand_once(database, run_id, rounds=rounds)
    before = database.client.get_run(run_id).to_dictionary()
    (directory / "outbox.sent").write_text("{")  # the record of what arrived is lost
    report = sync(directory)
    assert (report.operations, report.rounds) == (8, rounds)
    assert_by_hand_once(database, run_id, rounds=rounds)
    assert database.client.get_run(run_id).to_dictionary() == before


def test_sync_sends_the_unsent_operations_of_a_killed_process(database: Store, tmp_path: Path) -> None:
    """A copy of the directory during a run, with two incomplete lines, has the state after SIGKILL."""
    run_id, directory, left = create_run(database), tmp_path / "run", tmp_path / "left"
    with (
        run_broken_server() as uri,
        RunTracker(Store(uri), run_id, directory) as tracker,
        Journal(directory, EXPERIMENT) as journal,
    ):
        log_everything(tracker, directory)
        follow(tracker, journal, range(6))
        shutil.copytree(directory, left)
    for name, half in {"metrics.jsonl": b'{"round": 6, "met', "outbox.jsonl": b'{"kind": "ta'}.items():
        with (left / name).open("ab") as file:
            file.write(half)
    with RunTracker(database, run_id, left, resumed=True) as tracker, Journal(left, EXPERIMENT) as journal:
        assert journal.rounds == 6
        follow(tracker, journal, range(3, 9))  # from a checkpoint at round 3
    assert_by_hand_once(database, run_id, rounds=9)
    times = [json.loads(line)["time"] for line in read_lines(left / "metrics.jsonl")]
    points = database.client.get_metric_history(run_id, "loss/train")
    assert [point.timestamp for point in sorted(points, key=lambda point: point.step)] == times


def test_a_run_resumed_without_its_directory_records_no_round_twice(database: Store, tmp_path: Path) -> None:
    """On another machine only a checkpoint of round 4 exists, while MLflow already has rounds 0 to 6."""
    run_id, first, second = create_run(database), tmp_path / "first", tmp_path / "second"

    def interrupted() -> None:
        with RunTracker(database, run_id, first) as tracker, Journal(first, EXPERIMENT) as journal:
            follow(tracker, journal, range(7))
            wait_for(lambda: len(load_steps(database.client, run_id)) == 7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    lines = read_lines(first / "metrics.jsonl")[:4]
    run = database.client.get_run(run_id)
    assert (run.info.status, run.data.tags["fednar.end"]) == ("KILLED", "KeyboardInterrupt: ")
    before = {point.step: point.timestamp for point in database.client.get_metric_history(run_id, "loss/train")}
    with RunTracker(database, run_id, second, resumed=True) as tracker:
        wait_for(lambda: database.client.get_run(run_id).info.status == "RUNNING")
        with Journal(second, EXPERIMENT, lines=lines) as journal:
            assert journal.rounds == 4
            follow(tracker, journal, range(4, 9))
    after = {point.step: point.timestamp for point in database.client.get_metric_history(run_id, "loss/train")}
    assert load_steps(database.client, run_id) == list(range(9))
    assert before.items() <= after.items()
    run = database.client.get_run(run_id)
    assert (run.info.status, "fednar.end" in run.data.tags) == ("FINISHED", False)


def test_an_operation_that_mlflow_refuses_is_warned_about_once_and_blocks_nothing(
    database: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id, directory = create_run(database), tmp_path / "run"
    with RunTracker(database, run_id, directory) as tracker, Journal(directory, EXPERIMENT) as journal:
        tracker.log_params({"rounds": 3})
        tracker.log_params({"rounds": 4})  # MLflow refuses to change a parameter
        tracker.log_file(directory / "there is none.png")
        follow(tracker, journal, range(2))
    assert count_warnings(caplog, "refuses a part of run") == 2
    assert count_warnings(caplog, AWAY) == count_warnings(caplog, "fednar sync") == 0
    assert database.client.get_run(run_id).data.params == {"rounds": "3"}
    assert load_steps(database.client, run_id) == [0, 1]


def test_a_run_deleted_from_mlflow_is_warned_about_once(
    database: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id, directory = create_run(database), tmp_path / "run"
    database.client.delete_run(run_id)
    with RunTracker(database, run_id, directory) as tracker, Journal(directory, EXPERIMENT) as journal:
        for index in range(3):
            follow(tracker, journal, range(index, index + 1))
            tracker.log_tags({"round": str(index)})
    assert count_warnings(caplog, "refuses a part of run") == 1
    assert load_records(directory) == (build_record(0), build_record(1), build_record(2))


def test_sync_skips_a_run_that_is_being_written(database: Store, tmp_path: Path) -> None:
    run_id, directory = create_run(database), tmp_path / "run"
    with RunTracker(database, run_id, directory):
        report = sync(directory)
        assert report.skipped == f"{directory} is being written by a process that is running"
        with pytest.raises(BadInput, match="is being written"), RunTracker(database, run_id, directory):
            pass
    assert sync(directory).skipped is None
    assert "does not say which MLflow run" in str(sync(tmp_path))
