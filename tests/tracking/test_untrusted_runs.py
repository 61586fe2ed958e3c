"""Run directories from somebody else: no file outside of them is sent, and nothing to an unconfirmed address."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fednar_ray.core.errors import BadInput, RunFailed
from fednar_ray.tracking.addresses import check_confirmed, confirm, get_addresses_file
from fednar_ray.tracking.file_writes import replace_file
from fednar_ray.tracking.inside import resolve_inside
from fednar_ray.tracking.json_lines import JsonLines
from fednar_ray.tracking.locks import lock_run_directory
from fednar_ray.tracking.store import Store
from fednar_ray.tracking.sync import sync
from tests.support.commands import run_in_process
from tests.support.servers import Proxy

pytestmark = [
    pytest.mark.usefixtures("recorded_runs"),
    pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sets up a user who has never run anything."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "here" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")


def write_untrusted_run(path: Path, uri: str, run_id: str, *operations: dict[str, Any]) -> Path:
    path.mkdir(parents=True)
    (path / "experiment.yaml").write_text("experiment: {name: stranger}")
    (path / "run.json").write_text(json.dumps({"run_id": run_id, "tracking_uri": uri}))
    (path / "outbox.jsonl").write_text("".join(json.dumps(operation) + "\n" for operation in operations))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path}/store/m.db")


def list_artifacts(store: Store, run_id: str) -> set[str]:
    return {file.path for file in store.client.list_artifacts(run_id)}


def test_only_files_inside_the_run_directory_are_sent(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = store.create_run(store.ensure_experiment("x"), "x", {})
    (tmp_path / "here" / "secret.txt").write_text("secret")
    (tmp_path / "here" / "secrets").mkdir()
    (tmp_path / "here" / "secrets" / "key").write_text("secret")
    names = [
        "../../secret.txt",
        "/etc/hostname",
        "link.txt",
        "linked/key",
        "linked",
        "model",
        "pipe",
        "a\0b",
        "fine.txt",
    ]
    kinds = {"model": "model"}
    run = write_untrusted_run(
        tmp_path / "here" / "runs" / "stranger-0",
        store.uri,
        run_id,
        *({"kind": kinds.get(name, "file"), "path": name} for name in names),
        {"kind": "table", "path": "../../secret.txt"},
    )
    (run / "fine.txt").write_text("fine")
    (run / "link.txt").symlink_to("../../secret.txt")
    (run / "linked").symlink_to("../../secrets")
    (run / "model").mkdir()
    (run / "model" / "MLmodel").symlink_to(tmp_path / "here" / "secrets" / "key")
    os.mkfifo(run / "pipe")
    report = sync(run, store.uri)
    assert report.problem is None
    assert report.operations == 1
    assert list_artifacts(store, run_id) == {"fine.txt"}
    assert store.client.search_logged_models([store.ensure_experiment("x")]) == []
    warnings = [record.getMessage() for record in caplog.records if "refuses a part" in record.getMessage()]
    for name in [*names[:-1], "../../secret.txt"]:
        assert any(repr(name) in line for line in warnings), name
    assert str(sync(run, store.uri)) == "MLflow has everything"


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "a/../../x", "loop", "dangling"])
def test_paths_that_lead_outside_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("../nothing")
    with pytest.raises(BadInput, match="is not sent"):
        resolve_inside(tmp_path, name)


def test_files_of_a_directory_behind_a_link_are_inside(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("x")
    (tmp_path / "real" / "alias").symlink_to("file")
    (tmp_path / "run").symlink_to("real")
    for name in ("file", "alias", "./file", "../run/file"):
        assert resolve_inside(tmp_path / "run", name).read_text() == "x"


def test_links_are_not_followed_when_files_are_written(store: Store, tmp_path: Path) -> None:
    run_id = store.create_run(store.ensure_experiment("x"), "x", {})
    mine = tmp_path / "mine.txt"
    for name in ("outbox.jsonl", "metrics.jsonl", "outbox.sent.new", "lock"):
        mine.write_text("my notes")
        run = write_untrusted_run(tmp_path / name, store.uri, run_id, {"kind": "tags", "tags": {"a": "b"}})
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(mine)
        report = sync(run, store.uri)
        assert mine.read_text() == "my notes", name
        assert name == "outbox.sent.new" or "it is a link" in str(report.problem)
    (tmp_path / "file").symlink_to(mine)
    with pytest.raises(RunFailed, match="it is a link"):
        JsonLines(tmp_path / "file")
    replace_file(tmp_path / "file", "new")
    assert ((tmp_path / "file").read_text(), mine.read_text()) == ("new", "my notes")


@pytest.fixture
def listening() -> Iterator[Proxy]:
    with Proxy(nonsense=b"{}") as proxy:
        yield proxy


def test_nothing_is_sent_to_an_address_that_only_the_run_directory_names(
    listening: Proxy,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = listening.uri
    runs = tmp_path / "here" / "runs"
    run = write_untrusted_run(runs / "stranger-0", uri, "a" * 32, {"kind": "tags", "tags": {"a": "b"}})
    own = store.create_run(store.ensure_experiment("x"), "x", {})  # from now on the store belongs to this user
    write_untrusted_run(runs / "own-0", store.uri, own, {"kind": "tags", "tags": {"a": "b"}})
    assert run_in_process(monkeypatch, "sync") == 0  # all runs that can be sent are sent
    out = capsys.readouterr().out
    assert "own-0: sent 0 rounds and 1 other things" in out
    assert f"stranger-0: not sent: {run} names the tracking store {uri}" in out
    assert f"--uri {uri}" in out
    assert run_in_process(monkeypatch, "sync", "stranger-0") == 2
    assert f"confirm it with --uri {uri}" in capsys.readouterr().err
    assert run_in_process(monkeypatch, "report", "stranger-0") == 2
    assert not listening.calls
    assert run_in_process(monkeypatch, "sync", "stranger-0", "--uri", uri) == 2  # confirmed, but not an MLflow server
    assert "answers, but not as an MLflow server" in capsys.readouterr().err
    assert listening.calls


def test_an_address_is_confirmed_by_settings_or_by_an_own_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="confirm it with --uri http://a:1"):
        check_confirmed("http://a:1", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a:1")
    check_confirmed("http://a:1", tmp_path)
    check_confirmed("http://somebody:secret@a:1", tmp_path)
    for other in ("http://a:1@b:1", "http://a:2", "https://a:1", "http://a:1/x", "http://a", "sqlite:////x/m.db"):
        with pytest.raises(BadInput, match=f"confirm it with --uri {re.escape(other.replace('a:1@', ''))}"):
            check_confirmed(other, tmp_path)
    store.create_run(store.ensure_experiment("x"), "x", {})
    check_confirmed(store.uri, tmp_path)
    confirm("http://me:secret@c:1")
    check_confirmed("http://c:1", tmp_path)
    assert "secret" not in get_addresses_file().read_text()
    assert get_addresses_file().parent.stat().st_mode & 0o077 == 0


def test_an_unwritable_state_directory_confirms_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    confirm("http://a:1")
    with pytest.raises(BadInput):
        check_confirmed("http://a:1", tmp_path)


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with pytest.raises(RunFailed, match="it is a link"), lock_run_directory(tmp_path):
        pass
    assert not (tmp_path / "other").exists()
