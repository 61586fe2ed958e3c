"""One table with a column of groups, against a folder with the same rows in one file per group."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

import fednar_ray as fr
from fednar_ray.config import read_data
from fednar_ray.core.errors import DataError
from fednar_ray.data.federation import Federation
from fednar_ray.data.loading import load_federation
from tests.data.test_table_kinds import WARDS, build_ward

READING: dict[str, Any] = {"label": "ill", "task": "binary", "missing": "mean"}


@pytest.fixture(autouse=True)
def wards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Writes the same rows as one file per ward and, in another order of wards, as one table."""
    monkeypatch.chdir(tmp_path)
    Path("wards").mkdir()
    tables = {name: build_ward(seed, 40 - seed) for seed, name in enumerate(WARDS)}
    for name, table in tables.items():
        table.to_csv(f"wards/{name}.csv", index=False)
    whole = pd.concat([tables[name].assign(ward=name) for name in reversed(WARDS)], ignore_index=True)
    whole.to_csv("patients.csv", index=False)
    whole.to_parquet("patients.parquet")
    return whole


def load(**data: Any) -> Federation:
    return load_federation(read_data({"source": "table", "path": "patients.csv", **READING, **data}), 0)


def load_folder(**data: Any) -> Federation:
    return load_federation(read_data({"source": "folder", "directory": "wards", **READING, **data}), 0)


def train(**data: Any) -> bytes:
    """Trains two rounds in this process and returns the parameters."""
    settings = {
        "name": "wards",
        "data": {**READING, **data},
        "model": {"name": "logistic"},
        "federation": {"rounds": 2, "local_epochs": 1, "batch_size": 8},
        "execution": {"placement": "serial"},
    }
    (*_, report) = fr.iter_rounds(fr.Experiment.model_validate(settings))
    return report.parameters.tobytes()


@pytest.mark.parametrize("path", ["patients.csv", "patients.parquet"])
@pytest.mark.parametrize(
    "data",
    [
        {"validation": 0.1},
        {"missing": "drop", "standardize": False},
        {"task": "regression", "label": "age", "exclude": ["admitted"], "missing": "drop"},
        {"features": ["age", "smoker"], "positive": "healthy", "test_share": 0.4},
    ],
)
def test_groups_are_the_clients_of_a_folder_with_their_rows(path: str, data: dict[str, Any]) -> None:
    ours, theirs = load(path=path, groups="ward", **data), load_folder(**data)
    assert ours.client_names == WARDS
    assert ours.digest() == theirs.digest()
    assert ours.preprocessing is not None
    assert theirs.preprocessing is not None
    for name in ("fill", "mean", "scale"):
        assert getattr(ours.preprocessing, name).tobytes() == getattr(theirs.preprocessing, name).tobytes()
    assert ours.preprocessing.schema == theirs.preprocessing.schema
    assert "ward" not in [column.name for column in ours.preprocessing.schema.columns]
    assert (ours.target_scale, ours.class_names) == (theirs.target_scale, theirs.class_names)
    for name, part in ours.splits().items():
        assert part.x.tobytes() == theirs.splits()[name].x.tobytes()


def test_a_run_has_the_bytes_of_that_of_the_folder() -> None:
    ours = train(source="table", path="patients.csv", groups="ward")
    assert ours == train(source="folder", directory="wards")
    assert ours != train(source="table", path="patients.csv", groups="ward", standardize=False)


def test_groups_that_are_numbers_keep_their_text(wards: pd.DataFrame) -> None:
    wards["ward"] = wards["ward"].map({"east": "007", "north": "10", "west": "2"})
    wards.to_csv("patients.csv", index=False)
    assert load(groups="ward").client_names == ("007", "10", "2")


def test_without_groups_the_partition_divides_the_rows(wards: pd.DataFrame) -> None:
    usual, few = load(exclude=["ward"]), load(exclude=["ward"], partition={"kind": "dirichlet", "clients": 3})
    assert (usual.num_clients, few.num_clients) == (20, 3)
    held = round(0.2 * len(wards))
    for each in (usual, few):
        assert (each.shards.sizes.sum(), len(each.test)) == (len(wards) - held, held)
    assert load(groups="ward", partition={"kind": "iid", "clients": 5}).num_clients == 5
    assert load(groups="ward", partition={"clients": 2}).num_clients == 2


def test_a_file_of_test_rows_is_the_test_set(wards: pd.DataFrame) -> None:
    apart = build_ward(7, 30)
    apart.to_csv("later.csv", index=False)  # it needs no groups
    found = load(groups="ward", test_path="later.csv")
    assert found.shards.sizes.tolist() == [40, 39, 38]
    assert found.preprocessing is not None
    age = found.preprocessing.schema.columns[0]
    assert age.name == "age"
    expected = (apart["age"].fillna(wards["age"].mean()) - wards["age"].mean()) / wards["age"].std(ddof=0)
    np.testing.assert_allclose(found.test.x[:, 0], expected, rtol=1e-5, atol=1e-6)
    assert found.test.y.tolist() == (apart["ill"] == "sick").astype(int).tolist()
    apart.loc[4, "blood"] = "Z"
    apart.to_csv("later.csv", index=False)
    with pytest.raises(DataError, match=r"later\.csv, line 6, column blood: the level 'Z' is only in test rows"):
        load(groups="ward", test_path="later.csv")


def test_small_groups_have_no_test_rows_and_dropped_ones_are_named(
    wards: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    single = wards[wards["age"].notna() & wards["blood"].notna()].head(1).assign(ward="alone")
    lost = wards.head(1).assign(ward="nobody", age=np.nan)
    pd.concat([wards, single, lost]).to_csv("patients.csv", index=False)
    with caplog.at_level(logging.WARNING, "fednar_ray"):
        found = load(groups="ward", missing="drop")
    assert found.client_names == ("alone", *WARDS)
    assert found.shards.sizes[0] == 1
    assert "leaves no row of nobody, which do not take part" in caplog.text


ROWS = "w,x,ill\na,1,0\nb,2,1\na,3,1\nb,4,0\n"


@pytest.mark.parametrize(
    ("text", "data", "message"),
    [
        (ROWS, {"groups": "ward"}, "rows.csv: has no column ward; it has w, x, ill"),
        (ROWS.replace("b,2", ",2"), {"groups": "w"}, "rows.csv, line 3, column w: '' names no client; fill it in"),
        (ROWS, {"groups": "w"}, "rows.csv: no group has enough rows to hold out a share of 0.2"),
        (ROWS, {"features": ["x"], "test_share": 0.1}, "rows.csv: the table has not enough rows to hold out"),
        (ROWS.replace("3,1", "much,1"), {"groups": "w"}, "rows.csv, line 4, column x: 'much' is not a number"),
        (ROWS.replace("4,0", "4,5"), {"groups": "w"}, "rows.csv, line 5, column ill: '5' is not a label"),
        (ROWS, {"groups": "w", "path": "none.csv"}, "data.path: none.csv: no such file"),
        (ROWS, {"groups": "w", "path": "wards"}, "data.path: wards: is a directory; for one file per client"),
        (ROWS, {"groups": "w", "path": "rows.npz"}, "data.path: rows.npz: no such file"),
        (ROWS, {"groups": "w", "test_path": "none.csv"}, "data.test_path: none.csv: no such file"),
        (ROWS, {"groups": "w", "test_path": "wards/east.csv"}, "wards/east.csv: has no column x; it has age"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_place(text: str, data: dict[str, Any], message: str) -> None:
    Path("rows.csv").write_text(text)
    with pytest.raises(DataError) as error:
        load(**{"path": "rows.csv", **data})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"groups": "ill"}, "groups names ill, which is the label"),
        ({"groups": "x", "features": ["x"]}, "groups names x, which is an input"),
    ],
)
def test_groups_are_neither_label_nor_input(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        load(**data)


def test_natural_clients_need_groups() -> None:
    settings = {"name": "x", "model": {"name": "logistic"}, "federation": {"rounds": 1, "local_epochs": 1}}
    data = {"source": "table", "path": "patients.csv", "partition": {"kind": "natural"}}
    with pytest.raises(ValidationError, match="table has no groups"):
        fr.Experiment.model_validate({**settings, "data": data})
