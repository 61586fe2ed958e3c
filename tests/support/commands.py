"""Runs ``fednar`` commands as a user types them, and reads the runs that they leave."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from fednar_ray.cli.main import main
from fednar_ray.core.reports import RoundReport
from tests.support.processes import FEDNAR, finish, start_fednar
from tests.support.servers import PATIENCE_SECONDS

TINY = [
    "federation.rounds=3",
    "federation.clients_per_round=3",
    "federation.local_steps=2",
    "data.partition.clients=5",
    "model.hidden=8",
]
SERIAL = [*TINY, "execution.placement=serial"]
REMOVED_VARIABLES = (
    "RAY_ADDRESS",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
    "COLUMNS",
    "FORCE_COLOR",
)


def build_environment(**more: str) -> dict[str, str]:
    return {**{key: value for key, value in os.environ.items() if key not in REMOVED_VARIABLES}, **more}


def type_fednar(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a new interpreter, as a user types it."""
    return _check_messages(
        subprocess.run(
            [FEDNAR, *arguments],
            cwd=cwd,
            env=build_environment(**env),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    )


def run_fednar(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in its own process, which is forked."""
    return _check_messages(finish(start_fednar(*arguments, cwd=cwd, env=build_environment(**env))))


def _check_messages(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    return done


def open_store(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def load_journal(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def hash_parameters(report: RoundReport) -> str:
    """Returns the SHA-256 of a round's parameters, as the summary of a run has it."""
    return hashlib.sha256(report.parameters.tobytes()).hexdigest()


def run_in_process(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Runs a command in this process and returns its exit code."""
    monkeypatch.setattr("sys.argv", ["fednar", *words])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
