"""Separators, decimal signs and encodings of text files, compared with what pandas reads when it is told them."""

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from fednar_ray.config import read_data
from fednar_ray.config.tables import CsvSettings
from fednar_ray.core.errors import BadInput, DataError
from fednar_ray.core.fednar_table_schema import ColumnSchema, TableSchema
from fednar_ray.data.files import load_file_federation
from fednar_ray.data.sources.prediction_rows import read_rows
from fednar_ray.data.sources.text_files import read_text


def read(directory: Path, text: str, name: str = "a.csv", encoding: str = "utf-8", **written: Any) -> pd.DataFrame:
    """Reads a file as the folder source does, as a frame."""
    path = directory / name
    path.write_bytes(text.encode(encoding))
    return read_text(path, path.suffix, (), CsvSettings(**written))[0].to_pandas()


def find_refusal(directory: Path, text: str, **written: Any) -> str:
    with pytest.raises(DataError) as error:
        read(directory, text, **written)
    return str(error.value)


def write_number(value: float, decimal: str) -> str:
    return str(value).replace(".", decimal)


# ——— separator ———


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_each_separator_is_detected_whatever_the_extension_says(separator: str, name: str, tmp_path: Path) -> None:
    rows = [["dose", "note"], ["1", f'"a{separator}b, c"'], ["2", '"two\nlines ""quoted"" ; | ,"'], ["3", "plain"]]
    text = "\n".join(separator.join(row) for row in rows) + "\n"
    assert_frame_equal(read(tmp_path, text, name), pd.read_csv(StringIO(text), sep=separator), check_dtype=False)


def test_the_separator_of_the_extension_wins_if_it_fits(tmp_path: Path) -> None:
    text = "a;x,b;y\n1;2,3;4\n"
    assert list(read(tmp_path, text)) == ["a;x", "b;y"]
    assert list(read(tmp_path, text, separator=";")) == ["a", "x,b", "y"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a;b|c\n1;2|3\n", "';' and '|' would both separate its values"),
        ("a;b\n1;2\n3;4;5\n", "no separator gives all rows as many values"),
    ],
)
def test_an_unclear_separator_is_refused_and_may_be_set(text: str, why: str, tmp_path: Path) -> None:
    assert find_refusal(tmp_path, text) == (
        f"{tmp_path / 'a.csv'}: {why}; set data.csv.separator, or write it with commas"
    )
    if "|" in text:
        assert list(read(tmp_path, text, separator="|")) == ["a;b", "c"]
    else:
        assert "line 3 has 3 values, but the header has 2" in find_refusal(tmp_path, text, separator=";")


def test_a_ragged_file_with_commas_still_names_its_line(tmp_path: Path) -> None:
    assert "line 3 has 3 values, but the header has 2" in find_refusal(tmp_path, "a,b\n1,2\n3,4,5\n")


def test_a_table_of_one_column_keeps_its_separator(tmp_path: Path) -> None:
    assert read(tmp_path, "a\nx|y\nz\n")["a"].tolist() == ["x|y", "z"]


def test_a_wrong_separator_is_guessed_in_the_message(tmp_path: Path) -> None:
    text = "age;ill\n1,5;0\n"
    assert "the header has 1; is it separated by ';'? Set data.csv.separator" in find_refusal(
        tmp_path, text, separator=","
    )


# ——— decimal sign ———


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_decimal_commas_are_detected(separator: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(40, 2)).round(3)
    rows = [[write_number(a, ","), str(i), write_number(b, ","), "3,5 mg", "31.12.2020"] for i, (a, b) in
            enumerate(values)]  # fmt: skip
    rows[7][0], rows[9][2] = "NA", "?"
    text = "\n".join(separator.join(row) for row in [["a", "n", "b", "text", "day"], *rows])
    expected = pd.read_csv(StringIO(text), sep=separator, decimal=",", na_values=["?"])
    found = read(tmp_path, text)
    assert_frame_equal(found[["a", "n", "b"]], expected[["a", "n", "b"]], check_exact=True)
    assert found["day"].tolist() == expected["day"].tolist()


@pytest.mark.parametrize("cell", ["1.5", "-.25"])
def test_one_decimal_point_in_the_file_rules_commas_out(cell: str, tmp_path: Path) -> None:
    text = f"a;b\n1,5;{cell}\n2,5;1.0\n"
    assert read(tmp_path, text)["a"].tolist() == ["1,5", "2,5"]
    assert find_refusal(tmp_path, text, decimal=",") == (
        f"{tmp_path / 'a.csv'}, line 2, column b: has a decimal point, but numbers are written with a comma; correct "
        "it, or data.csv.decimal; if it is no number, set data.types: {b: category}"
    )


def test_quoted_decimal_commas_between_commas_are_read_if_they_are_set(tmp_path: Path) -> None:
    text = 'a,b\n"1,5",1\n"2,25",2\n'
    assert read(tmp_path, text)["a"].tolist() == ["1,5", "2,25"]
    assert read(tmp_path, text, decimal=",")["a"].tolist() == [1.5, 2.25]


def test_a_column_may_get_decimal_commas_after_a_megabyte(tmp_path: Path) -> None:
    lines = ["1;10"] * 300_000 + ["2;10,5"]
    assert read(tmp_path, "a;b\n" + "\n".join(lines))["b"].astype(float).sum() == 300_000 * 10 + 10.5


# ——— encoding ———


def test_a_given_encoding_overrides_the_detected_one(tmp_path: Path) -> None:
    text = "město;č\nPlzeň;1\n"
    assert list(read(tmp_path, text, encoding="cp1250")) != ["město", "č"]
    assert read(tmp_path, text, "a.csv", "cp1250") is not None
    path = tmp_path / "a.csv"
    found = read_text(path, ".csv", (), CsvSettings(encoding="windows-1250"))[0].to_pandas()
    assert_frame_equal(found, pd.read_csv(path, sep=";", encoding="cp1250"), check_dtype=False)


def test_text_in_another_encoding_than_the_given_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("Größe,b\n1,2\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"a\.csv: cannot be read as utf-8: .*save it as UTF-8, or set data\.csv\.enc"):
        read_text(tmp_path / "a.csv", ".csv", (), CsvSettings(encoding="utf8"))


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ({"encoding": "klingon"}, "is no encoding of text"),
        ({"encoding": "base64"}, "is no encoding of text"),
        ({"separator": ";;"}, "is no separator; write one character"),
        ({"separator": "."}, "is no separator; write one character"),
        ({"decimal": ";"}, "decimal"),
    ],
)
def test_settings_that_no_file_can_have_are_refused(written: dict[str, str], why: str) -> None:
    with pytest.raises((BadInput, ValueError), match=why):
        read_data({"source": "folder", "directory": "clients", "csv": written})


# ——— clients and rows to predict ———

EXCEL = "age;dose;ill\n40;1,5;0\n50;2,5;1\n60;0,5;0\n45;2,0;1\n55;1,0;0\n"


def test_clients_may_write_the_same_rows_differently(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(EXCEL, encoding="utf-8")
    (tmp_path / "b.csv").write_text(EXCEL.replace(",", ".").replace(";", ","), encoding="utf-16")
    (tmp_path / "c.tsv").write_text(EXCEL.replace(";", "\t"), encoding="utf-8")
    settings = read_data({"source": "folder", "directory": str(tmp_path), "label": "ill", "task": "binary"})
    federation = load_file_federation(settings, 0)
    digests = [federation.get_client_data(i).file.read() for i in range(3)]
    rows = [np.sort(np.concatenate([own.train_x, own.test_x]), axis=0).tolist() for own in digests]
    expected = pd.read_csv(StringIO(EXCEL), sep=";", decimal=",")[["age", "dose"]].to_numpy(float)
    assert rows == [np.sort(expected, axis=0).tolist()] * 3


def test_a_bad_cell_among_decimal_commas_is_named_as_it_is_written(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(EXCEL.replace("2,5", "ca. 2,5"), encoding="utf-8")
    settings = {"source": "folder", "directory": str(tmp_path), "label": "ill", "csv": {"decimal": ","}}
    with pytest.raises(DataError, match=r"a\.csv, line 3, column dose.*: 'ca\. 2,5' is not a number"):
        load_file_federation(read_data(settings), 0)


def test_rows_to_predict_may_have_decimal_commas(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(EXCEL, encoding="utf-8")
    columns = tuple(ColumnSchema(name=name, kind="number", levels=()) for name in ("dose", "age"))
    schema = TableSchema(columns=columns, task="binary", label="ill", class_names=None)
    expected = pd.read_csv(StringIO(EXCEL), sep=";", decimal=",")[["dose", "age"]].to_numpy(float)
    assert np.array_equal(read_rows(tmp_path / "new.csv", schema, imputes=False).inputs, expected)
