"""The columns that ``fednar data inspect`` shows, compared with what pandas computes from the training rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from fednar_ray.cli.main import cli
from fednar_ray.config import read_data
from fednar_ray.data.files import load_file_federation
from fednar_ray.data.sources.column_summaries import ColumnSummary
from fednar_ray.data.sources.folder import list_client_files
from fednar_ray.data.summary import LISTED_COLUMNS, format_summary, summarize

WARDS = [f"ward {i}" for i in range(7)]


def build_table(rows: int = 200) -> pd.DataFrame:
    """Builds a table in which each ``id`` occurs once."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "id": np.arange(rows),
            "dose": rng.normal(100, 15, rows).round(2),
            "ward": rng.choice(WARDS, rows),
            "smoker": rng.choice(["yes", "no"], rows),
            "seen": pd.Timestamp("2020-01-31") + pd.to_timedelta(rng.integers(0, 300, rows), "D"),
            "constant": 0.1,
            "ill": rng.choice(["healthy", "sick"], rows, p=[0.7, 0.3]),
        }
    )
    table.loc[::9, ["dose", "ward"]] = None
    return table


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Writes two clients' files of different sizes, and an experiment. Returns the training rows of both."""
    table = build_table()
    (tmp_path / "clients").mkdir()
    for name, part in (("north", table[:50]), ("south", table[50:])):
        part.to_csv(tmp_path / "clients" / f"{name}.csv", index=False)
    monkeypatch.chdir(tmp_path)
    data = {"source": "folder", "directory": "clients", "label": "ill", "task": "binary", "missing": "mean"}
    write_experiment(data)
    trained = np.concatenate([file.read().train_x[:, 0] for file in list_client_files(read_data(data))])
    assert 0 < len(trained) < len(table)
    return table[table["id"].isin(trained)]


def write_experiment(data: dict[str, Any], **sections: Any) -> None:
    experiment = {"name": "s", "data": data, "model": {"name": "logistic"}, **sections}
    Path("c.yaml").write_text(json.dumps({"experiment": experiment}))


def inspect(*options: str) -> str:
    found = CliRunner().invoke(cli, ["data", "inspect", "c.yaml", *options], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def check_columns(columns: list[dict[str, Any]], trained: pd.DataFrame) -> None:
    """Checks that the columns of the JSON are those of the training rows."""
    found = {column.pop("name"): column for column in columns}
    assert list(found) == ["id", "dose", "ward", "smoker", "seen", "constant"]
    numbers = trained.assign(
        smoker=(trained["smoker"] == "yes").astype(float),
        seen=(trained["seen"] - pd.Timestamp(0)) / pd.Timedelta(days=1),
    )
    for name, kind in {"id": "number", "dose": "number", "smoker": "boolean", "seen": "date"}.items():
        assert found[name] == {
            "kind": kind,
            "levels": None,
            "mean": pytest.approx(numbers[name].mean(), rel=1e-12),
            "std": pytest.approx(numbers[name].std(ddof=0), rel=1e-12),
            "missing": numbers[name].isna().sum(),
        }
    assert (found["constant"]["mean"], found["constant"]["std"]) == (0.1, 0.0)
    levels = sorted(trained["ward"].dropna().unique())
    missing = trained["ward"].isna().sum()
    assert found["ward"] == {"kind": "category", "levels": levels, "mean": None, "std": None, "missing": missing}
    assert missing > 0


def test_the_columns_and_classes_of_tables_are_those_of_pandas(clients: pd.DataFrame) -> None:
    found = json.loads(inspect("--json"))
    check_columns(found["columns"], clients)
    shares = clients["ill"].value_counts(normalize=True).sort_index()
    assert found["class_names"] == shares.index.tolist()
    assert list(found["classes"].values()) == pytest.approx(shares.tolist())


def test_the_columns_are_shown_one_per_line(clients: pd.DataFrame) -> None:
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in inspect().splitlines()}
    dose, seen, gaps = clients["dose"], clients["seen"], clients["ward"].isna().sum()
    assert lines["dose"] == (
        f"number, mean {dose.mean():.4g}, standard deviation {dose.std(ddof=0):.4g}, {gaps} missing"
    )
    assert lines["ward"] == f"category, 7 levels: {', '.join(WARDS[:5])} and 2 more, {gaps} missing"
    assert lines["smoker"] == f"boolean, {(clients['smoker'] == 'yes').mean():.1%} true"
    spread = (seen - pd.Timestamp(0)).dt.days.std(ddof=0)
    assert lines["seen"] == f"date, mean {seen.mean().date()}, standard deviation {spread:.4g} days"
    sick = (clients["ill"] == "sick").mean()
    assert lines["classes"] == f"2: healthy {1 - sick:.1%}, sick {sick:.1%}"


def test_silos_show_the_same_columns(clients: pd.DataFrame) -> None:
    silos = {name: {"data": str(Path(f"clients/{name}.csv").resolve())} for name in ("north", "south")}
    data = {"source": "folder", "label": "ill", "task": "binary", "missing": "mean"}
    write_experiment(data, execution={"placement": "serial", "silos": silos})
    check_columns(json.loads(inspect("--json"))["columns"], clients)


def test_a_column_without_values_has_no_mean(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("x,y,ill\n" + "1,,0\n2,,1\n" * 5)
    settings = {"source": "folder", "directory": str(tmp_path), "label": "ill", "missing": "drop"}
    settings |= {"features": ["x"]}
    (column,) = summarize(load_file_federation(read_data(settings), 0)).columns
    assert column.describe().startswith("number, mean 1.5, standard deviation 0.5")
    empty = ColumnSummary(name="y", kind="number", levels=None, mean=None, std=None, missing=16)
    assert empty.describe() == "number, without values, 16 missing"


def test_only_the_first_of_many_columns_are_shown(tmp_path: Path) -> None:
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(20, LISTED_COLUMNS + 3))).add_prefix("x")
    for name in ("a", "b"):
        table.assign(y=[0, 1] * 10).to_csv(tmp_path / f"{name}.csv", index=False)
    found = summarize(load_file_federation(read_data({"source": "folder", "directory": str(tmp_path)}), 0))
    assert len(found.columns) == LISTED_COLUMNS + 3
    shown = dict(format_summary(found))
    assert f"  x{LISTED_COLUMNS - 1}" in shown
    assert f"  x{LISTED_COLUMNS}" not in shown
    assert shown["  …"] == "3 more columns; --json shows all"


def test_other_inputs_have_no_columns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", x=rng.normal(size=(20, 3)), y=rng.integers(2, size=20))
    found = summarize(load_file_federation(read_data({"source": "folder", "directory": str(tmp_path)}), 0))
    assert (found.columns, found.class_names) == ((), None)
