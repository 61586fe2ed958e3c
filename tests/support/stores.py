"""MLflow stores on SQLite for tests. They are copies of one template, because creating the tables takes seconds."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import mlflow.store.db.utils
from sqlalchemy import Engine

CACHE = Path(__file__).parents[2] / ".pytest_cache"


def create_store(path: Path) -> str:
    """Creates an empty MLflow store in the file, unless it exists, and returns its URI."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_create_template(), path)
    return f"sqlite:///{path}"


def copy_tables_into_new_databases() -> None:
    """Fills each new SQLite database of this process from the template, whose tables are MLflow's own."""
    create_tables = mlflow.store.db.utils._initialize_tables
    if not isinstance(create_tables, partial):
        mlflow.store.db.utils._initialize_tables = partial(_copy_tables, create_tables)


def _copy_tables(create_tables: Callable[[Engine], None], engine: Engine) -> None:
    if engine.dialect.name != "sqlite" or not _find_template().exists():
        create_tables(engine)
        return
    with closing(sqlite3.connect(_find_template())) as template, engine.connect() as connection:
        template.backup(connection.connection.driver_connection)  # type: ignore[arg-type]


def _find_template() -> Path:
    return CACHE / f"mlflow-{version('mlflow')}.db"


@cache
def _create_template() -> Path:
    """Returns a file with MLflow's empty tables. It is kept for later test runs."""
    from fednar_ray.tracking.store import Store

    kept = _find_template()
    if not kept.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / "empty.db"
            Store(f"sqlite:///{made}").check()
            os.replace(made, kept)  # another worker may have created the same file by now
    return kept
