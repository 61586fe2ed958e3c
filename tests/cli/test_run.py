"""``fednar run`` in its own process and an empty directory. tests/end_to_end/test_wheel.py has a new interpreter."""

import json
import re
import tempfile
from pathlib import Path

import psutil
import pytest

import fednar_ray as fr
from fednar_ray.config import load_embedded
from tests.support.commands import SERIAL, TINY, load_journal, open_store, run_fednar
from tests.support.stores import create_store

pytestmark = pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)


STAGES = [
    "reading the settings …",
    "loading PyTorch and Ray …",
    "loading the data …",
    "trying the model on the data …",
    "opening MLflow at sqlite:////… …",
    "saving the model …",
    "drawing the page …",
    "sending the last records to MLflow …",
]


def check_stages(stderr: str) -> None:
    """Checks that a run in this process has said each of its stages, and has printed nothing else there."""
    assert [re.sub(r"sqlite:\S+", "sqlite:////…", line) for line in stderr.splitlines()] == STAGES


@pytest.mark.usefixtures("processes")
def test_run_prints_one_json_object(tmp_path: Path) -> None:
    done = run_fednar("run", "--json", *SERIAL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    directory = Path(summary["directory"])
    assert directory.parent == tmp_path / "runs"
    assert summary["rounds"] == 3
    assert summary["metrics"] == load_journal(directory)[-1]["metrics"]
    assert summary["tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert open_store(tmp_path).get_run(summary["run_id"]).info.status == "FINISHED"
    assert len(summary["parameters_sha256"]) == 64
    *_, last = fr.iter_rounds(load_embedded("digits", SERIAL).experiment)
    assert summary["metrics"]["test_accuracy"] == last.metrics["test_accuracy"]


@pytest.mark.usefixtures("processes")
def test_run_accepts_a_file_and_prints_plain_lines(tmp_path: Path) -> None:
    create_store(tmp_path / "mlflow.db")
    settings = {
        "name": "mine",
        "data": {"partition": {"clients": 5}},
        "model": {"hidden": 8},
        "federation": {"rounds": 9, "local_steps": 1},
        "execution": {"placement": "serial"},
    }
    (tmp_path / "my.yaml").write_text(json.dumps({"experiment": settings}), encoding="utf-8")
    done = run_fednar("run", "my.yaml", "federation.rounds=3", cwd=tmp_path)
    assert done.returncode == 0
    check_stages(done.stderr)
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["round 1/3", "round 2/3", "round 3/3"]
    (directory,) = (tmp_path / "runs").iterdir()
    assert directory.name.startswith("mine-")
    assert f"files: {directory}" in lines
    assert f"browse: fednar ui {directory.name}" in lines
    assert any("test accuracy" in line and f"{load_journal(directory)[-1]['metrics']['test_accuracy']:.4g}" in line
               for line in lines[3:])  # fmt: skip


BAD_ADDRESSES = {
    "no Ray": (["run", "--address", "127.0.0.1:1", *TINY], "no Ray answers at 127.0.0.1:1"),
    "no Ray to compare on": (["compare", "--address", "127.0.0.1:1", *TINY], "no Ray answers at 127.0.0.1:1"),
    "no MLflow": (["run", "tracking.uri=http://127.0.0.1:1", *SERIAL], "MLflow at http://127.0.0.1:1 does not answer"),
    "no MLflow to show": (["ui", "--uri", "http://127.0.0.1:1"], "MLflow at http://127.0.0.1:1 does not answer"),
    "no such store": (["run", "tracking.uri=gopher://a", *SERIAL], "gopher://a"),
    "no such folder": (["run", "tracking.uri=sqlite:////proc/a/m.db", *SERIAL], "sqlite:////proc/a/m.db"),
    "too many actors": (
        ["run", "data.partition.clients=500", "execution.placement=dedicated", "federation.clients_per_round=null"],
        f"500 actors of 1 CPU and 0.5 GB each do not fit: the cluster has {psutil.cpu_count()} CPUs",
    ),
}


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("case", BAD_ADDRESSES)
def test_unreachable_addresses_and_clusters_that_are_too_small_are_refused_before_training(
    case: str, tmp_path: Path
) -> None:
    arguments, words = BAD_ADDRESSES[case]
    with tempfile.TemporaryDirectory(prefix="r") as ray:  # Ray puts its sockets there, so the path is short
        done = run_fednar(*arguments, cwd=tmp_path, RAY_TMPDIR=ray)
        assert list(Path(ray).iterdir()) == []  # no Ray was started
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert not (tmp_path / "runs").exists()
    if (tmp_path / "mlflow.db").exists():
        experiments = open_store(tmp_path).search_experiments()
        assert open_store(tmp_path).search_runs([experiment.experiment_id for experiment in experiments]) == []


@pytest.mark.usefixtures("processes")
def test_a_diverging_run_reports_the_round_and_the_reason(tmp_path: Path) -> None:
    create_store(tmp_path / "mlflow.db")
    done = run_fednar("run", "--json", *SERIAL, "algorithm.local_lr=1e30", "regularizer.name=none", cwd=tmp_path)
    assert done.returncode == 1
    failure = json.loads(done.stdout)
    assert (failure["kind"], failure["exit_code"]) == ("failed", 1)
    reason = "0 of 3 client updates usable, at least 1 required; client 0 excluded: its loss or update is not finite"
    assert f"failed: round 0 aborted: {reason}" in done.stderr
    assert failure["error"].startswith(f"round 0 aborted: {reason}")
    client = open_store(tmp_path)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert run.info.status == "FAILED"


@pytest.mark.usefixtures("processes")
def test_rounds_without_an_evaluation_print_no_accuracy(tmp_path: Path) -> None:
    create_store(tmp_path / "mlflow.db")
    evaluation = ["federation.rounds=9", "evaluation.every=4", "evaluation.federated=true"]
    done = run_fednar("run", *SERIAL, *evaluation, cwd=tmp_path)
    assert done.returncode == 0
    check_stages(done.stderr)
    lines, (directory,) = done.stdout.splitlines(), (tmp_path / "runs").iterdir()
    records = load_journal(directory)
    assert [record["round"] for record in records if "test_accuracy" in record["metrics"]] == [3, 7, 8]
    for t, (line, record) in enumerate(zip(lines[:9], records, strict=True)):
        parts = [f"round {t + 1}/9", f"training loss {record['metrics']['train_loss']:.3f}"]
        if t in (3, 7, 8):
            parts.insert(1, f"test accuracy {record['metrics']['test_accuracy']:.3f}")
        assert line == "  ".join(parts)
    summary = "\n".join(lines[9:])
    for name in ("test_accuracy", "client_accuracy_mean", "client_accuracy_worst_decile"):
        assert re.search(rf"{name.replace('_', ' ')} +{records[-1]['metrics'][name]:.4g}\n", summary), name
    assert lines[-1] == f"browse: fednar ui {directory.name}"


@pytest.mark.usefixtures("processes")
def test_run_joins_the_ray_cluster_at_an_address(local_ray: str, tmp_path: Path) -> None:
    create_store(tmp_path / "mlflow.db")
    pooled = ["execution.placement=pooled", "execution.actors=2", "execution.vectorize=2"]
    shares = ["execution.cpus_per_actor=0.1", "execution.gpus_per_actor=0"]
    arguments = ["run", "--json", "--address", local_ray, *TINY, *pooled, *shares]
    done = run_fednar(*arguments, cwd=tmp_path, RAY_AUTH_MODE="token")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert open_store(tmp_path).get_run(summary["run_id"]).data.tags["fednar.actors"] == "2"
    serial = load_embedded("digits", [*SERIAL, "execution.vectorize=2"]).experiment
    *_, last = fr.iter_rounds(serial)
    assert summary["metrics"]["test_loss"] == last.metrics["test_loss"]


@pytest.mark.usefixtures("processes")
def test_a_gpu_that_torch_cannot_use_fails_the_run(local_ray: str, tmp_path: Path) -> None:
    """Only Ray knows the suite's GPUs; they are logical."""
    create_store(tmp_path / "mlflow.db")
    pooled = ["execution.placement=pooled", "execution.cpus_per_actor=0.1"]
    done = run_fednar("run", "--address", local_ray, *TINY, *pooled, cwd=tmp_path, RAY_AUTH_MODE="token")
    assert done.returncode == 1, done.stderr
    assert "failed: Ray assigned GPU" in done.stderr
    assert "execution.gpus_per_actor=0" in done.stderr
