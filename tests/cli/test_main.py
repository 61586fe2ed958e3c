"""The command line as a user types it: one process per command, each in its own empty directory."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

import fednar_ray as fr
from fednar_ray.config import load_embedded
from tests.support.servers import PATIENCE_SECONDS, awaited

pytestmark = pytest.mark.filterwarnings(  # of SQLAlchemy about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)

FEDNAR = str(Path(sys.executable).parent / "fednar")
TINY = [
    "federation.rounds=3",
    "federation.clients_per_round=3",
    "federation.local_steps=2",
    "data.partition.clients=5",
    "model.hidden=8",
]
SERIAL = [*TINY, "execution.placement=serial"]
REMOVED = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "COLUMNS", "FORCE_COLOR")


def environment(**more: str) -> dict[str, str]:
    return {**{key: value for key, value in os.environ.items() if key not in REMOVED}, **more}


def fednar(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [FEDNAR, *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    return done


def store(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def journal(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("processes")
def test_run_prints_one_json_object(tmp_path: Path) -> None:
    done = fednar("run", "--json", *SERIAL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    directory = Path(summary["directory"])
    assert directory.parent == tmp_path / "runs"
    assert summary["rounds"] == 3
    assert summary["metrics"] == journal(directory)[-1]["metrics"]
    assert summary["tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert store(tmp_path).get_run(summary["run_id"]).info.status == "FINISHED"
    assert len(summary["parameters_sha256"]) == 64
    *_, last = fr.iter_rounds(load_embedded("digits", SERIAL).experiment)
    assert summary["metrics"]["test_accuracy"] == last.metrics["test_accuracy"]


@pytest.mark.usefixtures("processes")
def test_run_takes_a_file_and_prints_plain_lines(tmp_path: Path) -> None:
    settings = {
        "name": "mine",
        "data": {"partition": {"clients": 5}},
        "model": {"hidden": 8},
        "federation": {"rounds": 9, "local_steps": 1},
        "execution": {"placement": "serial"},
    }
    (tmp_path / "my.yaml").write_text(json.dumps({"experiment": settings}), encoding="utf-8")
    done = fednar("run", "my.yaml", "federation.rounds=3", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == ["round 1/3", "round 2/3", "round 3/3"]
    (directory,) = (tmp_path / "runs").iterdir()
    assert directory.name.startswith("mine-")
    assert f"files: {directory}" in lines
    assert f"browse: fednar ui --uri sqlite:///{tmp_path}/mlflow.db" in lines
    assert any("test accuracy" in line and f"{journal(directory)[-1]['metrics']['test_accuracy']:.4g}" in line
               for line in lines[3:])  # fmt: skip


BAD_CONFIG = {
    "a missing file": (["run", "missing.yaml"], "missing.yaml: cannot be read: No such file or directory"),
    "two files": (["run", "a.yaml", "b.yaml"], "only one FILE can be given, not a.yaml b.yaml"),
    "an unknown key": (["run", "regularizer.clip_bond=1"], "regularizer.clip_bond: 1: unknown key; did you mean clip_"),
    "several problems": (["run", "seed=x", "federation.rounds=0"], "federation.rounds: 0 should be"),
    "no YAML": (["run", "broken.yaml"], "broken.yaml, line 2, column 1: invalid YAML"),
    "no UTF-8": (["run", "latin.yaml"], "latin.yaml: cannot be read: it is not UTF-8 text"),
    "no data": (["run", "no_data.yaml"], "data: missing; set a data section"),
    "a wrong override": (["run", "seed=["], "seed: '[': the value is not YAML"),
    "a wrong comparison": (["compare", "compare.seeds=0"], "compare.seeds: 0 should be greater than or equal to 1"),
    "a file after --resume": (
        ["run", "--resume", "a.yaml"],
        "'--resume': a.yaml is a FILE, not a name; write it before --resume: fednar run a.yaml --resume",
    ),
    "an override after --resume": (
        ["compare", "--resume", "compare.seeds=5"],
        "compare.seeds=5 is an override, not a name; write it before --resume: fednar compare compare.seeds=5 --resume",
    ),
    "may change without --resume": (["run", "--may-change", "seed"], "--may-change can only be given with --resume"),
    "a search and a file": (["tune", "a.yaml", "--resume", "small"], "it takes no FILE and no key=value"),
    "an unknown option": (["run", "--jsn"], "No such option"),
    "an unknown command": (["rnu"], "No such command"),
    "no evaluation at all": (["run", "evaluation.every=0"], "evaluation.every: 0 should be greater than or equal to 1"),
    "true for a count": (["run", "evaluation.every=true"], "evaluation.every: True should be a number, not true or"),
    "a word for a count": (["run", "evaluation.every=x"], "evaluation.every: 'x' should be a valid integer"),
    "a word for a switch": (["run", "evaluation.federated=x"], "evaluation.federated: 'x' should be a valid boolean"),
    "a port that is none": (["ui", "--port", "99999"], "99999 is not in the range"),
}


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("case", BAD_CONFIG)
def test_bad_input_is_refused_before_anything_is_created(case: str, tmp_path: Path) -> None:
    arguments, words = BAD_CONFIG[case]
    (tmp_path / "broken.yaml").write_text("experiment:\n\tseed: 1\n", encoding="utf-8")
    (tmp_path / "latin.yaml").write_bytes("experiment: {name: é}".encode("latin-1"))
    (tmp_path / "no_data.yaml").write_text("experiment: {name: a}", encoding="utf-8")
    files = {path.name for path in tmp_path.iterdir()}
    done = fednar(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == files


BAD_PLACES = {
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
@pytest.mark.parametrize("case", BAD_PLACES)
def test_unreachable_and_too_small_places_are_refused_before_training(case: str, tmp_path: Path) -> None:
    arguments, words = BAD_PLACES[case]
    with tempfile.TemporaryDirectory(prefix="r") as ray:  # a short path: Ray puts sockets there
        done = fednar(*arguments, cwd=tmp_path, RAY_TMPDIR=ray)
        assert list(Path(ray).iterdir()) == []  # no Ray was started
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert not (tmp_path / "runs").exists()
    if (tmp_path / "mlflow.db").exists():
        experiments = store(tmp_path).search_experiments()
        assert store(tmp_path).search_runs([experiment.experiment_id for experiment in experiments]) == []


@pytest.mark.usefixtures("processes")
def test_a_diverging_run_names_round_and_reason(tmp_path: Path) -> None:
    done = fednar("run", "--json", *SERIAL, "algorithm.local_lr=1e30", "regularizer.name=none", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    reason = "0 of 3 client updates usable, at least 1 required; client 0 excluded: its loss or update is not finite"
    assert f"failed: round 0 aborted: {reason}" in done.stderr
    client = store(tmp_path)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert run.info.status == "FAILED"


@pytest.mark.usefixtures("processes")
def test_lines_of_rounds_that_are_not_evaluated_show_no_accuracy(tmp_path: Path) -> None:
    seldom = ["federation.rounds=9", "evaluation.every=4", "evaluation.federated=true"]
    done = fednar("run", *SERIAL, *seldom, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines, (directory,) = done.stdout.splitlines(), (tmp_path / "runs").iterdir()
    records = journal(directory)
    assert [record["round"] for record in records if "test_accuracy" in record["metrics"]] == [3, 7, 8]
    for t, (line, record) in enumerate(zip(lines[:9], records, strict=True)):
        parts = [f"round {t + 1}/9", f"training loss {record['metrics']['train_loss']:.3f}"]
        if t in (3, 7, 8):
            parts.insert(1, f"test accuracy {record['metrics']['test_accuracy']:.3f}")
        assert line == "  ".join(parts)
    summary = "\n".join(lines[9:])
    for name in ("test_accuracy", "client_accuracy_mean", "client_accuracy_worst_decile"):
        assert re.search(rf"{name.replace('_', ' ')} .* {records[-1]['metrics'][name]:.4g} ", summary), name
    assert lines[-1] == f"browse: fednar ui --uri sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.usefixtures("processes")
def test_compare_takes_its_metrics_from_the_evaluated_rounds(tmp_path: Path) -> None:
    seldom = ["federation.rounds=5", "evaluation.every=2"]  # rounds 2, 4 and 5, counted from 1
    compared = ["compare.seeds=1", "compare.weight_decays=[0.03]", "compare.final_rounds=3"]
    target = "compare.target_accuracy=0.001"
    done = fednar("compare", "--json", *SERIAL, *seldom, *compared, target, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout.lower()
    result, client = json.loads(done.stdout), store(tmp_path)
    for row in result["rows"]:
        (run,) = client.search_runs(
            [client.get_experiment_by_name("compare").experiment_id],
            f"params.`regularizer.name` = '{row['regularizer']}' and tags.`mlflow.parentRunId` = '{result['run_id']}'",
        )
        history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "test_accuracy")}
        assert sorted(history) == [1, 3, 4]
        assert row["final accuracy"] == f"{(history[3] + history[4]) / 2:.3f}"
        assert row["rounds to target"] == "2"  # nobody looked after the first
    headline = client.get_run(result["run_id"]).data.metrics
    assert set(headline) == {
        "final_accuracy/decoupled_0.03", "final_accuracy/fednar_0.03", "difference/fednar_0.03",
    }  # fmt: skip


@pytest.mark.usefixtures("processes")
def test_compare_pairs_its_runs(tmp_path: Path) -> None:
    settings = ["compare.seeds=2", "compare.weight_decays=[0.03]", "compare.final_rounds=2"]
    done = fednar("compare", "--json", *SERIAL, *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["regularizer"] for row in result["rows"]] == ["decoupled", "fednar"]
    assert result["rows"][0]["difference"] == "–"
    assert Path(result["chart"]).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert Path(result["chart"]).is_relative_to(tmp_path / "runs")

    client = store(tmp_path)
    everything = client.search_runs([client.get_experiment_by_name("compare").experiment_id])
    children = [run for run in everything if run.info.run_id != result["run_id"]]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {result["run_id"]}
    assert {run.info.status for run in everything} == {"FINISHED"}
    by_variant = {(run.data.params["regularizer.name"], int(run.data.params["seed"])): run for run in children}
    assert len(children) == 4
    assert set(by_variant) == {(name, seed) for name in ("decoupled", "fednar") for seed in (0, 1)}

    def sampled(name: str, seed: int) -> list[list[int]]:
        run_id = by_variant[name, seed].info.run_id
        return [line["clients"] for line in journal(tmp_path / "runs" / f"compare-{run_id[:8]}")]

    for seed in (0, 1):
        assert sampled("decoupled", seed) == sampled("fednar", seed)
    assert sampled("fednar", 0) != sampled("fednar", 1)
    for row in result["rows"]:
        final = [
            metric.value
            for seed in (0, 1)
            for metric in client.get_metric_history(by_variant[row["regularizer"], seed].info.run_id, "test_accuracy")
            if metric.step >= 1
        ]
        assert row["final accuracy"].startswith(f"{sum(final) / 4:.3f} ± ")


@pytest.mark.usefixtures("processes", "own_ray")
@pytest.mark.parametrize("interrupt", [os.kill, os.killpg])
def test_ctrl_c_ends_a_run_cleanly(interrupt: Callable[[int, int], None], tmp_path: Path) -> None:
    """Sent to the process alone, and to its group with Ray's processes, as a terminal does."""
    command = [FEDNAR, "run", *TINY, "federation.rounds=100000", "execution.placement=pooled"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            journals = awaited(lambda: [p for p in tmp_path.glob("runs/*/metrics.jsonl") if p.stat().st_size > 2000])
            children = psutil.Process(process.pid).children(recursive=True)
            names = [" ".join(child.cmdline()) for child in children]
            assert any("TrainingActor" in name for name in names), names
            interrupt(process.pid, signal.SIGINT)
            output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "interrupted; fednar runs shows what can be resumed" in output
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
    for child in alive:
        child.kill()
    assert not alive

    client = store(tmp_path)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert run.info.status == "KILLED"
    recorded = client.get_metric_history(run.info.run_id, "test_accuracy")
    lines = journal(journals[0].parent)
    assert sorted(metric.step for metric in recorded) == [line["round"] for line in lines] == [*range(len(lines))]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("case", ["serves", "taken"])
def test_ui(case: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        if case == "taken":
            taken.listen()
            done = fednar("ui", "--port", str(port), cwd=tmp_path)
            assert (done.returncode, done.stdout) == (2, "")
            assert f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port" in done.stderr
            return
    log = tmp_path / "log"
    with (
        log.open("w") as stream,
        subprocess.Popen(
            [FEDNAR, "ui", "--port", str(port)], cwd=tmp_path, env=environment(), stdout=stream, stderr=stream
        ) as process,
    ):

        def healthy() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    return bool(answer.status == 200)
            except urllib.error.URLError:
                return False

        try:
            awaited(healthy)
            children = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
    for child in alive:
        child.kill()
    assert not alive
    assert f"http://127.0.0.1:{port}" in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.usefixtures("processes")
def test_run_joins_a_ray_by_address(local_ray: str, tmp_path: Path) -> None:
    pooled = ["execution.placement=pooled", "execution.actors=2", "execution.vectorize=2"]
    shares = ["execution.cpus_per_actor=0.1", "execution.gpus_per_actor=0"]
    arguments = ["run", "--json", "--address", local_ray, *TINY, *pooled, *shares]
    done = fednar(*arguments, cwd=tmp_path, RAY_AUTH_MODE="token")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert store(tmp_path).get_run(summary["run_id"]).data.tags["fednar.actors"] == "2"
    serial = load_embedded("digits", [*SERIAL, "execution.vectorize=2"]).experiment
    *_, last = fr.iter_rounds(serial)
    assert summary["metrics"]["test_loss"] == last.metrics["test_loss"]


@pytest.mark.usefixtures("processes")
def test_a_gpu_that_torch_cannot_use_fails_the_run(local_ray: str, tmp_path: Path) -> None:
    """The suite's GPUs exist for Ray alone."""
    pooled = ["execution.placement=pooled", "execution.cpus_per_actor=0.1"]
    done = fednar("run", "--address", local_ray, *TINY, *pooled, cwd=tmp_path, RAY_AUTH_MODE="token")
    assert done.returncode == 1, done.stderr
    assert "failed: Ray assigned GPU" in done.stderr
    assert "execution.gpus_per_actor=0" in done.stderr


@pytest.mark.usefixtures("processes")
def test_doctor_finds_everything_in_order(local_ray: str, tmp_path: Path) -> None:
    done = fednar("doctor", "--json", "--address", local_ray, cwd=tmp_path, RAY_AUTH_MODE="token")
    findings = {finding["topic"]: finding for finding in json.loads(done.stdout)}
    wrong = [finding for finding in findings.values() if finding["verdict"] == "wrong"]
    assert (done.returncode, wrong) == (0, [])
    assert {"python", "fednar-ray", "ray", "torch", "mlflow", "machine", "disk", "tracking"} <= set(findings)
    assert findings["ray cluster"]["text"].startswith("connected: 4 CPUs, 2 GPUs, ")
    assert findings["actors"]["text"].startswith("2 fit (1 CPU and 1 GPU")
    assert findings["tracking"]["text"] == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.usefixtures("processes")
def test_doctor_says_what_is_wrong(tmp_path: Path) -> None:
    done = fednar("doctor", "--address", "127.0.0.1:1", "--uri", "http://127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 1
    wrong = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("wrong")]
    assert wrong == ["tracking", "ray"]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("command", [[], ["run"], ["compare"], ["ui"], ["doctor"]])
def test_help_is_there_and_needs_no_torch(command: list[str], tmp_path: Path) -> None:
    done = fednar(*command, "--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: fednar")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "fednar_ray.cli.main" in imported
    assert not imported & {"torch", "ray", "mlflow"}
