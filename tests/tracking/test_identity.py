"""A copied run directory never continues the MLflow run of its original, but a moved one does."""

import json
import logging
import shutil
import subprocess
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from mlflow import MlflowClient

import fednar_ray as fr
from fednar_ray.core.errors import BadInput
from fednar_ray.experiments.prepare import prepare
from fednar_ray.experiments.resume import resume_from
from fednar_ray.experiments.train import train
from fednar_ray.tracking.identity import Identity, find_original, read_identity
from fednar_ray.tracking.locks import lock_run_directory
from tests.support.forked_workers import get_executable
from tests.support.stores import create_store

pytestmark = [
    pytest.mark.usefixtures("recorded_runs"),
    pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]

LEFT_AT, ROUNDS = 3, 6


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    caplog.set_level(logging.WARNING, logger="fednar_ray")
    return tmp_path / "here"


def build_experiment(tmp_path: Path, storage: str | None = None) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "name": "copied",
            "data": {"partition": {"clients": 3}},
            "model": {"hidden": 4},
            "federation": {"rounds": ROUNDS, "clients_per_round": 2, "local_steps": 1},
            "execution": {"placement": "serial"},
            "checkpoint": {"every": 1, "storage": storage},
            "tracking": {"uri": create_store(tmp_path / "m.db")},
        }
    )


def leave_run(chosen: fr.Experiment) -> Path:
    """Stops a run after some rounds and returns its directory."""
    rounds = train(prepare(chosen), fr.RaySession())
    for _ in range(LEFT_AT):
        next(rounds)
    rounds.close()
    (directory,) = Path("runs").absolute().iterdir()
    return directory


def load_rounds(tmp_path: Path, run_id: str) -> list[int]:
    client = MlflowClient(create_store(tmp_path / "m.db"))
    return sorted(point.step for point in client.get_metric_history(run_id, "loss/train"))


def assert_each_has_all_rounds_once(tmp_path: Path, original: fr.Result, copy: fr.Result) -> None:
    client = MlflowClient(create_store(tmp_path / "m.db"))
    assert original.run_id != copy.run_id
    assert original.parameters_sha256 == copy.parameters_sha256
    for result in (original, copy):
        assert load_rounds(tmp_path, result.run_id) == list(range(ROUNDS))
        run = client.get_run(result.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params["federation.rounds"] == str(ROUNDS)
        assert len(run.outputs.model_outputs) == 1
        assert "metrics.jsonl" in {file.path for file in client.list_artifacts(result.run_id)}
        assert read_identity(result.directory).run_id == result.run_id
    assert client.get_run(copy.run_id).data.tags["fednar.copied_from"] == original.run_id
    assert "fednar.copied_from" not in client.get_run(original.run_id).data.tags
    experiment_id = client.get_run(copy.run_id).info.experiment_id
    assert len(client.search_runs([experiment_id])) == 2


@pytest.mark.parametrize("first", ["original", "copy"])
def test_a_copy_next_to_its_original_becomes_a_separate_run(
    first: str, tmp_path: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = leave_run(build_experiment(tmp_path))
    copy = tmp_path / "elsewhere" / directory.name
    shutil.copytree(directory, copy)
    order = [directory, copy] if first == "original" else [copy, directory]
    results = {place: fr.run(resume=str(place)) for place in order}
    assert_each_has_all_rounds_once(tmp_path, results[directory], results[copy])
    assert f"{copy} is a copy of {directory}: it gets a new MLflow run" in caplog.text
    again = fr.run(resume=str(copy))  # it remains a separate run
    assert again.run_id == results[copy].run_id


def test_the_second_of_two_copies_without_an_original_becomes_a_separate_run(
    tmp_path: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The copies are on two machines, neither of which sees the other's directory."""
    directory = leave_run(build_experiment(tmp_path))
    for name in ("a", "b"):
        shutil.copytree(directory, tmp_path / name / directory.name)
    shutil.rmtree(directory)
    one, other = (fr.run(resume=str(tmp_path / name / directory.name)) for name in ("a", "b"))
    assert_each_has_all_rounds_once(tmp_path, one, other)
    assert f"was resumed from another copy of {other.directory}" in caplog.text


def test_a_copy_that_was_interrupted_again_remains_a_separate_run(tmp_path: Path, here: Path) -> None:
    directory = leave_run(build_experiment(tmp_path))
    copy = tmp_path / "elsewhere" / directory.name
    shutil.copytree(directory, copy)
    resumption = resume_from(str(copy), None)
    assert resumption is not None
    rounds = train(prepare(resumption.experiment), fr.RaySession(), resumption=resumption)
    next(rounds)
    (copy / "checkpoints" / "gone").mkdir()  # its checkpoints still name the original's run
    rounds.close()
    own = read_identity(copy).run_id
    assert own != read_identity(directory).run_id
    result, original = fr.run(resume=str(copy)), fr.run(resume=str(directory))
    assert result.run_id == own
    assert_each_has_all_rounds_once(tmp_path, original, result)


def test_a_moved_directory_continues_its_mlflow_run(tmp_path: Path, here: Path) -> None:
    directory = leave_run(build_experiment(tmp_path))
    run_id = read_identity(directory).run_id
    moved = tmp_path / "elsewhere" / "renamed-0"
    moved.parent.mkdir()
    shutil.move(directory, moved)
    (tmp_path / "link").symlink_to(moved)
    for place in (moved, tmp_path / "link"):
        result = fr.run(resume=str(place))
        assert result.run_id == run_id
    assert load_rounds(tmp_path, run_id) == list(range(ROUNDS))


def test_a_copy_that_shares_its_checkpoints_is_refused(tmp_path: Path, here: Path) -> None:
    directory = leave_run(build_experiment(tmp_path, storage=str(tmp_path / "kept")))
    copy = tmp_path / "elsewhere" / directory.name
    shutil.copytree(directory, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match=f"both keep their checkpoints in .*; resume the original: .* {directory}"):
        fr.run(resume=str(copy))
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("processes")
def test_a_directory_that_another_process_resumes_is_refused_before_anything_is_written(
    tmp_path: Path, here: Path
) -> None:
    directory = leave_run(build_experiment(tmp_path))
    code = "import sys; from pathlib import Path; from fednar_ray.tracking.locks import lock_run_directory\n"
    code += "with lock_run_directory(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [get_executable(), "-c", code, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match="is being written by a process that is running"):
        resume_from(str(directory), None)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    holder.communicate()
    with lock_run_directory(directory):
        pass


def test_find_original_recognizes_copies(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    identity = Identity(run_id="a" * 32, tracking_uri="sqlite:////m.db").add_writer(original)
    identity.write(original)
    shutil.copytree(original, copy)
    assert find_original(original, read_identity(original)) is None
    assert find_original(copy, read_identity(copy)) == original
    (tmp_path / "link").symlink_to(original)
    assert find_original(tmp_path / "link", read_identity(original)) is None
    (original / "run.json").write_text(json.dumps({"run_id": "b" * 32, "tracking_uri": "sqlite:////m.db"}))
    assert find_original(copy, read_identity(copy)) is None  # another run is in that place now
    (original / "run.json").write_text("{")
    assert find_original(copy, read_identity(copy)) is None
    (copy / "run.json").write_text(
        json.dumps({"run_id": "a" * 32, "tracking_uri": "x"})
    )  # as an earlier version wrote it
    assert find_original(copy, read_identity(copy)) is None


def test_the_first_start_is_kept_by_later_ones(tmp_path: Path) -> None:
    first = Identity(run_id="a" * 32, tracking_uri="x").add_writer(tmp_path)
    assert first.started is not None
    assert datetime.fromisoformat(first.started).tzinfo is not None
    early = replace(first, started="2026-11-27T16:52:10+00:00")
    early.add_writer(tmp_path).write(tmp_path)
    assert read_identity(tmp_path).started == early.started
    unknown = replace(first, started=None).add_writer(tmp_path)  # an earlier version has started it
    assert unknown.started is None
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "a", "tracking_uri": "x", "started": "yesterday"}))
    with pytest.raises(BadInput, match="yesterday"):
        read_identity(tmp_path)
