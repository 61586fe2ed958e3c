"""Rows with categories, dates and booleans are predicted by the schema of the run, and named by its classes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fednar_ray.config.tables import CsvSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.fednar_table_schema import ColumnSchema, TableSchema
from fednar_ray.core.preprocessing import TablePreprocessing, join_preprocessing
from fednar_ray.experiments.predict import Predictor

SCHEMA = TableSchema(
    columns=(
        ColumnSchema(name="age"),
        ColumnSchema(name="sex", kind="category", levels=("f", "m")),
        ColumnSchema(name="seen", kind="date"),
        ColumnSchema(name="smoker", kind="boolean"),
    ),
    task="classification",
    label="grade",
    class_names=("high", "low", "none"),
)
ROWS = "smoker,sex,seen,age,grade\ntrue,m,1970-01-02,1.5,low\nfalse,f,1970-01-03,2,high\n"
INPUTS = np.array([[1.5, 0, 1, 1, 1], [2, 1, 0, 2, 0]])  # age, sex f, sex m, days, smoker


@pytest.fixture
def predictor() -> Predictor:
    """Returns a linear model with known weights, which takes inputs as they are and imputes nothing."""
    network = torch.nn.Linear(5, 3)
    with torch.no_grad():
        network.weight.copy_(torch.arange(15.0).reshape(3, 5) / 10 - 0.7)
        network.bias.copy_(torch.tensor([0.3, 0.0, -0.3]))
    preprocessing = TablePreprocessing(schema=SCHEMA, fill=np.full(5, np.nan), mean=np.zeros(5), scale=np.ones(5))
    return Predictor(model=join_preprocessing(preprocessing, network).eval(), schema=SCHEMA, written=CsvSettings())


def compute_softmax() -> np.ndarray:
    logits = INPUTS @ (np.arange(15.0).reshape(3, 5) / 10 - 0.7).T + [0.3, 0.0, -0.3]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_a_file_gives_the_names_and_probabilities_of_the_classes(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    found = predictor.predict_file(tmp_path / "rows.csv")
    assert list(found) == ["prediction", "probability_high", "probability_low", "probability_none"]
    expected = compute_softmax()
    assert np.allclose(found.iloc[:, 1:].to_numpy(dtype=float), expected, atol=1e-6)
    assert list(found["prediction"]) == [("high", "low", "none")[i] for i in expected.argmax(axis=1)]


def test_a_data_frame_with_dates_and_booleans_gives_the_same(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    frame = pd.read_csv(tmp_path / "rows.csv", parse_dates=["seen"])
    assert frame["smoker"].dtype == bool
    pd.testing.assert_frame_equal(predictor.predict_frame(frame), predictor.predict_file(tmp_path / "rows.csv"))


def test_codes_with_leading_zeros_are_levels(tmp_path: Path) -> None:
    schema = TableSchema(columns=(ColumnSchema(name="ward", kind="category", levels=("01", "1")),), task="regression")
    preprocessing = TablePreprocessing(schema=schema, fill=np.full(2, np.nan), mean=np.zeros(2), scale=np.ones(2))
    network = torch.nn.Linear(2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[5.0, 7.0]]))
        network.bias.zero_()
    (tmp_path / "rows.csv").write_text("ward,x\n01,0\n1,0\n")
    model = join_preprocessing(preprocessing, network).eval()
    found = Predictor(model=model, schema=schema, written=CsvSettings()).predict_file(tmp_path / "rows.csv")
    assert list(found["prediction"]) == [5, 7]


def test_parquet_with_dates_gives_the_same(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    pd.read_csv(tmp_path / "rows.csv", parse_dates=["seen"]).to_parquet(tmp_path / "rows.parquet")
    expected = predictor.predict_file(tmp_path / "rows.csv")
    pd.testing.assert_frame_equal(predictor.predict_file(tmp_path / "rows.parquet"), expected)


def test_all_cells_that_do_not_fit_are_named_with_their_line(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("smoker,sex,seen,age\ntrue,m,1970-01-02,1\nperhaps,x,yesterday,old\n")
    with pytest.raises(DataError) as error:
        predictor.predict_file(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    for column, words in (("age", "is not a number"), ("sex", "'x' is an unknown level; the model knows f, m"),
                          ("seen", "dates are written 2020-01-31"), ("smoker", "booleans are true")):  # fmt: skip
        assert any(line.startswith(f"{path}, line 3, column {column}: ") and words in line for line in lines), lines


def test_bad_rows_can_be_left_without_a_prediction(
    predictor: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, good = tmp_path / "rows.csv", tmp_path / "good.csv"
    good.write_text(ROWS)
    first, second = ROWS.splitlines()[1:3]
    bad = ["perhaps,m,1970-01-02,1,low", "true,x,1970-01-02,1,low", "true,m,soon,old,low", "true,m,1970-01-02,1e60,low",
           "true,m,1970-01-02,,low"]  # fmt: skip
    path.write_text("\n".join([ROWS.splitlines()[0], first, *bad, second]) + "\n")
    with caplog.at_level("WARNING", logger="fednar_ray"):
        found = predictor.predict_file(path, skip_bad=True)
    assert found["prediction"].isna().tolist() == [False, *[True] * 5, False]
    left = found.dropna().reset_index(drop=True)
    pd.testing.assert_frame_equal(left, predictor.predict_file(good), check_exact=False)
    assert "5 of 7 rows get no prediction" in caplog.text
    for place in ("line 3, column smoker", "line 4, column sex", "line 5, column seen", "line 5, column age",
                  "line 6, column age", "line 7, column age"):  # fmt: skip
        assert place in caplog.text
    path.write_text("\n".join([ROWS.splitlines()[0], *bad]) + "\n")
    with pytest.raises(DataError, match="line 2, column smoker"):
        predictor.predict_file(path, skip_bad=True)
