"""``fednar init`` writes a commented experiment file for the user's tables, and the file runs as it is."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner, Result

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.config.loading import load_document
from fednar_ray.experiments.prepare import load_experiment_data

QUICK = ("execution.placement=serial", "federation.rounds=2")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*words: str) -> Result:
    return CliRunner().invoke(cli, ["init", *words])


def draw(rows: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"age": rng.integers(20, 90, size=rows), "dose": rng.normal(3, 1, size=rows).round(3)})
    frame["outcome"] = (frame["age"] + 20 * frame["dose"] > 115).astype(int)
    return frame


def write_folder(**changes: pd.DataFrame) -> None:
    Path("hospitals").mkdir()
    frames = {name: draw(40, seed) for seed, name in enumerate(("north", "south", "west"))}
    for name, frame in {**frames, **changes}.items():
        frame.to_csv(f"hospitals/{name}.csv", index=False)


def train(file: str) -> dict[str, float]:
    """Trains the file's experiment for two rounds and returns the last metrics."""
    (*_, report) = fr.iter_rounds(fr.load(file, QUICK))
    return dict(report.metrics)


def read_settings(file: str) -> dict[str, dict[str, object]]:
    return dict(yaml.safe_load(Path(file).read_text())["experiment"])


def test_a_folder_of_tables_gets_a_file_that_runs() -> None:
    write_folder()
    done = init("hospitals")
    assert done.exit_code == 0, done.output
    for text in (
        "3: north (40 rows), south (40 rows), west (40 rows)",
        "outcome (by its name)",
        "binary (two values)",
        "2 numbers: age, dose",
        "fednar run hospitals.yaml",
    ):
        assert text in done.output
    data = read_settings("hospitals.yaml")["data"]
    assert (data["label"], data["task"], data["features"]) == ("outcome", "binary", ["age", "dose"])
    assert "test_accuracy" in train("hospitals.yaml")


def test_every_key_of_the_file_has_a_comment_with_its_values() -> None:
    write_folder()
    init("hospitals")
    lines = Path("hospitals.yaml").read_text().splitlines()
    for before, line in pairwise(lines):
        if not line.lstrip().startswith("#") and not line.endswith(":") and line:
            assert before.lstrip().startswith("#"), line
    assert any("number > 0; default: 10.0" in line for line in lines)
    text = " ".join(line.strip().removeprefix("# ") for line in lines)
    assert "The preset: which federated algorithm trains. Each has its own keys. fedavg: FedAvg (McMahan" in text
    assert "Where the examples come from. Each source has its own keys. folder: " in text


def test_missing_values_identifiers_and_columns_of_some_files_are_handled() -> None:
    north = draw(40).astype({"dose": float})
    north.loc[::5, "dose"] = np.nan
    north["patient"], north["only_here"], north["same"] = [f"p{i}" for i in range(40)], 1.0, 7
    south = draw(40, 1).assign(patient=[f"q{i}" for i in range(40)], same=7)
    west = draw(40, 2).assign(patient=[f"r{i}" for i in range(40)], same=7)
    write_folder(north=north, south=south, west=west)
    shown = init("hospitals").output
    assert "missing   dose 8; data.missing: mean" in shown
    assert "patient: differs in every row" in shown
    assert "same: is constant" in shown
    assert "only_here: only north has it" in shown
    assert np.isfinite(train("hospitals.yaml")["train_loss"])


def test_rows_without_a_label_are_dropped() -> None:
    north = draw(40).astype({"outcome": float})
    north.loc[3, "outcome"] = np.nan
    write_folder(north=north)
    assert "data.missing: drop" in init("hospitals").output
    train("hospitals.yaml")


def test_a_column_that_is_a_number_in_one_file_and_text_in_another_is_left_out() -> None:
    write_folder(south=draw(40, 1).assign(dose=["2.5"] * 39 + ["two"]))
    assert "dose: is a number in north, west and text in south ('two')" in init("hospitals").output
    assert read_settings("hospitals.yaml")["data"]["features"] == ["age"]
    train("hospitals.yaml")
    refused = init("hospitals", "--label", "dose", "--force")
    assert "dose: the label is a number in north, west and text in south" in str(refused.exception)


def test_kinds_are_those_that_training_reads() -> None:
    """Booleans, dates with dots and texts among numbers are read by the readers of the sources."""
    frames = {}
    for seed, name in enumerate(("north", "south", "west")):
        frame = draw(40, seed).assign(
            smokes=["yes", "no"] * 20, seen=[f"{1 + i % 28}.01.2024" for i in range(40)], code=["1", "2", "3", "x"] * 10
        )
        frames[name] = frame.assign(outcome=frame["outcome"].map({0: "no", 1: "yes"}))
    write_folder(**frames)
    shown = init("hospitals").output
    assert "1 true or false: smokes" in shown
    assert "1 date: seen" in shown
    assert "code: has text among its numbers in north, south, west ('x')" in shown
    assert "outcome (by its name): no (51%), yes (49%)" in shown  # texts of a label are classes, even yes and no
    federation = load_experiment_data(fr.load("hospitals.yaml", QUICK))
    assert {column.name: column.kind for column in federation.columns} == {
        "age": "number", "dose": "number", "smokes": "boolean", "seen": "date"
    }  # fmt: skip
    assert "test_accuracy" in train("hospitals.yaml")


def test_how_text_files_are_written_is_detected_or_given() -> None:
    Path("hospitals").mkdir()
    for seed, name in enumerate(("north", "south", "west")):
        draw(40, seed).to_csv(f"hospitals/{name}.csv", index=False, sep=";", decimal=",")
    assert "2 numbers: age, dose" in init("hospitals").output
    assert "csv" not in read_settings("hospitals.yaml")["data"]
    given = init("hospitals", "--csv", "separator=;", "--csv", "decimal=,", "-o", "given.yaml")
    assert "2 numbers: age, dose" in given.output
    assert read_settings("given.yaml")["data"]["csv"] == {"separator": ";", "decimal": ","}
    assert train("given.yaml")["test_loss"] == train("hospitals.yaml")["test_loss"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("separator", "--csv: 'separator': should be KEY=VALUE, such as separator=';'"),
        ("decimal=x", "--csv decimal: 'x' should be '.' or ','"),
        ("separater=;", "--csv separater: ';': unknown key; did you mean separator?"),
    ],
)
def test_a_wrong_way_of_writing_is_refused(given: str, expected: str) -> None:
    write_folder()
    assert str(init("hospitals", "--csv", given).exception).startswith(expected)


def test_numbers_with_decimal_commas_beside_decimal_points_are_left_out() -> None:
    frame = draw(40).assign(weight=["1,5", "2,5"] * 20)
    write_folder(north=frame, south=frame, west=frame)
    shown = init("hospitals").output
    assert (
        "weight: has numbers with a decimal comma in north, south, west ('1,5'), where others have a decimal" in shown
    )
    assert read_settings("hospitals.yaml")["data"]["features"] == ["age", "dose"]


def test_names_that_yaml_would_misread_and_long_lists_are_written_safely() -> None:
    names = ["yes", "1e3", "a: b", "#c", "x, y", 'quo"te', "[d]", "null", *(f"measurement {i}" for i in range(20))]
    frames = {}
    for seed, name in enumerate(("north", "south", "west")):
        rng = np.random.default_rng(seed)
        frames[name] = pd.DataFrame(rng.normal(size=(20, len(names))), columns=names).assign(y=np.arange(20) % 2)
    write_folder(**frames)
    assert init("hospitals").exit_code == 0
    assert max(map(len, Path("hospitals.yaml").read_text().splitlines())) <= 120
    assert fr.load("hospitals.yaml").data.features == tuple(names)
    train("hospitals.yaml")


def test_categories_dates_and_text_labels_train_as_they_are() -> None:
    frames = {}
    for seed, name in enumerate(("north", "south", "west")):
        rng = np.random.default_rng(seed)
        frame = draw(40, seed).assign(
            sex=rng.choice(["f", "m"], 40), seen=[f"2024-01-{1 + i % 28:02}" for i in range(40)]
        )
        frames[name] = frame.assign(outcome=frame["outcome"].map({0: "healthy", 1: "ill"}))
    write_folder(**frames)
    shown = init("hospitals").output
    assert "1 category: sex" in shown
    assert "1 date: seen" in shown
    assert read_settings("hospitals.yaml")["data"]["task"] == "binary"
    assert "test_accuracy" in train("hospitals.yaml")


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (lambda rng: rng.integers(2, size=40), "binary"),
        (lambda rng: np.arange(40) % 4, "classification"),
        (lambda rng: rng.normal(size=40).round(3), "regression"),
    ],
)
def test_the_task_follows_from_the_label(labels: object, task: str) -> None:
    assert callable(labels)
    frames = {}
    for seed, name in enumerate(("north", "south", "west")):
        frames[name] = draw(40).drop(columns="outcome").assign(anything=labels(np.random.default_rng(seed)))
    write_folder(**frames)
    assert "anything (the last column)" in init("hospitals").output
    assert read_settings("hospitals.yaml")["data"]["task"] == task
    train("hospitals.yaml")


def test_what_is_given_is_taken() -> None:
    write_folder()
    assert init("hospitals", "--label", "dose", "--task", "regression", "-o", "doses.yaml").exit_code == 0
    data = read_settings("doses.yaml")["data"]
    assert (data["label"], data["task"], data["features"]) == ("dose", "regression", ["age", "outcome"])
    train("doses.yaml")


def write_table() -> None:
    frames = [draw(40, seed).assign(hospital=name) for seed, name in enumerate(("north", "south", "west"))]
    pd.concat(frames).to_csv("patients.csv", index=False)


def test_one_table_with_a_column_of_groups_gets_a_file_that_runs() -> None:
    write_table()
    shown = init("patients.csv").output
    assert "hospital" in shown
    data = read_settings("patients.yaml")["data"]
    assert (data["source"], data["path"], data["groups"]) == ("table", "patients.csv", "hospital")
    assert data["features"] == ["age", "dose"]
    assert "test_accuracy" in train("patients.yaml")
    assert fr.load("patients.yaml").data.partition.kind == "natural"


def test_one_table_without_groups_is_divided_at_random() -> None:
    draw(200).to_csv("patients.csv", index=False)
    assert init("patients.csv").exit_code == 0
    data = read_settings("patients.yaml")["data"]
    assert "groups" not in data
    assert data["partition"] == {"kind": "iid", "clients": 4}
    assert "test_accuracy" in train("patients.yaml")


def test_the_groups_of_one_table_can_be_given_and_the_table_found_in_its_folder() -> None:
    Path("study").mkdir()
    write_table()
    pd.read_csv("patients.csv").rename(columns={"hospital": "doctor"}).to_csv("study/patients.csv", index=False)
    assert init("study", "--groups", "doctor", "-o", "mine.yaml").exit_code == 0
    assert read_settings("mine.yaml")["data"]["groups"] == "doctor"
    assert "test_accuracy" in train("mine.yaml")


def test_without_tables_the_file_trains_on_digits() -> None:
    shown = init().output
    assert "no tables here" in shown
    assert load_document("digits.yaml").experiment.model_dump() == fr.load("digits.yaml").model_dump()
    assert "test_accuracy" in train("digits.yaml")


def test_an_existing_file_is_overwritten_only_with_force() -> None:
    write_folder()
    Path("hospitals.yaml").write_text("mine")
    refused = init("hospitals")
    assert "hospitals.yaml exists; overwrite it with --force" in str(refused.exception)
    assert Path("hospitals.yaml").read_text() == "mine"
    assert init("hospitals", "--force").exit_code == 0
    train("hospitals.yaml")


def write_bad(case: str) -> None:
    Path("data").mkdir()
    north, south = Path("data/north.csv"), Path("data/south.csv")
    texts = {
        "an empty folder": {},
        "a folder with other files": {Path("data/report.docx"): "x"},
        "a folder with a spreadsheet": {Path("data/rows.xlsx"): "x"},
        "two spellings": {north: "a,y\n1,Ill\n2,Ill\n3,well\n", south: "a,y\n1,ill\n2,well\n3,well\n"},
        "tables without rows": {north: "a,b\n", south: "a,b\n"},
        "tables with other columns": {north: "a,b\n1,2\n", south: "c,d\n1,2\n"},
        "a constant label": {north: "a,y\n1,2\n3,2\n"},
        "one column": {north: "a\n1\n", south: "a\n1\n"},
        "an unknown label": {north: "a,y\n1,0\n3,1\n"},
        "groups of a folder": {north: "a,y\n1,0\n3,1\n", south: "a,y\n1,0\n3,1\n"},
    }
    for path, text in texts.get(case, {}).items():
        path.write_text(text)


@pytest.mark.parametrize(
    ("case", "words", "expected"),
    [
        ("an empty folder", ["data"], ["data: has no .csv", "it is empty", "one table per client"]),
        ("a folder with other files", ["data"], ["it holds report.docx"]),
        ("a folder with a spreadsheet", ["data"], ["it holds rows.xlsx", "Export spreadsheets as CSV"]),
        (
            "two spellings",
            ["data", "--task", "binary"],
            ["y has 3 values", "'ill' (1 row of south)", "write them alike"],
        ),
        ("a missing path", ["nothing"], ["nothing: there is no such file or directory"]),
        ("tables without rows", ["data"], ["north.csv: has a header and no rows", "south.csv: has a header"]),
        ("tables with other columns", ["data"], ["share no columns", "north has a, b", "south has c, d"]),
        ("a constant label", ["data"], ["y: the label has only the value 2", "--label"]),
        ("one column", ["data"], ["north.csv: has only one column, a"]),
        ("an unknown label", ["data", "--label", "yy"], ["--label: 'yy': there is no such column; did you mean y?"]),
        ("groups of a folder", ["data", "--groups", "a"], ["each file in the folder is a client"]),
    ],
)
def test_what_cannot_be_used_is_said_with_the_remedy(case: str, words: list[str], expected: list[str]) -> None:
    write_bad(case)
    error = str(init(*words).exception)
    assert [text for text in expected if text not in error] == [], error
    assert not list(Path().glob("*.yaml"))


def test_spellings_gaps_and_rare_labels_are_pointed_out() -> None:
    north = draw(100).astype({"dose": float}).assign(outcome=["ill"] * 4 + ["well"] * 96)
    north.loc[::3, "dose"] = np.nan
    write_folder(
        north=north,
        south=draw(100, 1).assign(outcome=["ill"] * 4 + ["well"] * 96, dose=1.5),
        west=draw(100, 2).assign(outcome="well", ward=["A", "a"] * 50, dose=2.5),
    )
    for name in ("north", "south"):
        pd.read_csv(f"hospitals/{name}.csv").assign(ward="A").to_csv(f"hospitals/{name}.csv", index=False)
    shown = init("hospitals", "--label", "outcome").output
    assert (
        "warning   column ward: 'A' (100 rows of north, 100 rows of south, 50 rows of west) and 'a' (50 rows" in shown
    )
    assert "fednar suggest " in shown
    text = " ".join(Path("hospitals.yaml").read_text().split("#"))
    assert "Only 2.7% of the labels are ill." in " ".join(text.split())
    assert "Many values are missing of" not in text  # a tenth of all rows
    assert read_settings("hospitals.yaml")["model"]["class_weights"] is None
    train("hospitals.yaml")
