"""Delivery to an MLflow that dies, hangs, answers nonsense and returns: runs continue, and everything arrives once."""

import dataclasses
import json
import logging
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import hypothesis
import mlflow
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from mlflow import MlflowClient

import fednar_ray as fr
from fednar_ray.core.errors import BadInput, RunFailed, TrackingUnavailable
from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.generators import drain
from fednar_ray.core.reports import RoundRecord
from fednar_ray.experiments.prepare import prepare
from fednar_ray.experiments.run import train
from fednar_ray.tracking import sender
from fednar_ray.tracking.journal import Journal, load_records, parse_line
from fednar_ray.tracking.json_lines import JsonLines, read_lines
from fednar_ray.tracking.mlflow import DataSummary, RunTracker, Store
from fednar_ray.tracking.outbox import Outbox
from fednar_ray.tracking.sync import sync
from tests.conftest import set_mlflow_store
from tests.support.servers import PATIENCE_SECONDS, Proxy, Server, wait_for
from tests.support.stores import create_store

pytestmark = pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)

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
FILES = {"experiment.yaml", "partition.png", "curves.png", "step_norms.png", "metrics.jsonl"}
AWAY, BACK = "does not answer", "answers again"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that needs no server."""
    store = Store(create_store(tmp_path_factory.mktemp("database") / "m.db"))
    store.check()
    return store


@pytest.fixture(scope="module")
def server(processes: None, database: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tests' one server, which runs at the start and the end of each test."""
    shared = Server(database.uri, tmp_path_factory.mktemp("server"))
    try:
        shared.start()
        yield shared
    finally:
        shared.kill()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rounds are sent at once and silence is noticed soon, so that outages fall into short runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sender, "FLUSH_SECONDS", 0.02)
    monkeypatch.setattr(sender, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


@pytest.fixture(autouse=True)
def all_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="fednar_ray")


def told(caplog: pytest.LogCaptureFixture, text: str) -> int:
    """How often a warning said so."""
    return sum(text in record.getMessage() for record in caplog.records)


def training(uri: str) -> Any:
    tracking = EXPERIMENT.tracking.model_copy(update={"uri": uri, "experiment": "outages"})
    return train(prepare(EXPERIMENT.model_copy(update={"tracking": tracking})), fr.RaySession())


def steps(client: MlflowClient, run_id: str, metric: str = "train_loss") -> list[int]:
    return sorted(point.step for point in client.get_metric_history(run_id, metric))


def newest_run(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name("outages")
    return str(client.search_runs([experiment.experiment_id], max_results=1)[0].info.run_id)


def assert_all_is_there_once(uri: str, result: fr.Result) -> None:
    """Read back through MLflow, as a user would."""
    client = MlflowClient(uri)
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["federation.rounds"] == str(ROUNDS)
    assert run.data.tags["fednar.placement"] == "serial"
    assert len(run.inputs.dataset_inputs) == 1
    assert {file.path for file in client.list_artifacts(result.run_id)} == FILES
    assert set(run.data.metrics) == set(result.metrics)
    for metric in result.metrics:
        points = sorted(client.get_metric_history(result.run_id, metric), key=lambda point: point.step)
        assert [point.step for point in points] == list(range(ROUNDS))
        assert [point.value for point in points] == [record.metrics[metric] for record in result.history]
    (output,) = run.outputs.model_outputs
    assert [model.model_id for model in client.search_logged_models([run.info.experiment_id])
            if model.source_run_id == result.run_id] == [output.model_id]  # fmt: skip
    x = torch.zeros(3, 1, 8, 8)
    with set_mlflow_store(uri):
        assert torch.equal(mlflow.pytorch.load_model(f"runs:/{result.run_id}/model")(x), result.model(x))


def test_a_server_that_dies_during_a_run_receives_everything_when_it_returns(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = training(server.uri)
    for _ in range(4):
        next(rounds)
    client = MlflowClient(server.uri)
    wait_for(lambda: steps(client, newest_run(client)) == [0, 1, 2, 3])
    server.kill()
    for _ in range(5):
        next(rounds)
    wait_for(lambda: told(caplog, AWAY))
    server.start()
    wait_for(lambda: told(caplog, BACK))
    result = drain(rounds)
    assert_all_is_there_once(server.uri, result)
    assert (told(caplog, AWAY), told(caplog, BACK), told(caplog, "fednar sync")) == (1, 1, 0)
    assert str(sync(result.directory)) == "MLflow has everything"


@pytest.mark.usefixtures("processes")
def test_sync_in_another_process_sends_what_an_outage_at_the_end_left(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = training(server.uri)
    for _ in range(4):
        next(rounds)
    server.send(signal.SIGSTOP)  # it hangs: connections are made, and never answered
    result = drain(rounds)
    assert told(caplog, f"fednar sync {result.directory}") == 1
    with pytest.raises(TrackingUnavailable, match=f"MLflow at {server.uri} does not answer"):
        sync(result.directory)
    server.send(signal.SIGCONT)
    report = synced_elsewhere(result.directory)
    assert ROUNDS - 4 <= report["rounds"] <= ROUNDS
    assert report["operations"] >= len(["curves", "model", "end"])
    assert_all_is_there_once(server.uri, result)
    assert str(sync(result.directory)) == "MLflow has everything"


def synced_elsewhere(directory: Path) -> dict[str, Any]:
    """What ``sync`` reports in a process of its own, far from the run's working directory."""
    code = (
        "import dataclasses, json, pathlib, sys; from fednar_ray.tracking.sync import sync;"
        "print(json.dumps(dataclasses.asdict(sync(pathlib.Path(sys.argv[1]))), default=str))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, directory],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report["skipped"] is None
    return report


class AlwaysBroken(BaseHTTPRequestHandler):
    """Answers 500 to everything."""

    def _fail(self) -> None:
        body = b"<html>out of order</html>"
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = _fail  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def broken_server() -> Iterator[str]:
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
            next(training(proxy.uri))
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["an empty object", "HTML"])
def test_a_nonsense_answer_during_a_run_does_not_count_as_a_confirmation(
    kind: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with Proxy(server.uri) as proxy:
        rounds = training(proxy.uri)
        for _ in range(4):
            next(rounds)
        client = MlflowClient(server.uri)
        wait_for(lambda: steps(client, newest_run(client)) == [0, 1, 2, 3])
        proxy.nonsense = NONSENSE[kind]
        result = drain(rounds)
        assert told(caplog, f"fednar sync {result.directory}") == 1
        assert steps(client, result.run_id) == [0, 1, 2, 3]
        with pytest.raises(TrackingUnavailable, match="answers, but not as an MLflow server"):
            sync(result.directory)
        proxy.nonsense = None
        report = sync(result.directory)
        assert ROUNDS - 4 <= report.rounds <= ROUNDS
        assert_all_is_there_once(server.uri, result)
        assert str(sync(result.directory)) == "MLflow has everything"


@pytest.mark.parametrize("only", ["log-batch", "mlflow-artifacts", "logged-models", "runs/update"])
def test_a_part_that_was_lost_is_found_missing_and_sent_again(
    only: str, server: Server, database: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id, directory = new_run(database, server.uri), tmp_path / "run"
    with Proxy(server.uri, NONSENSE["an empty object"], only) as proxy:
        with RunTracker(Store(proxy.uri), run_id, directory) as tracker, Journal(directory, EXPERIMENT) as journal:
            log_everything(tracker, directory)
            follow(tracker, journal, range(7))
        assert told(caplog, "fednar sync") == 1
        proxy.nonsense = None
        report = sync(directory, proxy.uri)
        assert report.operations + report.rounds > 0
    assert_by_hand_once(Store(server.uri), run_id, rounds=7)


@pytest.mark.parametrize("status", [400, 404, 405, 410, 422])
def test_an_error_of_a_proxy_without_a_server_is_not_a_refusal(status: int, database: Store, tmp_path: Path) -> None:
    run_id, directory = new_run(database), tmp_path / "run"
    with Proxy(nonsense=b"<html>nothing here</html>") as proxy:
        proxy.status = status
        with RunTracker(Store(proxy.uri), run_id, directory) as tracker, Journal(directory, EXPERIMENT) as journal:
            tracker.log_params({"a": 1})
            follow(tracker, journal, range(3))
    assert str(sync(directory, database.uri)) == "sent 3 rounds and 2 other things"
    assert database.client.get_run(run_id).data.params == {"a": "1"}
    assert steps(database.client, run_id) == [0, 1, 2]


def test_rounds_that_mlflow_lacks_in_the_middle_are_sent_again_by_a_resumed_run(
    database: Store, tmp_path: Path
) -> None:
    """As a version left them that took any answer for MLflow's."""
    run_id, directory = new_run(database), tmp_path / "run"
    with (
        broken_server() as uri,
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
    assert steps(database.client, run_id) == list(range(6))


def test_many_rounds_are_confirmed_from_time_to_time(server: Server, database: Store, tmp_path: Path) -> None:
    """So that little is sent again after a crash, and asking does not grow faster than the rounds."""
    run_id, directory = new_run(database, server.uri), tmp_path / "run"
    with Proxy(server.uri) as proxy:
        with RunTracker(Store(proxy.uri), run_id, directory) as tracker, Journal(directory, EXPERIMENT) as journal:
            for chunk in range(10):
                follow(tracker, journal, range(100 * chunk, 100 * (chunk + 1)))
                wait_for(lambda: sent_rounds(directory) >= 100 if chunk else True)  # noqa: B023 - called at once
        asked = sum("get-history" in call for call in proxy.calls)
    assert 2 <= asked <= 6  # at 100, 200, 400, 800 and the end at most
    assert steps(database.client, run_id) == list(range(1000))


def sent_rounds(directory: Path) -> int:
    path = directory / "outbox.sent"
    return int(json.loads(path.read_text())["rounds"]) if path.exists() else 0


def new_run(database: Store, uri: str | None = None) -> str:
    """By hand; with ``uri`` one whose artifacts go through that server."""
    store = database if uri is None else Store(uri)
    return store.create_run(store.experiment_id("by hand" if uri is None else "by hand, by a server"), "by hand", {})


def record(index: int, loss: float = 0.5) -> RoundRecord:
    metrics = {"train_loss": loss, "clients_trained": 2.0}
    excluded = {3: Exclusion(ExclusionReason.FAILED, "gone")}
    return RoundRecord(round_index=index, metrics=metrics, client_ids=(1, 3), exclusions=excluded)


def follow(tracker: RunTracker, journal: Journal, rounds: range) -> None:
    """Record rounds, and report them."""
    for index in rounds:
        journal.log(record(index))
        tracker.follow(journal)


def log_everything(tracker: RunTracker, directory: Path) -> None:
    """One operation of each kind but the end."""
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
    run_id, directory = new_run(database), tmp_path / "run"
    with broken_server() as uri:
        with RunTracker(Store(uri), run_id, directory) as tracker, Journal(directory, EXPERIMENT) as journal:
            log_everything(tracker, directory)
            follow(tracker, journal, range(7))
            wait_for(lambda: told(caplog, AWAY))
        assert told(caplog, AWAY) == 1
        assert told(caplog, "7 rounds and 8 other records") == 1
        assert f"confirm it with --uri {uri}" in str(sync(directory))  # no run was ever made there
        with pytest.raises(TrackingUnavailable):
            sync(directory, uri)
        with pytest.raises(fr.BadInput, match="does not answer"):
            next(training(uri))  # before anything is trained, an absent MLflow is an error
    assert not steps(database.client, run_id)
    assert str(sync(directory, database.uri)) == "sent 7 rounds and 8 other things"
    assert str(sync(directory, database.uri)) == "MLflow has everything"
    assert_by_hand_once(database, run_id, rounds=7)


def assert_by_hand_once(database: Store, run_id: str, rounds: int) -> None:
    """What ``log_everything`` and ``follow`` log."""
    client = database.client
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1", "b": "None"}
    assert run.data.tags["color"] == "red"
    assert run.data.metrics == {"gain": 0.25, "train_loss": 0.5, "clients_trained": 2.0}
    assert steps(client, run_id) == list(range(rounds))
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
    run_id, directory = new_run(database), tmp_path / "run"
    rounds = 700  # of two metrics each: more than MLflow takes in one call
    with RunTracker(database, run_id, directory) as tracker, Journal(directory, EXPERIMENT) as journal:
        log_everything(tracker, directory)
        follow(tracker, journal, range(rounds))
    assert_by_hand_once(database, run_id, rounds=rounds)
    before = database.client.get_run(run_id).to_dictionary()
    (directory / "outbox.sent").write_text("{")  # lost: nothing is known to have arrived
    report = sync(directory)
    assert (report.operations, report.rounds) == (8, rounds)
    assert_by_hand_once(database, run_id, rounds=rounds)
    assert database.client.get_run(run_id).to_dictionary() == before


def test_sync_sends_what_a_killed_process_left(database: Store, tmp_path: Path) -> None:
    """A copy of the directory, in mid-run, is what SIGKILL leaves; add two half lines."""
    run_id, directory, left = new_run(database), tmp_path / "run", tmp_path / "left"
    with (
        broken_server() as uri,
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
    points = database.client.get_metric_history(run_id, "train_loss")
    assert [point.timestamp for point in sorted(points, key=lambda point: point.step)] == times


def test_a_run_resumed_without_its_directory_repeats_no_round(database: Store, tmp_path: Path) -> None:
    """Only a checkpoint of round 4 is left, on another machine; MLflow has rounds 0 to 6 already."""
    run_id, first, second = new_run(database), tmp_path / "first", tmp_path / "second"

    def interrupted() -> None:
        with RunTracker(database, run_id, first) as tracker, Journal(first, EXPERIMENT) as journal:
            follow(tracker, journal, range(7))
            wait_for(lambda: len(steps(database.client, run_id)) == 7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    lines = read_lines(first / "metrics.jsonl")[:4]
    run = database.client.get_run(run_id)
    assert (run.info.status, run.data.tags["fednar.end"]) == ("KILLED", "KeyboardInterrupt: ")
    before = {point.step: point.timestamp for point in database.client.get_metric_history(run_id, "train_loss")}
    with RunTracker(database, run_id, second, resumed=True) as tracker:
        wait_for(lambda: database.client.get_run(run_id).info.status == "RUNNING")
        with Journal(second, EXPERIMENT, lines=lines) as journal:
            assert journal.rounds == 4
            follow(tracker, journal, range(4, 9))
    after = {point.step: point.timestamp for point in database.client.get_metric_history(run_id, "train_loss")}
    assert steps(database.client, run_id) == list(range(9))
    assert before.items() <= after.items()
    run = database.client.get_run(run_id)
    assert (run.info.status, "fednar.end" in run.data.tags) == ("FINISHED", False)


def test_what_mlflow_refuses_is_warned_about_once_and_blocks_nothing(
    database: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id, directory = new_run(database), tmp_path / "run"
    with RunTracker(database, run_id, directory) as tracker, Journal(directory, EXPERIMENT) as journal:
        tracker.log_params({"rounds": 3})
        tracker.log_params({"rounds": 4})  # MLflow changes no parameter
        tracker.log_file(directory / "there is none.png")
        follow(tracker, journal, range(2))
    assert told(caplog, "refuses a part of run") == 2
    assert told(caplog, AWAY) == told(caplog, "fednar sync") == 0
    assert database.client.get_run(run_id).data.params == {"rounds": "3"}
    assert steps(database.client, run_id) == [0, 1]


def test_a_run_deleted_from_mlflow_is_warned_about_once(
    database: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id, directory = new_run(database), tmp_path / "run"
    database.client.delete_run(run_id)
    with RunTracker(database, run_id, directory) as tracker, Journal(directory, EXPERIMENT) as journal:
        for index in range(3):
            follow(tracker, journal, range(index, index + 1))
            tracker.log_tags({"round": str(index)})
    assert told(caplog, "refuses a part of run") == 1
    assert load_records(directory) == (record(0), record(1), record(2))


def test_sync_skips_a_run_that_is_being_written(database: Store, tmp_path: Path) -> None:
    run_id, directory = new_run(database), tmp_path / "run"
    with RunTracker(database, run_id, directory):
        report = sync(directory)
        assert report.skipped == f"{directory} is being written by a process that is running"
        with pytest.raises(BadInput, match="is being written"), RunTracker(database, run_id, directory):
            pass
    assert sync(directory).skipped is None
    assert "does not say which MLflow run" in str(sync(tmp_path))


records = st.builds(
    RoundRecord,
    round_index=st.just(0),
    metrics=st.dictionaries(st.text(max_size=20), st.floats(allow_infinity=False), max_size=5),
    client_ids=st.lists(st.integers(0, 10**6), max_size=5).map(tuple),
    exclusions=st.dictionaries(
        st.integers(0, 10**6), st.builds(Exclusion, st.sampled_from(ExclusionReason), st.text(max_size=20)), max_size=3
    ),
)


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(drawn=st.lists(records, max_size=10))
def test_rounds_are_read_back_unchanged(drawn: list[RoundRecord], tmp_path_factory: pytest.TempPathFactory) -> None:
    history = [dataclasses.replace(record, round_index=index) for index, record in enumerate(drawn)]
    directory = tmp_path_factory.mktemp("journal")
    with Journal(directory, EXPERIMENT) as journal:
        for record in history:
            journal.log(record)
        back = [journal.records(), load_records(directory), [parse_line(line) for line in journal.lines(len(history))]]
    for read in back:
        np.testing.assert_equal([*map(dataclasses.asdict, read)], [*map(dataclasses.asdict, history)])  # NaN is NaN


def test_infinite_values_become_null_in_the_journal(tmp_path: Path) -> None:
    with Journal(tmp_path, EXPERIMENT) as journal:
        journal.log(record(0, loss=float("-inf")))
        assert np.isnan(journal.records()[0].metrics["train_loss"])


@pytest.mark.parametrize("cut", [1, 40, 10**6])
def test_a_journal_cut_anywhere_keeps_its_complete_lines(
    cut: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    with Journal(tmp_path, EXPERIMENT) as journal:
        for index in range(3):
            journal.log(record(index))
        lines = journal.lines(3)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    kept = 2 if cut < len(lines[2]) else 0
    assert load_records(tmp_path) == tuple(record(index) for index in range(kept))
    with Journal(tmp_path, EXPERIMENT) as journal:
        assert journal.rounds == kept
        assert told(caplog, "are not a valid line") == (kept > 0)
        for index in range(3):
            journal.log(record(index))
        assert journal.lines(kept) == lines[:kept]
        assert journal.records() == tuple(record(index) for index in range(3))


def test_a_line_that_is_damaged_ends_the_journal_and_a_checkpoint_mends_it(tmp_path: Path) -> None:
    with Journal(tmp_path, EXPERIMENT) as journal:
        for index in range(4):
            journal.log(record(index))
        lines = journal.lines(4)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round": 1', b'"round": \x00', 1))
    with Journal(tmp_path, EXPERIMENT, lines=lines[:3]) as journal:
        assert journal.lines(journal.rounds) == lines[:3]


def test_a_journal_forgets_what_is_trained_differently(tmp_path: Path) -> None:
    with Journal(tmp_path, EXPERIMENT) as journal:
        for index in range(4):
            journal.log(record(index))
        journal.log(record(1, loss=9.0))  # recorded already: as it was
        assert journal.records()[1] == record(1)
        journal.truncate(1)
        journal.log(record(1, loss=9.0))
        assert journal.records() == (record(0), record(1, loss=9.0))
        with pytest.raises(AssertionError, match="round 5 after 2 rounds"):
            journal.log(record(5))


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file may grow beyond ``room`` bytes; the operating system writes what fits, and then fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_fails_the_run_and_leaves_whole_lines(tmp_path: Path) -> None:
    with Journal(tmp_path, EXPERIMENT) as journal:
        journal.log(record(0))
        room, message = (
            (tmp_path / "metrics.jsonl").stat().st_size + 10,
            r"metrics.jsonl cannot be written: .*; what was",
        )
        with full_disk(room), pytest.raises(RunFailed, match=message):
            journal.log(record(1))
        assert load_records(tmp_path) == (record(0),)
        journal.log(record(1))
        assert journal.records() == (record(0), record(1))


def test_what_no_longer_fits_into_the_outbox_is_sent_all_the_same_and_counts_for_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.append({"kind": "tags", "tags": {"a": "1"}})
    with full_disk(room=(tmp_path / "outbox.jsonl").stat().st_size + 10), pytest.raises(RunFailed):
        outbox.append({"kind": "tags", "tags": {"b": "2"}})
    assert [operation and operation["tags"] for operation, _ in outbox.pending] == [{"a": "1"}, {"b": "2"}]
    outbox.acknowledge(operations=2, rounds=0)
    outbox.append({"kind": "tags", "tags": {"c": "3"}})
    outbox.close()
    again = Outbox(tmp_path)
    assert [operation and operation["tags"] for operation, _ in again.pending] == [{"c": "3"}]
    again.close()


def test_lines_are_read_while_they_are_written(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "lines")
    for index in range(5):
        lines.append(json.dumps(index))
        assert lines.read(index, index + 1) == (str(index),)
    lines.close()
    assert lines.read(1, 4) == ("1", "2", "3")
    assert lines.read(2, 2) == ()
