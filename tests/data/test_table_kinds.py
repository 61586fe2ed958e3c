"""Tables with categories, booleans, dates and text labels, against pandas and scikit-learn on the pooled rows."""

from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import fednar_ray as fr
from fednar_ray.config import read_data
from fednar_ray.core.errors import DataError
from fednar_ray.core.fednar_table_schema import parse_date, read_schema
from fednar_ray.core.random import Purpose, generator
from fednar_ray.data.files import FederationOfFiles, load_file_federation, load_silo_federation
from fednar_ray.data.loading import load_federation
from fednar_ray.data.sources.client_files import list_silo_files
from fednar_ray.data.sources.folder import list_client_files
from fednar_ray.execution.survey import LocalSurvey
from fednar_ray.tracking.run_directory import RunDirectory
from tests.support.stores import create_store

WARDS = ("east", "north", "west")


def build_ward(seed: int, rows: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    blood = rng.choice(["A", "B", "AB", "O"][: 3 + seed % 2], rows)
    smoker = rng.choice(["yes", "no"], rows)
    days = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, rows), unit="D")
    age = rng.integers(20, 90, rows)
    ill = np.where(age + 30 * (smoker == "yes") + rng.normal(0, 5, rows) > 70, "sick", "healthy")
    table = pd.DataFrame(
        {"age": age, "blood": blood, "smoker": smoker, "admitted": days.strftime("%Y-%m-%d"), "ill": ill}
    )
    table.loc[::11, "blood"] = None
    table.loc[::7, "age"] = np.nan
    return table


def write_wards(directory: Path) -> dict[str, pd.DataFrame]:
    directory.mkdir()
    tables = {name: build_ward(seed) for seed, name in enumerate(WARDS)}
    for name, table in tables.items():
        table.to_csv(directory / f"{name}.csv", index=False)
    return tables


def build_data(directory: Path | None, **data: Any) -> dict[str, Any]:
    given = {"source": "folder", "label": "ill", "task": "binary", "missing": "mean", **data}
    return given if directory is None else {**given, "directory": str(directory)}


def load(directory: Path, **data: Any) -> FederationOfFiles:
    return load_file_federation(read_data(build_data(directory, **data)), 0)


def find_refusal(directory: Path, files: dict[str, str], **data: Any) -> str:
    for name, text in files.items():
        (directory / f"{name}.csv").write_text(text)
    with pytest.raises(DataError) as error:
        load(directory, **data)
    return str(error.value)


def test_preprocessing_is_that_of_scikit_learn_on_the_pooled_rows(tmp_path: Path) -> None:
    tables = write_wards(tmp_path / "wards")
    known = load(tmp_path / "wards")
    files = list_client_files(read_data(build_data(tmp_path / "wards")))
    order = [generator(0, Purpose.TEST_SHARE, client_id=i).permutation(40)[8:] for i in range(3)]
    pooled = pd.concat([table.iloc[np.sort(kept)] for table, kept in zip(tables.values(), order, strict=True)])
    pooled["smoker"] = (pooled["smoker"] == "yes").astype(float)
    pooled["admitted"] = (pd.to_datetime(pooled["admitted"]) - pd.Timestamp(0)) / pd.Timedelta(days=1)
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    levels = [["A", "AB", "B", "O"]]
    transform = ColumnTransformer(
        [
            ("age", numbers, ["age"]),
            ("blood", OneHotEncoder(categories=levels, handle_unknown="ignore", sparse_output=False), ["blood"]),
            ("rest", numbers, ["smoker", "admitted"]),
        ]
    )
    assert known.preprocessing is not None
    schema = known.preprocessing.schema
    assert [column.kind for column in schema.columns] == ["number", "category", "boolean", "date"]
    assert schema.columns[1].levels == tuple(levels[0])
    raw = np.concatenate([file.read().encode(schema).train_x for file in files])
    found = known.preprocessing.apply(raw)
    # scikit-learn's pipeline scales by the deviation after imputing; ours by that of the values that are there
    expected = transform.fit_transform(pooled)
    there = pooled["age"].notna().mean()
    expected[:, 0] *= np.sqrt(there)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    module = known.preprocessing.build_module()(torch.from_numpy(raw)).numpy()
    assert module.tobytes() == found.astype(np.float32).tobytes()


def test_text_labels_are_classes_by_name(tmp_path: Path) -> None:
    tables = write_wards(tmp_path / "wards")
    known = load(tmp_path / "wards")
    assert known.class_names == ("healthy", "sick")
    sick = [(table["ill"] == "sick").sum() for table in tables.values()]
    _, splits = known.load()
    assert known.label_counts()[:, 1].sum() + splits["test"].y.sum() == sum(sick)
    turned = load(tmp_path / "wards", positive="healthy")
    assert turned.class_names == ("sick", "healthy")
    assert turned.label_counts().tolist() == known.label_counts()[:, ::-1].tolist()


def test_silos_agree_on_the_same_as_a_folder_and_in_memory(tmp_path: Path) -> None:
    write_wards(tmp_path / "wards")
    known = load(tmp_path / "wards", validation=0.1)
    settings = read_data(build_data(None, validation=0.1))
    files = list_silo_files(settings, {name: str(tmp_path / "wards" / f"{name}.csv") for name in WARDS})
    silos = load_silo_federation(files, settings, 0, LocalSurvey())
    memory = load_federation(read_data(build_data(tmp_path / "wards", validation=0.1)), 0)
    assert silos.digest() == known.digest()
    assert silos.class_names == known.class_names == memory.class_names
    assert silos.preprocessing.schema == known.preprocessing.schema
    assert silos.label_counts().tolist() == known.label_counts().tolist() == memory.label_counts().tolist()
    for other in (silos, memory):
        for ours, theirs in zip(other.load()[1].values(), known.load()[1].values(), strict=True):
            assert sorted(ours.x.tolist()) == sorted(theirs.x.tolist())
        assert other.load()[0].examples.x.tobytes() == known.load()[0].examples.x.tobytes()
    assert not silos.test.y.any()  # placeholders


def test_the_saved_model_takes_raw_columns_and_names_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tables = write_wards(tmp_path / "wards")
    experiment = fr.Experiment.model_validate(
        {
            "name": "wards",
            "data": build_data(tmp_path / "wards", validation=0.0),
            "model": {"name": "logistic"},
            "federation": {"rounds": 2, "local_epochs": 1, "batch_size": 8},
            "execution": {"placement": "serial"},
            "tracking": {"uri": create_store(tmp_path / "m.db")},
        }
    )
    result = fr.run(experiment)
    schema = read_schema(RunDirectory(result.directory).schema)
    assert schema.class_names == ("healthy", "sick")
    pooled = pd.concat(tables.values(), ignore_index=True)
    saved = mlflow.pyfunc.load_model(str(result.directory / "model"))
    found = saved.predict(pooled.drop(columns="ill"))
    assert list(found) == ["prediction", "probability_healthy", "probability_sick"]
    with torch.no_grad():
        logits = result.model(torch.from_numpy(schema.encode(pooled)))[:, 0].numpy()
    np.testing.assert_allclose(found["probability_sick"], 1 / (1 + np.exp(-logits.astype(float))), rtol=1e-6)
    assert (found["prediction"] == np.where(logits > 0, "sick", "healthy")).all()
    dated = pooled.assign(admitted=pd.to_datetime(pooled["admitted"]), smoker=pooled["smoker"] == "yes")
    pd.testing.assert_frame_equal(saved.predict(dated), found)
    with pytest.raises(ValueError, match="column blood: unknown level 'Z'; the model knows A, AB, B, O"):
        saved.predict(pooled.assign(blood="Z"))


TWO = "x,ill\n1,u\n2,v\n"


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        (
            {"a": TWO, "b": "x,ill\nlow,u\nhigh,v\n"},
            {},
            "column x: a number in {a} (line 2: '1'), but text in {b} (line 2: 'low'); correct the values, or set "
            "data.types: {{x: category}}",
        ),
        (
            {"a": "x,ill\n1,u\n2,u\n"},
            {},
            "column ill: every training row has the label 'u'; at least two classes are needed",
        ),
        (
            {"a": "x,ill\n1,u\n2,v\n3,w\n"},
            {"test_share": 0.0},
            "column ill: 3 classes (u, v, w); task binary has two; set data.task: classification",
        ),
        ({"a": TWO}, {"positive": "w"}, "data.positive: 'w': is no label; the labels are u, v"),
        ({"a": TWO, "b": "x,ill\n"}, {}, "{b}: has no rows"),
        ({"a": TWO, "b": "z,ill\n1,u\n"}, {}, "{b}: has no column x; it has z, ill"),
        (
            {"a": TWO, "b": "x,ill\n1,\n2,u\n"},
            {},
            "{b}: 1 row has no ill (the first: line 2); data.missing: drop leaves them out",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    files: dict[str, str], data: dict[str, Any], message: str, tmp_path: Path
) -> None:
    found = find_refusal(tmp_path, files, **data)
    assert message.format(**{name: tmp_path / f"{name}.csv" for name in files}) in found.splitlines()


def test_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    found = find_refusal(tmp_path, {"a": "x,ill\n1,u\n", "b": "", "c": "z,ill\n1,u\n", "d": "x,ill\n1,u,3\n"})
    assert [line.split(":")[0] for line in found.splitlines()] == [str(tmp_path / f"{name}.csv") for name in "bcd"]


def test_an_identifier_is_refused_unless_it_is_left_out_or_called_a_category(tmp_path: Path) -> None:
    rows = "".join(f"patient{i},{i % 3},{'uv'[i % 2]}\n" for i in range(30))
    found = find_refusal(tmp_path, {"a": f"id,x,ill\n{rows}"})
    assert "column id: 24 different texts in 24 training rows" in found
    assert "leave it out with data.exclude: [id]" in found
    assert load(tmp_path, exclude=["id"]).preprocessing.columns == ("x",)
    assert "is only in test rows" in find_refusal(tmp_path, {}, types={"id": "category"})


def test_every_level_that_only_test_rows_have_is_named_by_its_line(tmp_path: Path) -> None:
    rows = ["p,u", "q,v"] * 10
    (tmp_path / "a.csv").write_text("\n".join(["x,ill", *rows]) + "\n")
    assert load(tmp_path).preprocessing.schema.columns[0].levels == ("p", "q")
    for line in range(20):  # some lines are test rows
        changed = [*rows[:line], "odd" + rows[line][1:], *rows[line + 1 :]]
        (tmp_path / "a.csv").write_text("\n".join(["x,ill", *changed]) + "\n")
        try:
            assert "odd" in load(tmp_path).preprocessing.schema.columns[0].levels
        except DataError as error:
            assert f"a.csv, line {line + 2}, column x: the level 'odd' is only in test rows" in str(error)  # noqa: PT017
            break
    else:
        raise AssertionError("no row was a test row")


@pytest.mark.parametrize("silos", [False, True])
def test_a_numeric_class_that_only_test_rows_have_is_named_by_its_line(silos: bool, tmp_path: Path) -> None:
    paths, lines = {name: str(tmp_path / f"{name}.csv") for name in "abc"}, []
    for i, path in enumerate(paths.values()):
        held_out = generator(0, Purpose.TEST_SHARE, client_id=i).permutation(20)[:4].tolist()
        rows = "".join(f"{row},{12 if row in held_out else row % 2}\n" for row in range(20))
        Path(path).write_text(f"x,ill\n{rows}")
        lines.append(f"{path}, line {2 + min(held_out)}, column ill")
    settings = read_data(build_data(None if silos else tmp_path, task="classification"))
    load_all: Any = load_file_federation
    if silos:
        load_all = partial(load_silo_federation, list_silo_files(settings, paths), ask=LocalSurvey())
    with pytest.raises(DataError) as error:
        load_all(settings, seed=0)
    assert str(error.value).splitlines() == [
        f"{line}: the class '12' is only in test rows, so it would never be trained; merge it with another, remove its "
        "rows, or change data.test_share"
        for line in lines
    ]


def test_decimal_commas_beside_decimal_points_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("dose;age;ill\n1,5;30.5;u\n2;31;v\n2,5;32;u\n")
    (tmp_path / "b.csv").write_text("dose;age;ill\n1,5;30;u\n1.5;31;v\n2;32;u\n")
    (tmp_path / "c.csv").write_text('dose,age,ill\n"1,5",30,u\n"2,5",31,v\n')
    (tmp_path / "d.csv").write_text("dose;age;ill\n1,5;30;u\n2,5;31;v\n")  # alike: detected
    alike = "write all numbers of a file alike, or set data.csv.decimal: ',' or data.types: {dose: category}"
    a, b, c = (str(tmp_path / f"{name}.csv") for name in "abc")
    assert find_refusal(tmp_path, {}).splitlines() == [
        f"{a}, line 2, column dose: '1,5' has a decimal comma, but line 2, column age has a decimal point; {alike} "
        "(1 more like it in this column)",
        f"{b}, line 2, column dose: '1,5' has a decimal comma, but line 3, column dose has a decimal point; {alike}",
        f"{c}, line 2, column dose: '1,5' has a decimal comma; {alike} (1 more like it in this column)",
    ]
    for path in (b, c):
        Path(path).unlink()
    assert load(tmp_path, types={"dose": "category"}).preprocessing.schema.columns[0].levels


def test_a_silo_does_not_show_the_number_with_a_decimal_comma(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("dose;age;ill\n1,5;30.5;u\n2;31;v\n2,5;32;u\n")
    settings = read_data(build_data(None))
    files = list_silo_files(settings, {"a": str(tmp_path / "a.csv")})
    with pytest.raises(DataError, match=r"line 2, column dose: the value has a decimal comma, but line 2") as error:
        load_silo_federation(files, settings, 0, LocalSurvey())
    assert "1,5" not in str(error.value)


def test_kinds_can_be_overridden(tmp_path: Path) -> None:
    rows = "".join(f"{zip_code},{i % 2},{'uv'[i % 2]}\n" for i, zip_code in enumerate(["01234", "99999"] * 10))
    (tmp_path / "a.csv").write_text(f"zip,flag,ill\n{rows}")
    columns = load(tmp_path, types={"zip": "category", "flag": "boolean"}).preprocessing.schema.columns
    assert [(column.kind, column.levels) for column in columns] == [("category", ("01234", "99999")), ("boolean", ())]


@pytest.mark.parametrize(
    "text", ["2020-02-29", "1969-12-31T12:00", "2024-06-30T23:59:59.5+02:00", "29.02.2020", "2020/2/9"]
)
def test_a_date_is_that_of_pandas(text: str) -> None:
    moment = pd.to_datetime(text, utc=True, dayfirst="." in text[:5])
    assert parse_date(text) == (moment - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)


@pytest.mark.parametrize("text", ["2021-02-29", "01/02/2020", "20200101", "2020", "May 2020"])
def test_other_text_is_no_date(text: str) -> None:
    assert parse_date(text) is None
