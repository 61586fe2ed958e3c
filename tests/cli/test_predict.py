"""``fednar predict`` on raw rows gives the figures that the run reported, and refuses rows that do not fit the run."""

import csv
import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.config import dump
from fednar_ray.core.random import Purpose, generator
from tests.support.stores import create_store

pytestmark = pytest.mark.usefixtures("long_computation")

SHARE = 0.25
ROWS = {"north": 60, "south": 41, "west": 52}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the working directory of all runs of this module."""
    directory = tmp_path_factory.mktemp("work")
    create_store(directory / "mlflow.db")
    return directory


@pytest.fixture(autouse=True)
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)


def label(frame: pd.DataFrame, task: str) -> pd.Series:
    score = frame["age"] / 20 + frame["dose"].fillna(3)
    if task == "regression":
        return score * 10 + 300
    return (score > 6).astype(int) if task == "binary" else pd.cut(score, [-99, 4.5, 6, 99], labels=False)


def write_tables(folder: Path, task: str) -> None:
    folder.mkdir()
    for seed, (name, rows) in enumerate(ROWS.items()):
        rng = np.random.default_rng(seed)
        frame = pd.DataFrame({"age": rng.integers(20, 90, size=rows), "dose": rng.normal(3, 1, size=rows)})
        frame["y"] = label(frame, task)
        frame.loc[::9, "dose"] = np.nan
        frame.to_csv(folder / f"{name}.csv", index=False)


RUNS: dict[str, Any] = {}


def train(task: str, missing: str = "mean") -> Any:
    """Returns the run of a task, which is trained once."""
    key = f"{task}-{missing}"
    if key not in RUNS:
        write_tables(Path(key), task)
        RUNS[key] = fr.run(
            fr.Experiment.model_validate(
                {
                    "name": key,
                    "data": {"source": "folder", "directory": str(Path(key).absolute()), "task": task,
                             "missing": missing, "test_share": SHARE},
                    "model": {"name": "mlp", "hidden": 4},
                    "federation": {"rounds": 2, "local_epochs": 1, "batch_size": 8},
                    "algorithm": {"name": "fedavg", "local_lr": 0.001 if task == "regression" else 0.1},
                    "execution": {"placement": "serial"},
                }
            )
        )  # fmt: skip
    return RUNS[key]


def read_held_out(folder: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the held-out rows of all clients as the files have them, and what ``fednar predict`` says of each."""
    truth, predicted = [], []
    for client_id, (name, rows) in enumerate(ROWS.items()):
        held = np.sort(generator(0, Purpose.TEST_SHARE, client_id=client_id).permutation(rows)[: round(SHARE * rows)])
        done = CliRunner().invoke(cli, ["predict", folder, f"{folder}/{name}.csv"])
        assert done.exit_code == 0, done.output
        answers = pd.read_csv(StringIO(done.stdout))
        assert len(answers) == rows
        truth.append(pd.read_csv(f"{folder}/{name}.csv").iloc[held])
        predicted.append(answers.iloc[held])
    return pd.concat(truth), pd.concat(predicted)


def test_a_binary_run_predicts_what_it_reported() -> None:
    metrics = train("binary").metrics
    truth, predicted = read_held_out("binary-mean")
    assert list(predicted) == ["prediction", "probability_0", "probability_1"]
    assert accuracy_score(truth["y"], predicted["prediction"]) == metrics["test_accuracy"]
    assert roc_auc_score(truth["y"], predicted["probability_1"]) == metrics["test_auc"]
    assert log_loss(truth["y"], predicted["probability_1"]) == pytest.approx(metrics["test_loss"], rel=1e-6)


def test_a_classification_predicts_what_it_reported() -> None:
    metrics = train("classification").metrics
    truth, predicted = read_held_out("classification-mean")
    names = [f"probability_{name}" for name in range(3)]
    assert list(predicted) == ["prediction", *names]
    assert accuracy_score(truth["y"], predicted["prediction"]) == metrics["test_accuracy"]
    assert f1_score(truth["y"], predicted["prediction"], average="macro") == pytest.approx(metrics["test_macro_f1"])
    assert log_loss(truth["y"], predicted[names]) == pytest.approx(metrics["test_loss"], rel=1e-6)
    assert np.allclose(predicted[names].sum(axis=1), 1)


def test_a_regression_predicts_what_it_reported() -> None:
    metrics = train("regression").metrics
    truth, predicted = read_held_out("regression-mean")
    assert list(predicted) == ["prediction"]
    rmse = np.sqrt(np.mean((truth["y"] - predicted["prediction"]) ** 2))
    assert rmse == pytest.approx(metrics["test_rmse"], rel=1e-6)  # training computes in float32


def test_the_model_of_mlflow_says_the_same() -> None:
    result = train("binary")
    rows = pd.read_csv("binary-mean/north.csv")
    model = mlflow.pyfunc.load_model(str(result.directory / "model"))
    predicted = fr.predict(result.directory, rows)
    pd.testing.assert_frame_equal(model.predict(rows[["dose", "age"]]), predicted, check_exact=False)
    assert model.metadata.signature.outputs.input_names() == list(predicted)


def test_the_model_of_mlflow_names_a_predicted_number() -> None:
    result = train("regression")
    rows = pd.read_csv("regression-mean/north.csv")
    model = mlflow.pyfunc.load_model(str(result.directory / "model"))
    pd.testing.assert_frame_equal(model.predict(rows[["dose", "age"]]), fr.predict(result.directory, rows))
    assert model.metadata.signature.outputs.input_names() == ["prediction"]


def test_a_data_frame_a_file_and_other_formats_give_the_same() -> None:
    train("binary")
    rows = pd.read_csv("binary-mean/north.csv")
    expected = fr.predict("binary-mean", "binary-mean/north.csv")
    rows.drop(columns="y").assign(unused="x")[["unused", "dose", "age"]].to_parquet("rows.parquet")
    rows.to_csv("rows.tsv.gz", sep="\t", index=False)
    for given in (rows, "rows.parquet", Path("rows.tsv.gz")):
        pd.testing.assert_frame_equal(fr.predict("binary-mean", given), expected)
    shuffled = rows.sample(frac=1, random_state=0)
    assert list(fr.predict("binary-mean", shuffled).index) == list(shuffled.index)


def test_predictions_are_written_to_a_file_and_never_over_the_rows() -> None:
    result = train("binary")
    predict = ["predict", result.directory.name, "binary-mean/west.csv", "-o"]
    done = CliRunner().invoke(cli, [*predict, "west-predicted.csv"])
    assert "wrote west-predicted.csv: 52 predictions" in done.output
    pd.testing.assert_frame_equal(pd.read_csv("west-predicted.csv"), fr.predict(result.directory, predict[2]))
    before = Path(predict[2]).read_bytes()
    assert "is the file with the rows" in str(CliRunner().invoke(cli, [*predict, predict[2]]).exception)
    assert Path(predict[2]).read_bytes() == before


def test_a_run_that_does_not_impute_refuses_missing_values_with_their_line() -> None:
    train("binary", "drop")
    Path("gaps.csv").write_text("dose,age\n1.5,30\n,40\n?,50\n2,\n")
    with pytest.raises(fr.DataError) as error:
        fr.predict("binary-drop", "gaps.csv")
    assert str(error.value).splitlines() == [
        "gaps.csv, line 5, column age: the value is missing",
        "gaps.csv, line 3, column dose: the value is missing (1 more like it in this column)",
        "the run does not impute: fill these values, leave the rows out, or train with data.missing=mean",
    ]


def test_separators_and_decimal_signs_are_detected_or_given() -> None:
    train("binary")
    rows = pd.read_csv("binary-mean/north.csv")
    expected = fr.predict("binary-mean", rows)
    rows.to_csv("german.csv", index=False, sep=";", decimal=",")
    pd.testing.assert_frame_equal(fr.predict("binary-mean", "german.csv"), expected)
    rows.assign(note="a|b").to_csv("pipes.csv", index=False, sep="|", decimal=",", quoting=csv.QUOTE_NONNUMERIC)
    given = ["--csv", "separator=|", "--csv", "decimal=,"]
    done = CliRunner().invoke(cli, ["predict", "binary-mean", "pipes.csv", *given])
    assert done.stdout == expected.to_csv(index=False, float_format="%.9g")
    written = {"separator": "|", "decimal": ","}
    pd.testing.assert_frame_equal(fr.predict("binary-mean", "pipes.csv", csv=written), expected)
    with pytest.raises(fr.ConfigError, match=r"csv\.decimal: 'x' should be"):
        fr.predict("binary-mean", "pipes.csv", csv={"decimal": "x"})


def test_what_the_runs_settings_say_holds_for_new_rows_unless_another_is_given(tmp_path: Path) -> None:
    directory = tmp_path / "german-0"
    shutil.copytree(train("binary").directory, directory)
    experiment = fr.load(directory / "experiment.yaml", ["data.csv.decimal=','", "data.csv.separator=;"])
    (directory / "experiment.yaml").write_text(dump(experiment))
    (tmp_path / "rows.csv").write_text("age;dose\n30;2,5\n40;1.250\n")
    with pytest.raises(fr.DataError, match="has a decimal point, but numbers are written with a comma"):
        fr.predict(directory, tmp_path / "rows.csv")
    (tmp_path / "rows.csv").write_text("age,dose\n30,2.5\n")
    with pytest.raises(fr.DataError, match="has no column age, dose"):
        fr.predict(directory, tmp_path / "rows.csv")
    null = ["--csv", "separator=null", "--csv", "decimal=null"]
    done = CliRunner().invoke(cli, ["predict", str(directory), str(tmp_path / "rows.csv"), *null])
    assert done.stdout == fr.predict("binary-mean", tmp_path / "rows.csv").to_csv(index=False, float_format="%.9g")


def test_all_bad_cells_are_counted_and_all_columns_said_at_once() -> None:
    train("binary")
    Path("bad.csv").write_text("age,dose\nx,2\n1,inf\ny,1\n2,inf\nx,3\n")
    with pytest.raises(fr.DataError) as error:
        fr.predict("binary-mean", "bad.csv")
    assert str(error.value).splitlines() == [
        "bad.csv, line 2, column age: 'x' is not a number; write numbers as 1234.5, and leave missing cells empty "
        "(2 more like it in this column)",
        "bad.csv, line 3, column dose: 'inf' is infinite, or more than float32 can hold "
        "(1 more like it in this column)",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("age,dse\n1,2\n", ["has no column dose; it has age, dse"]),
        ("age,dose\n1,2\nx,1\n", ["line 3, column age: 'x' is not a number"]),
        ("age,dose\n1,inf\n", ["line 2, column dose: 'inf' is infinite"]),
        ("age,dose,dose\n1,2,3\n", ["has column dose more than once"]),
        ("age,dose\n", ["has no rows"]),
        ("age,dose\n1,2,3\n", ["line 2 has 3 values, but the header has 2"]),
        ("", ["the file is empty"]),
    ],
)
def test_rows_that_do_not_fit_are_refused(text: str, expected: list[str]) -> None:
    train("binary")
    Path("bad.csv").write_text(text)
    error = str(CliRunner().invoke(cli, ["predict", "binary-mean", "bad.csv"]).exception)
    assert error.startswith("bad.csv")
    assert [words for words in expected if words not in error] == [], error


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows.drop(columns="dose"), "has no column dose"),
        (lambda rows: rows.assign(age="old"), "row 1, column age: 'old' is not a number"),
        (lambda rows: rows.assign(age=[1, "x"] * 30), "row 2, column age: 'x' is not a number"),
        (lambda rows: rows.assign(age=[1, "x"] * 30)[::-1], "row 1, column age: 'x' is not a number"),
        (lambda rows: pd.concat([rows, rows[["age"]]], axis=1), "has column age more than once"),
        (lambda rows: rows[:0], "has no rows"),
    ],
)
def test_data_frames_that_do_not_fit_are_refused(change: Callable[[pd.DataFrame], pd.DataFrame], expected: str) -> None:
    train("binary")
    with pytest.raises(fr.DataError, match=expected):
        fr.predict("binary-mean", change(pd.read_csv("binary-mean/north.csv")))


def test_runs_that_cannot_predict_say_why(tmp_path: Path) -> None:
    directory = train("binary").directory
    with pytest.raises(fr.BadInput, match=r"nothing: no such run.* runs here: .*binary-mean-"):
        fr.predict("nothing", "rows.csv")
    with pytest.raises(fr.DataError, match=r"rows-of-no-one\.csv: there is no such file"):
        fr.predict(directory, "rows-of-no-one.csv")
    unfinished = tmp_path / "unfinished-0"
    unfinished.mkdir()
    (unfinished / "experiment.yaml").write_bytes((directory / "experiment.yaml").read_bytes())
    with pytest.raises(fr.BadInput, match="has no model yet; finish it with fednar run --resume unfinished-0"):
        fr.predict(unfinished, "rows.csv")
    (unfinished / "comparison.yaml").write_text("runs: []")
    with pytest.raises(fr.BadInput, match="comparison"):
        fr.predict(unfinished, "rows.csv")


def test_a_run_on_other_data_names_the_way_to_its_model() -> None:
    settings = {
        "name": "numbers",
        "data": {"source": "digits", "partition": {"clients": 3}},
        "model": {"name": "logistic"},
        "federation": {"rounds": 1, "local_steps": 1},
        "execution": {"placement": "serial"},
    }
    fr.run(fr.Experiment.model_validate(settings))
    with pytest.raises(fr.BadInput, match=r"was not trained on tables .* mlflow\.pyfunc\.load_model"):
        fr.predict("numbers", "rows.csv")


CONVOLUTION = """
from torch import nn

def net(channels: int = 3) -> nn.Module:
    features = nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv1d(1, channels, 2), nn.Flatten())
    return nn.Sequential(features, nn.Linear(channels, 3), nn.Tanh())
"""


def test_the_sizes_of_a_network_are_recorded_and_not_guessed_from_its_weights(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "convolution.py").write_text(CONVOLUTION)
    monkeypatch.syspath_prepend(work)
    write_tables(work / "convolved", "classification")
    settings = {
        "name": "convolved",
        "data": {"source": "folder", "directory": "convolved", "missing": "mean"},
        "model": {"function": "convolution.net", "arguments": {"channels": 5}},
        "federation": {"rounds": 1, "local_epochs": 1, "batch_size": 8},
        "execution": {"placement": "serial"},
    }
    result = fr.run(fr.Experiment.model_validate(settings))
    rows = pd.read_csv("convolved/north.csv")
    outputs = result.model(torch.from_numpy(rows[["age", "dose"]].to_numpy(dtype=float))).detach().numpy()
    assert (fr.predict("convolved", rows)["prediction"] == outputs.argmax(axis=1)).all()
    schema = result.directory / "schema.json"
    fields = json.loads(schema.read_text())
    assert (fields["network_inputs"], fields["network_outputs"]) == (2, 3)
    del fields["network_outputs"]
    schema.write_text(json.dumps(fields))
    with pytest.raises(fr.ModelError, match=r"sizes of its network are not recorded; load it with fr\.load_model"):
        fr.predict("convolved", rows)
