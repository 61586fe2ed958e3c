"""MLflow stores on SQLite for tests. They are copies of one template, because creating the tables takes seconds."""

import os
import shutil
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".pytest_cache"


def create_store(path: Path) -> str:
    """Creates an empty MLflow store in the file, unless it exists, and returns its URI."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_create_template(), path)
    return f"sqlite:///{path}"


@cache
def _create_template() -> Path:
    """Returns a file with MLflow's empty tables. It is kept for later test runs."""
    from fednar_ray.tracking.mlflow import Store

    kept = CACHE / f"mlflow-{version('mlflow')}.db"
    if not kept.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / "empty.db"
            Store(f"sqlite:///{made}").check()
            os.replace(made, kept)  # another worker may have created the same file by now
    return kept
