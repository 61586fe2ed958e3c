"""Fixtures that give each search test its own working directory with an MLflow store."""

from pathlib import Path

import pytest

from fednar_ray.tracking.mlflow import Store
from tests.support.stores import create_store


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return create_store(tmp_path / "m.db")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store(create_store(tmp_path / "m.db"))
