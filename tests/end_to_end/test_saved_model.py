"""The saved model of a run on tables needs neither the tables nor the run: only its own folder."""

import shutil
import subprocess
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

import fednar_ray as fr
from fednar_ray.cli.main import cli
from tests.data.test_table_kinds import build_data, build_ward, write_wards
from tests.support.commands import build_environment
from tests.support.forked_workers import get_executable
from tests.support.servers import PATIENCE_SECONDS
from tests.support.stores import create_store

PREDICT = """
import sys
import mlflow
import pandas as pd

model, rows = sys.argv[1:]
mlflow.pyfunc.load_model(model).predict(pd.read_csv(rows)).to_csv(sys.stdout, index=False)
"""


@pytest.mark.usefixtures("processes")
def test_another_process_without_the_data_predicts_what_fednar_predict_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    for folder in (work, elsewhere):
        folder.mkdir()
    monkeypatch.chdir(work)
    write_wards(work / "wards")
    experiment = {
        "name": "wards",
        "data": build_data(work / "wards"),
        "model": {"name": "logistic"},
        "federation": {"rounds": 2, "local_epochs": 1, "batch_size": 8},
        "execution": {"placement": "serial"},
        "tracking": {"uri": create_store(work / "m.db")},
    }
    result = fr.run(fr.Experiment.model_validate(experiment))
    build_ward(7).drop(columns="ill").to_csv(elsewhere / "rows.csv", index=False)
    expected = CliRunner().invoke(cli, ["predict", str(result.directory), str(elsewhere / "rows.csv")]).stdout
    shutil.move(result.directory / "model", elsewhere / "model")
    monkeypatch.chdir(elsewhere)
    shutil.rmtree(work)  # the tables, the run, and the store
    done = subprocess.run(
        [get_executable(), "-c", PREDICT, "model", "rows.csv"],
        cwd=elsewhere,
        env=build_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, wanted = (pd.read_csv(StringIO(text)) for text in (done.stdout, expected))
    assert list(found) == ["prediction", "probability_healthy", "probability_sick"]
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-6)  # fednar predict prints seven digits
