"""Relative paths and addresses of stores become absolute when a file is loaded."""

from pathlib import Path

import pytest

from tests.support.experiment_files import SMALL, parse_experiment


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{cwd}/mlflow.db"),
        ("sqlite:///sub/../m.db", "sqlite:///{cwd}/m.db"),
        ("sqlite:////data/m.db", "sqlite:////data/m.db"),
        ("mlruns", "{cwd}/mlruns"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("databricks", "databricks"),
    ],
)
def test_a_relative_tracking_uri_becomes_absolute(
    uri: str, absolute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_experiment(SMALL, f"tracking.uri={uri}").experiment.tracking.uri == absolute.format(cwd=tmp_path)
