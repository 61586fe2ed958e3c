"""Runs from Python: callbacks that end them, metrics of one's own, and results that show themselves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from sklearn.metrics import recall_score

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.core.reports import RoundRecord
from fednar_ray.tracking.ui_url import build_run_url
from tests.support.stores import create_store

pytestmark = [
    pytest.mark.usefixtures("recorded_runs"),
    pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]

ROUNDS = 6


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", create_store(tmp_path / "mlflow.db"))


def build_experiment(rounds: int = ROUNDS, **sections: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "name": "small",
            "data": {"source": "digits", "validation": 0.1, "partition": {"clients": 4}},
            "model": {"name": "mlp", "hidden": 4},
            "federation": {"rounds": rounds, "local_steps": 2},
            "execution": {"placement": "serial"},
            "checkpoint": {"every": 2},
            **sections,
        }
    )


class Watch(fr.RoundCallback):
    """Notes what it is told, and stops the run after a round."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.calls = stop_after, list[Any]()

    def on_prepare(self, run: fr.RunInfo) -> None:
        self.calls.append(run)

    def on_resume(self, history: Sequence[RoundRecord]) -> None:
        self.calls.append([record.round_index for record in history])

    def on_round_end(self, report: fr.RoundReport) -> None:
        self.calls.append(report.round_index)
        if report.round_index + 1 == self.stop_after:
            raise fr.StopRun("enough is known")

    def on_run_end(self) -> None:
        self.calls.append("end")

    def on_error(self, error: BaseException) -> None:
        self.calls.append(type(error).__name__)


def load_rounds(directory: Path) -> list[int]:
    return [json.loads(line)["round"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_stopped_run_is_finished_and_says_after_how_many_rounds_and_why() -> None:
    watch = Watch(stop_after=3)
    result = fr.run(build_experiment(), callbacks=[watch])
    info = watch.calls[0]
    assert (info.name, info.rounds, info.primary) == ("small", ROUNDS, "accuracy")
    assert {"validation_accuracy", "test_loss"} <= set(info.metrics) == set(info.metrics) & set(result.metrics)
    assert watch.calls[1:] == [0, 1, 2, "end"]
    assert result.stop == fr.Stop(rounds=3, planned=ROUNDS, reason="enough is known")
    assert str(result.stop) == "stopped early, after 3 of 6 rounds: enough is known"
    assert len(result.history) == 3
    assert load_rounds(result.directory) == [0, 1, 2]
    assert json.loads((result.directory / "stop.json").read_text())["reason"] == "enough is known"
    run = MlflowClient().get_run(result.run_id)
    assert (run.info.status, run.data.tags["fednar.end"]) == ("FINISHED", str(result.stop))
    alone = list(fr.iter_rounds(build_experiment(rounds=3)))
    assert result.parameters.tobytes() == alone[-1].parameters.tobytes()

    # It is finished: resumed as it is, nothing is trained.
    again = fr.run(resume=result.directory)
    assert again.stop == result.stop
    assert (len(again.history), again.parameters_sha256) == (3, result.parameters_sha256)
    printed = CliRunner().invoke(cli, ["run", "--resume", result.directory.name])
    assert str(result.stop) in printed.output
    assert "the run was finished before" in printed.output
    assert load_rounds(result.directory) == [0, 1, 2]

    # Asked for more rounds than it had planned, it continues as if nothing had stopped it.
    watch = Watch()
    longer = fr.run(build_experiment(rounds=8), resume=result.directory, callbacks=[watch])
    assert watch.calls[1:] == [[0, 1, 2], 3, 4, 5, 6, 7, "end"]
    assert longer.stop is None
    assert not (result.directory / "stop.json").exists()
    assert longer.parameters.tobytes() == [*fr.iter_rounds(build_experiment(rounds=8))][-1].parameters.tobytes()


def test_a_callback_that_stops_after_the_last_round_has_stopped_nothing() -> None:
    result = fr.run(build_experiment(rounds=2), callbacks=[Watch(stop_after=2)])
    assert result.stop is None
    assert len(result.history) == 2


def test_an_error_of_a_callback_ends_the_run_as_failed() -> None:
    class Broken(fr.RoundCallback):
        def on_round_end(self, report: fr.RoundReport) -> None:
            raise ValueError("broken")

    watch = Watch()
    with pytest.raises(ValueError, match="broken"):
        fr.run(build_experiment(), callbacks=[watch, Broken()])
    assert watch.calls[1:] == [0, "ValueError"]
    (run,) = MlflowClient().search_runs(["1"])
    assert run.info.status == "FAILED"


def test_callbacks_that_do_not_fit_are_refused_before_anything_starts() -> None:
    with pytest.raises(fr.ConfigError) as caught:
        fr.run(build_experiment(), callbacks=[print, Watch, Watch()])  # type: ignore[list-item]
    assert len(caught.value.problems) == 2
    assert "callbacks.0" in str(caught.value)
    without = build_experiment(data={"source": "digits", "partition": {"clients": 4}})
    with pytest.raises(fr.ConfigError, match=r"EarlyStopping\.metric: 'validation_accuracy'"):
        fr.run(without, callbacks=[fr.EarlyStopping(2)])
    assert not Path("runs").exists()


def worst_recall(y: np.ndarray, predictions: np.ndarray) -> float:
    return float(recall_score(y, predictions, average=None, labels=np.unique(y), zero_division=0).min())


def test_metrics_of_ones_own_need_no_importable_path() -> None:
    expected: list[float] = []

    def share_of_zeros(y: np.ndarray, predictions: np.ndarray) -> float:
        expected.append(float((predictions == 0).mean()))
        return expected[-1]

    (report, _) = fr.iter_rounds(build_experiment(rounds=2), metrics=[worst_recall, share_of_zeros])
    assert report.metrics["test_share_of_zeros"] in expected
    assert 0 <= report.metrics["validation_worst_recall"] <= report.metrics["validation_accuracy"]
    chosen = build_experiment(rounds=2, evaluation={"primary": "worst_recall"})  # given only now
    result = fr.run(chosen, metrics=[worst_recall], callbacks=[Watch()])
    assert result.experiment.evaluation.own_metrics == (result.primary,) == ("worst_recall",)
    page = (result.directory / "report.html").read_text()
    assert "After 2 rounds the model reaches a test worst recall of " in page
    assert "<h3>Worst recall</h3>" in page
    stored = MlflowClient().get_run(result.run_id).data
    assert stored.tags["fednar.primary"] == "worst_recall"
    assert "a test worst recall of " in stored.tags["mlflow.note.content"]
    with pytest.raises(fr.ConfigError, match=r"evaluation.primary: 'worst_recall' .* evaluation.metrics \(in Python "):
        fr.run(chosen)
    assert result.history[0].metrics["test_worst_recall"] == report.metrics["test_worst_recall"]


def test_metrics_without_a_name_or_with_a_taken_one_are_refused() -> None:
    def accuracy(y: np.ndarray, predictions: np.ndarray) -> float:
        return 0.0

    with pytest.raises(fr.ConfigError) as caught:
        fr.run(build_experiment(), metrics=[lambda y, p: 0.0, worst_recall, 5])  # type: ignore[list-item]
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["metrics.0", "metrics.2"]
    with pytest.raises(fr.ConfigError, match="two metrics are called accuracy"):
        fr.run(build_experiment(), metrics=[accuracy])
    with pytest.raises(fr.ConfigError, match="fails when called"):
        fr.run(build_experiment(), metrics=[pow])
    assert not Path("runs").exists()


def test_a_result_shows_itself(capsys: pytest.CaptureFixture[str]) -> None:
    result = fr.run(build_experiment(rounds=3))
    assert capsys.readouterr().out == ""  # in a script, nothing is printed
    frame = result.to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert frame.index.tolist() == [0, 1, 2]
    journal = [json.loads(line)["metrics"] for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    pd.testing.assert_frame_equal(frame, pd.DataFrame(journal), check_names=False)
    test, validation = result.plot().lines
    assert test.get_ydata().tolist() == frame["test_accuracy"].tolist()
    assert validation.get_label() == "validation accuracy"
    assert result.plot("train_loss").lines[0].get_ydata().tolist() == frame["train_loss"].tolist()
    with pytest.raises(fr.BadInput, match="metric: 'train_los': no round of small has it; use one of "):
        result.plot("train_los")
    last = f"{frame['test_accuracy'].iloc[-1]:.3f}"
    assert repr(result).startswith(f"<small: 3 rounds; test accuracy {last}, validation accuracy ")
    assert len(repr(result).splitlines()) == 1
    assert "<svg" in result._repr_html_()
    assert last in result._repr_html_()
    assert result.url is None


def test_a_run_on_a_server_has_an_address() -> None:
    assert build_run_url("http://127.0.0.1:5000/", "ab12") == "http://127.0.0.1:5000/#/runs/ab12"
    for uri in ("sqlite:///m.db", "file:///m", "databricks"):
        assert build_run_url(uri, "ab12") is None


def test_experiments_and_federations_are_described_in_a_line(federation: fr.Federation) -> None:
    assert repr(fr.load("digits")) == (
        "<Experiment digits: digits data, mlp, 30 rounds of 10 clients, fedavg, fednar; seed 0>"
    )
    own = fr.Experiment.model_validate({"algorithm": {"function": "a:b"}, "model": {"torchvision": "resnet18"}})
    assert repr(own) == "<Experiment experiment: resnet18, 30 rounds, a:b, fednar; seed 0>"
    assert repr(federation) == "<Federation: 5 clients with 1 to 30 examples, 71 in all, test 60; 3 classes>"
