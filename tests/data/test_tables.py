"""Clients' tables as they occur in practice: encodings, file endings, types, and bad cells with line and column."""

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import parquet

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.config import AnyData, read_data
from fednar_ray.core.errors import DataError
from fednar_ray.data.files import FederationOfFiles, load_file_federation
from fednar_ray.data.loading import load_federation
from fednar_ray.data.sources.folder import list_client_files
from fednar_ray.experiments.prepare import prepare

GOOD = "age,dose,ill\n40,1.5,0\n50,2.5,1\n60,0.5,0\n45,2.0,1\n55,1.0,0\n"


def load_folder(directory: Path, **settings: Any) -> AnyData:
    return read_data({"source": "folder", "directory": str(directory), "label": "ill", "task": "binary", **settings})


def sort_rows(directory: Path, **settings: Any) -> dict[str, np.ndarray]:
    """Returns each client's rows, inputs and label, sorted."""
    files = list_client_files(load_folder(directory, **settings))
    read = {file.name: file.read() for file in files}
    return {
        name: np.concatenate(
            [np.column_stack([rows.train_x, rows.train_y]), np.column_stack([rows.test_x, rows.test_y])]
        )
        for name, rows in read.items()
    }


def order_rows(rows: np.ndarray) -> list[list[float]]:
    return sorted(rows.tolist())


REMEDY = "write numbers as 1234.5, and leave missing cells empty, or leave the column out with data.exclude"
EXPECTED = order_rows(pd.read_csv(pd.io.common.StringIO(GOOD)).to_numpy(dtype=float))


def find_refusal(directory: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        load_file_federation(load_folder(directory, **settings), 0)
    return str(error.value)


# ——— which files are read ———


def test_files_are_read_with_endings_in_any_case_and_compressed(tmp_path: Path) -> None:
    plain = GOOD.encode()
    (tmp_path / "east.csv").write_bytes(plain)
    (tmp_path / "SOUTH.CSV").write_bytes(plain)
    (tmp_path / "mid.Csv").write_bytes(plain)
    (tmp_path / "north.csv.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "far.CSV.GZ").write_bytes(gzip.compress(plain))
    (tmp_path / "near.csv.bz2").write_bytes(bz2.compress(plain))
    (tmp_path / "up.csv.xz").write_bytes(lzma.compress(plain))
    (tmp_path / "tabs.tsv").write_bytes(plain.replace(b",", b"\t"))
    (tmp_path / "more.tsv.gz").write_bytes(gzip.compress(plain.replace(b",", b"\t")))
    columns = pa.table({"age": [40, 50, 60, 45, 55], "dose": [1.5, 2.5, 0.5, 2.0, 1.0], "ill": [0, 1, 0, 1, 0]})
    parquet.write_table(columns, tmp_path / "west.PARQUET")
    with (tmp_path / "arrays.NPZ").open("wb") as file:
        np.savez(file, **{name: columns[name].to_numpy() for name in columns.column_names})
    found = sort_rows(tmp_path, features=["age", "dose"])
    assert sorted(found) == [
        "SOUTH", "arrays", "east", "far", "mid", "more", "near", "north", "tabs", "up", "west",
    ]  # fmt: skip
    for name, rows in found.items():
        assert order_rows(rows) == EXPECTED, name


def test_ignored_files_are_named_in_a_warning_and_by_data_inspect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    silos = tmp_path / "silos"
    (silos / "old").mkdir(parents=True)
    for name in ("a.csv", "b.csv", "old/c.csv"):
        (silos / name).write_text(GOOD)
    for name in ("README.txt", ".DS_Store", "d.xlsx", ".e.csv"):
        (silos / name).write_text("")
    found = load_file_federation(load_folder(silos), 0)
    assert found.num_clients == 2
    assert set(found.ignored_files) == {"README.txt", ".DS_Store", "d.xlsx", ".e.csv", "old/"}
    (warning,) = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert all(name in warning for name in found.ignored_files)
    monkeypatch.chdir(tmp_path)
    data = {key: value for key, value in load_folder(silos).model_dump(exclude_none=True).items() if key != "partition"}
    Path("c.yaml").write_text(json.dumps({"experiment": {"name": "s", "data": data, "model": {"name": "logistic"}}}))
    text = CliRunner().invoke(cli, ["data", "inspect", "c.yaml"]).output
    assert "ignored files" in text
    assert "d.xlsx" in text
    shown = CliRunner().invoke(cli, ["data", "inspect", "c.yaml", "--json"]).stdout.splitlines()[-1]
    assert set(json.loads(shown)["ignored_files"]) == set(found.ignored_files)


@pytest.mark.parametrize("other", ["A.CSV", "a.csv.gz", "a.parquet", "A.tsv"])
def test_two_files_of_one_client_are_refused_by_name(other: str, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", other):
        (tmp_path / name).write_text(GOOD)
    message = find_refusal(tmp_path)
    assert "a.csv" in message
    assert other in message
    assert "a client has exactly one file" in message


def test_a_folder_with_the_name_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    (tmp_path / "b.parquet").mkdir()
    assert find_refusal(tmp_path) == f"{tmp_path / 'b.parquet'}: is a directory; a client has exactly one file"


# ——— encodings ———

UMLAUT = GOOD.replace("dose", "größe")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "latin-1"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_is_read_in_every_common_encoding(
    encoding: str, packed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = UMLAUT.encode(encoding)
    (tmp_path / f"a.csv{'.gz' * packed}").write_bytes(gzip.compress(text) if packed else text)
    (tmp_path / "b.csv").write_text(UMLAUT, encoding="utf-8")
    found = sort_rows(tmp_path, features=["age", "größe"])
    assert order_rows(found["a"]) == order_rows(found["b"]) == EXPECTED
    messages = [record.getMessage() for record in caplog.records]
    assert [("a.csv" in line, "not UTF-8" in line) for line in messages] == (
        [(True, True)] if encoding in ("cp1252", "latin-1") else []
    )


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(UMLAUT.encode("utf-16-le"))  # without a byte order mark
    assert "a.csv: cannot be read: it holds bytes that are not text; save it as UTF-8" in find_refusal(tmp_path)


# ——— headers ———


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age,dose,dose,ill\n1,2,3,0\n", "a.csv: the header names dose twice (columns 2 and 3)"),
        ("age,ill,dose,ill\n1,0,3,0\n", "a.csv: the header names ill twice (columns 2 and 4)"),
        ("age,ill,,\n1,0,,\n", "a.csv: the header has columns without a name (columns 3 and 4)"),
        (",age,ill\n0,1,0\n", "a.csv: column 1 has no name; name it, or name the inputs in data.features"),
        ("age, Ill\n1,0\n", "a.csv: has no column ill; it has age,  Ill; write ' Ill' as 'ill'"),
        ("", "a.csv: cannot be read: the file is empty"),
        ("\n\n", "a.csv: cannot be read: the file is empty"),
        ("age,ill\n", "a.csv: has no rows"),
        ("age,ill\n1,0\n\n2,0,3\n", "a.csv: cannot be read: line 4 has 3 values, but the header has 2"),
        ("age,dose\n1,0\n", "a.csv: has no column ill; it has age, dose"),
    ],
)
def test_a_bad_header_or_row_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert message in find_refusal(tmp_path)


def test_a_duplicate_name_of_an_unused_column_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,note,note,ill\n1,x,y,0\n2,x,y,1\n")
    assert order_rows(sort_rows(tmp_path, features=["age"])["a"]) == [[1, 0], [2, 1]]


def test_columns_may_be_in_another_order_and_entirely_missing_at_one_client(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    (tmp_path / "b.csv").write_text("ill,dose,age\n1,,60\n0,,40\n")
    found = sort_rows(tmp_path, missing="mean")
    assert order_rows(found["a"]) == EXPECTED
    assert sorted(found["b"][:, [0, 2]].tolist()) == [[40, 0], [60, 1]]
    assert np.isnan(found["b"][:, 1]).all()
    filled = load_file_federation(load_folder(tmp_path, missing="mean"), 0)
    assert np.isfinite(filled.load()[0].examples.x).all()
    (tmp_path / "a.csv").write_text("age,dose,ill\n40,,0\n50,,1\n")
    assert "no client has a value of dose; leave it out of data.features" in find_refusal(tmp_path, missing="mean")


@pytest.mark.parametrize("features", [["age", "age"], ["age", "ill"]])
def test_contradictory_features_are_refused(features: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"features names age twice|features holds ill, which is the label"):
        load_folder(tmp_path, features=features)


# ——— bad cells ———


def build_with_cell(column: int, text: str, line: int = 372, lines: int = 500) -> str:
    """Builds a table with one replaced cell; the header is line 1."""
    rows = [["age", "dose", "ill"], *([str(40 + i % 30), f"{i / 7:.3f}", str(i % 2)] for i in range(lines))]
    rows[line - 1][column] = text
    return "\n".join(map(",".join, rows)) + "\n"


@pytest.mark.parametrize(
    ("column", "text", "why"),
    [
        (0, "None", "is not a number"),
        (1, "12.3.4", "is not a number"),
        (1, "1_000", "is not a number"),
        (1, '"1,234"', "is not a number; write numbers as 1234.5"),
        (1, "2020-01-01", "is not a number"),
        (1, "true", "is not a number"),
        (1, "inf", "is infinite"),
        (0, "-Infinity", "is infinite"),
        (1, "1e999", "is infinite"),
        (1, "-1e39", "is infinite, or more than float32 can hold"),
        (2, "yes", "is not a number; labels are whole numbers from 0"),
        (2, "2", "is not a label; the labels of task binary are 0 and 1"),
        (2, "-1", "is not a label"),
        (2, "0.5", "is not a label"),
        (2, "inf", "is not a label"),
    ],
)
def test_one_bad_cell_is_named_by_file_line_column_and_value(column: int, text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(build_with_cell(0, "41"))
    (tmp_path / "b.csv").write_text(build_with_cell(column, text))
    message = find_refusal(tmp_path)
    name, shown = ("age", "dose", "ill")[column], text.strip('"')
    assert message.startswith(f"{tmp_path / 'b.csv'}, line 372, column {name}: {shown!r} {why}"), message


@pytest.mark.parametrize("text", ["", " ", "?", "NA", "nan", "null", " N/A "])
def test_a_missing_value_is_named_by_its_line_or_imputed(text: str, tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text(build_with_cell(1, text))
    assert "b.csv: 1 value is missing, of dose; set data.missing to mean or drop (the first: line 372)" in find_refusal(
        tmp_path
    )
    assert np.isnan(sort_rows(tmp_path, missing="mean")["b"]).sum() == 1


def test_lines_are_counted_as_in_an_editor(tmp_path: Path) -> None:
    """Blank lines are counted, and a quoted value may span several lines."""
    (tmp_path / "a.csv").write_text('\nage,note,ill\n\n1,"two\nlines",0\n\n\n2,x,1\nold,y,0\n')
    assert "a.csv, line 9, column age: 'old' is not a number" in find_refusal(tmp_path, features=["age"])


def test_all_columns_with_bad_cells_are_named_at_once_with_their_number(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,dose,ill\nx,1,0\n2,?,1\ny,z,0\n")
    remedies = [f"{REMEDY}, or set data.types: {{{name}: category}}" for name in ("age", "dose")]
    assert find_refusal(tmp_path, missing="mean").splitlines() == [
        f"{tmp_path / 'a.csv'}, line 2, column age: 'x' is not a number; {remedies[0]} (1 more like it in this column)",
        f"{tmp_path / 'a.csv'}, line 4, column dose: 'z' is not a number; {remedies[1]}",
    ]


def test_a_column_may_change_from_integers_to_floats_after_a_megabyte(tmp_path: Path) -> None:
    """Arrow infers a column's type from the first block, but later values may have another type."""
    lines = 200_000
    (tmp_path / "a.csv").write_text(build_with_cell(0, "41.25", line=lines, lines=lines))
    assert (sort_rows(tmp_path)["a"][:, 0] == 41.25).sum() == 1
    (tmp_path / "a.csv").write_text(build_with_cell(0, "None", line=lines, lines=lines))
    assert f"a.csv, line {lines}, column age: 'None' is not a number" in find_refusal(tmp_path)


def test_true_and_false_become_one_and_zero(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,ill\n1,true\n2,false\n3,true\n")
    assert order_rows(sort_rows(tmp_path)["a"]) == [[1, 1], [2, 0], [3, 1]]


def test_bad_rows_of_other_formats_are_named_too(tmp_path: Path) -> None:
    arrays = {"age": np.array([1.0, np.inf, 2.0]), "ill": np.array([0, 1, 0])}
    np.savez(tmp_path / "a.npz", **arrays)
    assert "a.npz, row 2, column age: inf is infinite" in find_refusal(tmp_path, features=["age"])
    (tmp_path / "a.npz").unlink()
    parquet.write_table(pa.table(arrays), tmp_path / "a.parquet")
    assert "a.parquet, row 2, column age: inf is infinite" in find_refusal(tmp_path, features=["age"])
    np.savez(tmp_path / "a.npz", age=np.ones(3), ill=np.array([0, 7, 1]))
    (tmp_path / "a.parquet").unlink()
    assert "a.npz, row 2, column ill: 7 is not a label" in find_refusal(tmp_path, features=["age"])


@pytest.mark.parametrize("text", ["inf", "None", "1e999"])
def test_data_inspect_and_run_refuse_the_same_files_with_the_same_message(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("silos").mkdir()
    for name, cell in (("a", "3"), ("b", text)):
        (tmp_path / "silos" / f"{name}.csv").write_text(build_with_cell(1, cell))
    data = {"source": "folder", "directory": "silos", "label": "ill", "task": "binary"}
    experiment = {"name": "s", "data": data, "model": {"name": "logistic"}, "execution": {"placement": "serial"}}
    Path("c.yaml").write_text(json.dumps({"experiment": experiment}))
    ends = [CliRunner().invoke(cli, [*command, "c.yaml"]) for command in (["data", "inspect"], ["run"])]
    inspected, trained = (end.exception for end in ends)
    assert isinstance(inspected, DataError)  # the command ends with 2
    assert isinstance(trained, DataError)
    assert str(inspected) == str(trained)
    assert f"b.csv, line 372, column dose: {text!r}" in str(trained)


def test_at_silos_an_error_names_the_line_and_not_the_value(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(build_with_cell(1, "Smith"))
    experiment = fr.Experiment.model_validate(
        {
            "data": {"source": "folder", "label": "ill", "task": "binary"},
            "model": {"name": "logistic"},
            "execution": {"placement": "serial", "silos": {"one": {"data": str(tmp_path / "a.csv")}}},
        }
    )
    with pytest.raises(DataError, match=r"a\.csv, line 372, column dose: the value is not a number") as error:
        prepare(experiment)
    assert "Smith" not in str(error.value)


# ——— types of Parquet ———

PARQUET = {
    "nulls": (pa.array([None, 1, 2, 3], pa.int64()), [np.nan, 1, 2, 3]),
    "decimals": (pa.array(["0.5", "1.5", "2.5", "3.5"]).cast(pa.decimal128(8, 2)), [0.5, 1.5, 2.5, 3.5]),
    "booleans": (pa.array([True, False, None, True]), [1, 0, np.nan, 1]),
    "a dictionary": (pa.array([0.5, 1.5, 0.5, 1.5]).dictionary_encode(), [0.5, 1.5, 0.5, 1.5]),
    "half precision": (pa.array(np.arange(4, dtype=np.float16)), [0, 1, 2, 3]),
    "whole numbers beyond 2^53": (pa.array([2**53 + 1, 2**60, 5, -(2**62)]), [2.0**53, 2.0**60, 5, -(2.0**62)]),
    "text that is numbers": (pa.array(["1", " 2.5", "?", "-1e3"], pa.large_string()), [1, 2.5, np.nan, -1000]),
    "views of text": (pa.array(["1", None, "3", "4"], pa.string_view()), [1, np.nan, 3, 4]),
    "lists": (pa.array([[1.0, 2.0]] * 4), "column x holds list<"),
    "lists of one length": (pa.array([[1.0, 2.0]] * 4, pa.list_(pa.float64(), 2)), "column x holds fixed_size_list<"),
    "structs": (pa.array([{"u": 1}] * 4), "column x holds struct<"),
    "maps": (pa.array([[("u", 1)]] * 4, pa.map_(pa.string(), pa.int64())), "column x holds map<"),
    "dates": (pa.array([0, None, 1, 2], pa.date32()), [0, np.nan, 1, 2]),
    "timestamps": (pa.array([0, 43_200, 86_400, None], pa.timestamp("s")), [0, 0.5, 1, np.nan]),
    "times": (pa.array(range(4), pa.time32("s")), "column x holds time32"),
    "durations": (pa.array(range(4), pa.duration("s")), "column x holds duration"),
    "bytes": (pa.array([b"u"] * 4), "column x holds binary"),
    "text": (pa.array(["u", "v", None, "1"]), "row 1, column x: 'u' is not a number"),
    "a dictionary of text": (pa.array(["1", "v", "1", "v"]).dictionary_encode(), "row 2, column x: 'v' is not a"),
    "nothing but nulls": (pa.nulls(4), "no client has a value of x"),
}


@pytest.mark.parametrize("kind", PARQUET)
def test_a_parquet_column_is_read_as_numbers_or_refused_by_name(kind: str, tmp_path: Path) -> None:
    column, expected = PARQUET[kind]
    parquet.write_table(pa.table({"x": column, "ill": [0, 1, 0, 1]}), tmp_path / "a.parquet")
    if isinstance(expected, str):
        message = find_refusal(tmp_path, missing="mean")
        assert expected in message
        return
    found = sort_rows(tmp_path, missing="mean")["a"][:, 0]
    np.testing.assert_array_equal(np.sort(found), np.sort(expected))


def test_a_duplicate_column_in_parquet_is_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array([1, 2]), pa.array([3, 4]), pa.array([0, 1])], names=["age", "age", "ill"])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert "a.parquet: the header names age twice (columns 1 and 2)" in find_refusal(tmp_path)


def test_a_federation_of_a_folder_knows_its_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(GOOD)
    found = load_file_federation(load_folder(tmp_path), 0)
    assert isinstance(found, FederationOfFiles)
    assert found.preprocessing is not None
    assert found.preprocessing.columns == ("age", "dose")


def test_seeds_change_the_validation_examples_but_not_the_test_set(tmp_path: Path) -> None:
    rows = pd.DataFrame({"age": range(40), "ill": [0, 1] * 20})
    rows.to_csv(tmp_path / "a.csv", index=False)
    settings = load_folder(tmp_path, validation=0.25, standardize=False)
    first, second = (load_federation(settings, seed) for seed in (0, 1))
    assert np.array_equal(first.test.x, second.test.x)
    one, other = (each.splits()["validation"].x for each in (first, second))
    assert not np.array_equal(np.sort(one[:, 0]), np.sort(other[:, 0]))


def test_a_wrong_name_is_told_once_with_a_name_like_it(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.csv").write_text(GOOD)
    text = find_refusal(tmp_path, label="il", features=["age", "dose"])
    assert text == f"{tmp_path}/a.csv and 2 more files: has no column il; it has age, dose, ill; did you mean ill?"


def test_a_relative_directory_is_told_with_what_it_is_relative_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_refusal(Path("nowhere")).startswith(
        f"nowhere: is not a directory below the working directory {tmp_path}"
    )
