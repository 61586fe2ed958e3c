"""``fednar doctor`` in its own process and an empty directory. One test types it into a new interpreter."""

import json
from pathlib import Path

import pytest

from tests.support.commands import run_fednar, type_fednar

pytestmark = pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)


@pytest.mark.usefixtures("processes")
def test_doctor_reports_no_problem_if_there_is_none(local_ray: str, tmp_path: Path) -> None:
    done = run_fednar("doctor", "--json", "--address", local_ray, cwd=tmp_path, RAY_AUTH_MODE="token")
    findings = {finding["topic"]: finding for finding in json.loads(done.stdout)}
    wrong = [finding for finding in findings.values() if finding["verdict"] == "wrong"]
    assert (done.returncode, wrong) == (0, [])
    assert {"python", "fednar-ray", "ray", "torch", "mlflow", "machine", "disk", "tracking"} <= set(findings)
    assert findings["ray cluster"]["text"].startswith("connected: 4 CPUs, 2 GPUs, ")
    assert findings["actors"]["text"].startswith("2 fit (1 CPU and 1 GPU")
    assert findings["tracking"]["text"] == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.usefixtures("processes")
def test_doctor_lists_problems(tmp_path: Path) -> None:
    done = type_fednar("doctor", "--address", "127.0.0.1:1", "--uri", "http://127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 1
    wrong = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("wrong")]
    assert wrong == ["tracking", "ray"]
