"""``fr.compare`` gives the comparison of ``fednar compare``, and takes data and models as objects."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.experiments.comparison.record import find
from tests.support.stores import create_store

pytestmark = [
    pytest.mark.usefixtures("recorded_runs"),
    pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]

SECTIONS = {
    "name": "small",
    "federation": {"rounds": 2, "local_steps": 2},
    "regularizer": {"clip_bound": 0.5},
    "execution": {"placement": "serial"},
}
DATA = {"data": {"source": "digits", "partition": {"clients": 4}}, "model": {"name": "mlp", "hidden": 4}}


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", create_store(tmp_path / "mlflow.db"))


def build_experiment(**sections: Any) -> fr.Experiment:
    return fr.Experiment.model_validate({**SECTIONS, **sections})


class StopAfter(fr.RoundCallback):
    """Ends a run once it has seen some rounds, which it counts itself."""

    def __init__(self, rounds: int) -> None:
        self.rounds, self.seen = rounds, 0

    def on_round_end(self, report: fr.RoundReport) -> None:
        self.seen += 1
        if self.seen == self.rounds:
            raise fr.StopRun(f"{self.rounds} rounds are enough")


def drop_seconds(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key not in ("client-s", "wall s")} for row in rows]


def test_python_and_the_command_give_the_same_table(capsys: pytest.CaptureFixture[str]) -> None:
    comparison = fr.compare(build_experiment(**DATA), regularizers=["none", "fednar"], seeds=2, final_rounds=1)
    assert capsys.readouterr().out == ""
    settings = {"regularizers": ["none", "fednar"], "seeds": 2, "final_rounds": 1}
    Path("small.yaml").write_text(yaml.safe_dump({"experiment": {**SECTIONS, **DATA}, "compare": settings}))
    typed = CliRunner().invoke(cli, ["compare", "small.yaml", "--json"])
    assert typed.exit_code == 0, typed.output
    table = json.loads(typed.stdout)["rows"]
    assert drop_seconds([{**row.format_cells(), **row.numbers} for row in comparison.rows]) == drop_seconds(table)
    assert find(comparison.name).document.compare == find(json.loads(typed.stdout)["name"]).document.compare

    frame = comparison.to_frame()
    assert len(frame) == 4
    for row in comparison.rows:
        mine = frame[frame["regularizer"] == row.variant.regularizer]
        np.testing.assert_allclose(mine["final_accuracy"], row.final)
        assert mine["seed"].tolist() == [0, 1]
    for _, cell in frame.iterrows():
        lines = (Path("runs") / cell["run"] / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["metrics"]["test_accuracy"] == cell["final_accuracy"]
    first, second = comparison.plot().lines
    finals = frame[frame["regularizer"] == "none"]["final_accuracy"]
    assert first.get_ydata()[-1] == pytest.approx(finals.mean())
    assert second.get_label() == "fednar, λ = 0.01"
    assert comparison.plot("clip_fraction").get_ylabel() == "clip fraction"
    with pytest.raises(fr.BadInput, match=r"no round of small-.* has it; use one of "):
        comparison.plot("clip")
    assert comparison._repr_html_().count("<tr>") == 3
    assert repr(comparison).startswith("<comparison of 2 variants, 2 seeds; best: ")
    assert comparison.url is None


def test_data_and_model_can_be_objects(federation: fr.Federation) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 3)
    given = {"federation": federation, "model": model, "callbacks": [StopAfter(2)]}
    experiment = build_experiment(federation={**SECTIONS["federation"], "rounds": 3})
    comparison = fr.compare(experiment, seeds=1, weight_decays=[0.0, 0.1], **given)
    for run in comparison.runs:
        experiment = fr.load(run.directory / "experiment.yaml")
        assert (experiment.data, experiment.model) == (None, None)
        alone = list(fr.iter_rounds(experiment, federation=federation, model=model))
        assert len(run.outcome.history) == 2 < len(alone)  # each run has a callback of its own, which counts from 0
        assert run.outcome.history[-1].metrics["test_loss"] == alone[1].metrics["test_loss"]
        assert run.outcome.stop == "stopped early, after 2 of 3 rounds: 2 rounds are enough"
    assert "FedNAR, λ = 0.1: 1 of 1 runs stopped early, after 2 of 3 rounds" in comparison.page.read_text()
    with pytest.raises(fr.ConfigError, match="data: missing; set a data section, or pass federation="):
        fr.compare(resume=comparison.name)
    again = fr.compare(resume=comparison.name, **given)  # an ended run is finished
    assert again.name == comparison.name
    assert again.to_frame()["final_accuracy"].tolist() == comparison.to_frame()["final_accuracy"].tolist()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "experiment: missing"),
        ({"resume": "small-1", "seeds": 2}, "takes no experiment and no settings"),
        ({"experiment": build_experiment(**DATA), "seeds": 0, "regularizers": "fednar"}, "compare.seeds: 0"),
        ({"experiment": build_experiment(**DATA), "seeds": 0, "regularizers": "fednar"}, "compare.regularizers"),
        ({"experiment": build_experiment(**DATA), "target_rmse": 0.5}, "set compare.target_accuracy"),
        ({"experiment": build_experiment()}, "data: missing"),
        (
            {"experiment": build_experiment(**DATA), "callbacks": [print]},
            "callbacks.0: .*: returns None, which is",
        ),
        ({"experiment": build_experiment(**DATA), "callbacks": [fr.EarlyStopping]}, "EarlyStopping.metric"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_trained(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(fr.BadInput, match=says):
        fr.compare(**arguments)
    assert not Path("runs").exists()
