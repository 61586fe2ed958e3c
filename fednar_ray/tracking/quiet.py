"""Keeps the output of a run to what concerns the run."""

import logging
import os

import mlflow  # noqa: F401 - it configures its logger when it is imported


def quiet_libraries() -> None:
    """Silences what MLflow and Alembic log about themselves, except warnings."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
