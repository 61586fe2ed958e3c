"""MLflow stores on SQLite for tests, with their tables made once for all: making them takes seconds."""

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
        shutil.copyfile(_migrated(), path)
    return f"sqlite:///{path}"


@cache
def _migrated() -> Path:
    """Returns a file with MLflow's tables and nothing in them, which later test runs find again."""
    from fednar_ray.tracking.mlflow import Store

    kept = CACHE / f"mlflow-{version('mlflow')}.db"
    if not kept.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / "empty.db"
            Store(f"sqlite:///{made}").check()
            os.replace(made, kept)  # another worker may have made it by now; both are alike
    return kept
