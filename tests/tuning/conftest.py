"""Fixtures that give each search test its own working directory with an MLflow store.

MLflow is imported inside the fixture: imported before the tests are collected, it sets the root logger to ERROR.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.stores import create_store

if TYPE_CHECKING:
    from fednar_ray.tracking.store import Store


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return create_store(tmp_path / "m.db")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Store":
    from fednar_ray.tracking.store import Store

    monkeypatch.chdir(tmp_path)
    return Store(create_store(tmp_path / "m.db"))
