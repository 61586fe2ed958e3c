"""Full disks and deleted directories: runs continue without pictures, and other errors are reported in one line."""

import logging
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

import fednar_ray as fr
from fednar_ray.core.errors import RunFailed
from fednar_ray.core.generators import drain
from fednar_ray.core.reports import RoundReport
from fednar_ray.experiments.prepare import prepare
from fednar_ray.experiments.result import Result
from fednar_ray.experiments.train import train
from fednar_ray.tracking.run_lookup import find_run
from tests.support.commands import run_in_process

pytestmark = [
    pytest.mark.usefixtures("recorded_runs"),
    pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]

SMALL = (
    "data.partition.clients=3", "model.hidden=4", "federation.rounds=3", "federation.clients_per_round=2",
    "federation.local_steps=1", "execution.placement=serial", "checkpoint.every=1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    caplog.set_level(logging.WARNING, logger="fednar_ray")
    return tmp_path / "here"


def start_run(tmp_path: Path) -> tuple[Generator[RoundReport, None, Result], Path]:
    """Starts a run; returns it after its first round with its directory. Its store is in another directory."""
    file = tmp_path / "small.yaml"
    file.write_text("experiment: {name: small}")
    experiment = fr.load(file, [*SMALL, f"tracking.uri=sqlite:///{tmp_path}/m.db"])
    rounds = train(prepare(experiment), fr.RaySession())
    next(rounds)
    (directory,) = Path("runs").absolute().iterdir()
    return rounds, directory


def test_a_run_continues_if_the_disk_is_full_when_its_page_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rounds, directory = start_run(tmp_path)
    names = ("curves.png", "report.html", "facts.json")
    for name in names:
        (directory / name).symlink_to("/dev/full")
    result = drain(rounds)
    for name in names:
        assert f"{directory / name} was not written: No space left on device" in caplog.text
        assert not (directory / name).exists()
    assert len(result.history) == 3
    assert {"model", "model.pt", "finished", "metrics.jsonl"} <= {path.name for path in directory.iterdir()}
    assert "fednar sync" not in caplog.text


def test_a_run_can_be_resumed_if_the_disk_is_full_when_the_model_is_written(tmp_path: Path) -> None:
    """The first end finds a full disk, the second one a directory in the model's place, and the third one writes."""
    rounds, directory = start_run(tmp_path)
    model = directory / "model.pt"
    model.symlink_to("/dev/full")
    assert_the_model_cannot_be_written(lambda: drain(rounds), directory)
    model.unlink()
    model.mkdir()
    assert_the_model_cannot_be_written(lambda: fr.run(resume=directory.name), directory)
    model.rmdir()
    assert len(fr.run(resume=directory.name).history) == 3
    assert (directory / "finished").exists()


def assert_the_model_cannot_be_written(end: Callable[[], object], directory: Path) -> None:
    with pytest.raises(RunFailed, match=r"model\.pt cannot be written: ") as failed:
        end()
    (hint,) = failed.value.__notes__
    assert hint.endswith(f"resume with: fednar run --resume {directory.name}")


@pytest.mark.parametrize("what", ["the working directory", "the run directory", "the run directory, renamed"])
def test_deleting_the_directory_during_a_run_ends_it_with_an_error_that_names_it(
    what: str, tmp_path: Path, here: Path
) -> None:
    rounds, directory = start_run(tmp_path)
    gone = here if what == "the working directory" else directory
    gone.rename(tmp_path / "elsewhere")  # at once, even if files are being written in it
    if "renamed" not in what:
        shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    with pytest.raises(RunFailed, match=f"{directory}.* (was deleted|No such file)") as failed:
        drain(rounds)
    assert not getattr(failed.value, "__notes__", ())  # no run can be resumed
    assert not (directory / "metrics.jsonl").exists()


def test_commands_report_that_the_working_directory_does_not_exist(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here.rmdir()
    for words in (["runs"], ["sync"], ["run", *SMALL], ["run", "--resume"], ["doctor"]):
        assert run_in_process(monkeypatch, *words) in (1, 2)
        assert "the working directory" in capsys.readouterr().err, words


def test_a_failed_command_prints_how_to_resume(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The place of the model is occupied for the second run of a directory."""
    assert run_in_process(monkeypatch, "run", *SMALL) == 0
    (directory,) = Path("runs").absolute().iterdir()
    (directory / "model.pt").unlink()
    (directory / "model.pt").mkdir()
    capsys.readouterr()
    assert run_in_process(monkeypatch, "run", "--resume", directory.name, "federation.rounds=4") == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"failed: {directory}/model.pt cannot be written: ")
    assert last.endswith(f"resume with: fednar run --resume {directory.name}")
    (directory / "model.pt").rmdir()
    assert run_in_process(monkeypatch, "run", "--resume", directory.name) == 0
    assert find_run(directory.name).files.finished


def test_report_fails_if_its_plots_cannot_be_written(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = here / "full.png"
    full.symlink_to("/dev/full")
    assert run_in_process(monkeypatch, "data", "inspect", *SMALL, "--figure", str(full)) == 1
    assert capsys.readouterr().err.strip().endswith("cannot be written: No space left on device")
    assert os.path.exists("/dev/full")
