"""A damaged run directory causes a warning and no traceback; other runs are listed, sent and resumed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import fednar_ray as fr
from fednar_ray.core.errors import BadInput, CheckpointError, FednarError
from fednar_ray.experiments.resume import resume_from
from fednar_ray.tracking.journal import Journal, is_round, load_records
from fednar_ray.tracking.outbox import parse_operation
from fednar_ray.tracking.run_lookup import find_run, list_runs
from fednar_ray.tracking.run_summary import summarize
from fednar_ray.tracking.sync import sync
from tests.support.commands import run_in_process
from tests.support.drawn import draw
from tests.support.stores import create_store

pytestmark = [
    pytest.mark.usefixtures("recorded_runs"),
    pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]

ROUNDS = 2
FILES = (
    "experiment.yaml", "run.json", "metrics.jsonl", "outbox.jsonl", "outbox.sent", "lock", "finished", "checkpoints",
)  # fmt: skip
ROUND = '{"round": %s, "time": 1, "clients": %s, "exclusions": {}, "metrics": %s}'
JSON = (
    *("5", "null", "[]", "{}", '"text"', "[[[]]]", "[" * 100_000),
    *('{"round": 0}', ROUND % (0, 5, "{}"), ROUND % (0, "[]", '{"a": "high"}'), ROUND % (7, "[]", '{"a": 0.5}')),
    *('{"kind": 3}', '{"kind": "file"}', '{"kind": "tags", "tags": 1}', '{"kind": "end", "status": "", "time": 0}'),
    *('{"run_id": "", "tracking_uri": ""}', '{"run_id": null, "tracking_uri": 3}'),
    *('{"run_id": "../../x", "tracking_uri": "a"}', '{"run_id": "a", "tracking_uri": "b", "writers": 3}'),
    *('{"operations": -5, "rounds": 1e400}', '{"operations": "x", "rounds": []}'),
    *("experiment: 5", "experiment: {rounds: 3}"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a working directory with two runs of the experiments ``good`` and ``other``."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("good", "other"):
            fr.run(
                fr.Experiment.model_validate(
                    {
                        "name": name,
                        "data": {"partition": {"clients": 3}},
                        "model": {"hidden": 4},
                        "federation": {"rounds": ROUNDS, "clients_per_round": 2, "local_steps": 1},
                        "execution": {"placement": "serial"},
                        "tracking": {"uri": create_store(folder / "m.db")},
                    }
                )
            )
    return folder


def write_binary(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(rng.bytes(200))


def truncate(path: Path, rng: np.random.Generator) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(rng.integers(len(content) + 1))])


def flip_bytes(path: Path, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes() or b"x")
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def write_other_json(path: Path, rng: np.random.Generator) -> None:
    path.write_text(str(rng.choice(JSON)) + "\n" * int(rng.integers(2)))


def damage_line(path: Path, rng: np.random.Generator) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(int(rng.integers(len(lines) + 1)), str(rng.choice(JSON)).encode() + b"\n")
    path.write_bytes(b"".join(lines))


def delete(path: Path, rng: np.random.Generator) -> None:
    path.unlink()


def replace_by_directory(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    path.mkdir()


def replace_by_dangling_link(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    path.symlink_to("nothing here")


def replace_by_link_loop(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    path.symlink_to(path.name)


def empty_file(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(b"")


DAMAGES: tuple[Callable[[Path, np.random.Generator], None], ...] = (
    write_binary, truncate, flip_bytes, write_other_json, damage_line, delete, replace_by_directory,
    replace_by_dangling_link, replace_by_link_loop,
    empty_file,
)  # fmt: skip


def damage(run: Path, name: str, how: Callable[[Path, np.random.Generator], None], rng: np.random.Generator) -> None:
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
        path.write_bytes(b"{}")
    if not path.exists():
        path.write_bytes(b"{}")
    how(path, rng)


@draw(60)
@hypothesis.given(
    name=st.sampled_from(FILES), how=st.sampled_from(DAMAGES), seed=st.integers(0, 2**32), owed=st.booleans()
)
def test_a_damaged_run_does_not_prevent_others_from_being_listed_sent_and_resumed(
    name: str,
    how: Callable[[Path, np.random.Generator], None],
    seed: int,
    owed: bool,
    finished: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(finished / "runs", folder / "runs")
    (good,) = (folder / "runs").glob("good-*")
    (other,) = (folder / "runs").glob("other-*")
    if owed:
        (other / "outbox.sent").unlink()
    damage(other, name, how, np.random.default_rng(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        kept = list(list_runs())
        summaries = {each.run: each for each in map(summarize, kept)}
        assert summaries[good.name].rounds == ROUNDS
        reports = [return_or_refusal(lambda each=each: sync(each.directory)) for each in kept]  # type: ignore[misc]
        assert "MLflow has everything" in map(str, reports)
        assert find_run(good.name).directory == good
        resumption = resume_from(None, fr.load(good / "experiment.yaml"))
        assert resumption is not None
        assert resumption.ref.name == good.name
        return_or_refusal(lambda: find_run(other.name))
        return_or_refusal(lambda: resume_from(other.name, None))


def return_or_refusal(call: Callable[[], object]) -> object:
    """Returns the result of a call, or the message of an error of the package, which names the run."""
    try:
        return call()
    except FednarError as error:
        text = str(error)
    assert "other-" in text
    return text


WHOLE = {
    "a file": lambda path: path.write_text("x"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "an empty directory": lambda path: path.mkdir(),
    "a directory with a run.json alone": lambda path: (path.mkdir(), (path / "run.json").write_text("{}")),
    "a named pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_other_files_in_place_of_a_run_are_skipped(
    kind: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    (good,) = (tmp_path / "runs").glob("good-*")
    WHOLE[kind](tmp_path / "runs" / "broken-0")
    monkeypatch.chdir(tmp_path)
    assert run_in_process(monkeypatch, "runs", "--json") == 0
    listed = {row["run"]: row["rounds"] for row in json.loads(capsys.readouterr().out)}
    assert listed[good.name] == ROUNDS
    assert len(listed) == 2
    assert run_in_process(monkeypatch, "sync") == 0
    assert f"{good.name}: MLflow has everything" in capsys.readouterr().out
    for words in (["sync", "broken-0"], ["run", "--resume", "broken-0"], ["sync", "runs/broken-0"]):
        assert run_in_process(monkeypatch, *words) in (1, 2)
        assert "broken-0" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "experiment: 5", "\0\1\2", "experiment: {name: other, no: 1}"])
def test_a_damaged_experiment_is_warned_about_by_path_and_reason(
    content: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    (other,) = (tmp_path / "runs").glob("other-*")
    (other / "experiment.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    assert [kept.name.split("-")[0] for kept in list_runs()] == ["good"]
    assert f"left out: {other} is not a run directory, or is damaged: " in caplog.text
    assert run_in_process(monkeypatch, "run", "--resume", other.name) == 2
    assert "which --resume accepts as well" in capsys.readouterr().err
    kept = find_run(f"runs/{other.name}/checkpoints")
    assert (kept.name, kept.directory) == (other.name, other)
    assert kept.open_checkpoints().load() is not None


def test_an_older_run_is_resumed_if_all_checkpoints_of_the_newest_are_damaged(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    (good,) = (tmp_path / "runs").glob("good-*")
    newer = tmp_path / "runs" / "good-00000000"
    shutil.copytree(good, newer)
    (newer / "experiment.yaml").write_bytes((good / "experiment.yaml").read_bytes())
    for manifest in newer.glob("checkpoints/round-*.json"):
        manifest.write_text("{}")
    monkeypatch.chdir(tmp_path)
    experiment = fr.load(good / "experiment.yaml")
    resumption = resume_from(None, experiment)
    assert resumption is not None
    assert resumption.ref.name == good.name
    assert "good-00000000 cannot be resumed: every checkpoint" in caplog.text
    shutil.rmtree(good)
    with pytest.raises(CheckpointError, match="every checkpoint"):
        resume_from(None, experiment)


@pytest.mark.parametrize("line", JSON)
def test_other_json_is_read_neither_as_a_round_nor_as_an_operation(line: str, tmp_path: Path) -> None:
    assert not is_round(line, 0)
    if not line.startswith("[[[[") and not line.startswith("experiment"):
        assert parse_operation(line) is None
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    assert load_records(tmp_path) == ()


def test_sync_does_not_truncate_a_damaged_journal(finished: Path, tmp_path: Path) -> None:
    """A resumed run repairs a journal after a damaged line; ``sync`` must not delete the rest."""
    (good,) = (finished / "runs").glob("good-*")
    run = tmp_path / good.name
    shutil.copytree(good, run)
    first, second = (run / "metrics.jsonl").read_text().splitlines()
    damaged = f"{{}}\n{first}\n{second}\n"
    (run / "metrics.jsonl").write_text(damaged)
    (run / "outbox.sent").unlink()
    assert sync(run).problem is None
    assert (run / "metrics.jsonl").read_text() == damaged
    with Journal(run, fr.load(run / "experiment.yaml"), lines=[first, second]) as journal:
        assert journal.get_lines(journal.rounds) == (first, second)


def test_sync_warns_about_a_damaged_line_of_the_outbox_and_sends_the_others(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (good,) = (finished / "runs").glob("good-*")
    run = tmp_path / good.name
    shutil.copytree(good, run)
    whole = (run / "outbox.jsonl").read_text().splitlines()
    (run / "outbox.jsonl").write_text("\n".join([whole[0], '{"kind": "file"}', *whole[1:]]) + "\n")
    (run / "outbox.sent").unlink()
    assert sync(run).operations == len(whole)
    assert "a line of the outbox is damaged" in caplog.text


def test_a_name_that_cannot_be_a_run_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x" * 5000, "a\0b", "../..", "runs/*", "[", "~"):
        with pytest.raises(BadInput):
            find_run(name)
