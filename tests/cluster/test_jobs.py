"""Commands as Ray jobs: what is sent, what is refused, and jobs on a real cluster with a real MLflow server."""

import json
import os
import secrets
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from mlflow import MlflowClient

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.cluster import packing
from fednar_ray.cluster.addresses import JOB_VARIABLE, check_results_outlive_job, find_lost_results
from fednar_ray.cluster.packing import collect_package
from fednar_ray.config import Document, load_document
from fednar_ray.core.errors import BadInput, ConfigError, TrackingUnavailable
from fednar_ray.tracking.store import Store
from tests.support.cluster_nodes import HEAD, ROOT, SECOND, THIRD, Cluster, build_clean_environment, run_cluster
from tests.support.commands import hash_parameters
from tests.support.forked_workers import get_executable
from tests.support.mlflow_server import Server
from tests.support.processes import ForkedProcess, finish, run_command_of_ray, start_fednar
from tests.support.servers import PATIENCE_SECONDS, find_postgresql, run_postgresql, wait_for

pytestmark = pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)

NETWORK = """
import time
from pathlib import Path

import ray
import torch


class Paced(torch.nn.Module):
    # In an actor it writes a file that names its node. While the file "hold" exists, it waits until the second node
    # trains too, then stops on that node after more than a round, and from then on everywhere.

    steps = 0

    def __init__(self, folder, second):
        super().__init__()
        torch.manual_seed(0)
        self.folder, self.second = folder, second
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Linear(8, 10))

    def forward(self, x):
        if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
            self.pace(Path(self.folder), ray.util.get_node_ip_address())
        return self.layers(x)

    def pace(self, folder, node):
        (folder / f"on-{node}").touch()
        Paced.steps += 1
        held = folder / "held"
        if node == self.second and Paced.steps > 16 and (folder / "hold").exists():
            held.touch()
        while (folder / "hold").exists() and (held.exists() or not (folder / f"on-{self.second}").exists()):
            time.sleep(0.05)


def network(folder, second):
    return Paced(folder, second)
"""
ROUNDS = 8


def build_experiment(folder: Path) -> dict[str, Any]:
    """Returns an experiment with two actors, which communicate with the test through files in ``folder``."""
    return {
        "name": "paced",
        "data": {"partition": {"clients": 6}},
        "model": {"function": "networks.network", "arguments": {"folder": str(folder), "second": SECOND}},
        "federation": {"rounds": ROUNDS, "local_steps": 2},
        "algorithm": {"name": "scaffold"},
        "execution": {"placement": "pooled", "actors": 2, "vectorize": 1},
    }


def write_project(folder: Path, settings: dict[str, Any], name: str = "experiment.yaml") -> Path:
    """Writes a directory as users have it, with the experiment and its code."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"experiment": settings}))
    (folder / "networks.py").write_text(NETWORK)
    return folder


# ---- what is sent with a job


def test_results_data_environments_and_hidden_files_are_not_sent(tmp_path: Path) -> None:
    stays = [
        "runs/held-1/metrics.jsonl", "searches/a/search.json", "mlruns/1/meta.yaml", "mlflow.db", "cifar.npz", "a/b.pt",
        ".git/config", ".env", ".ssh/id", "venv/pyvenv.cfg", "mine/pyvenv.cfg", "mine/lib.py", "a/__pycache__/b.pyc",
        "data/images/1.png", "old/notes.txt",
    ]  # fmt: skip
    goes = ["experiment.yaml", "networks.py", "a/b.py", "a/words.json", "datasets/__init__.py", "trace.csv"]
    for name in (*stays, *goes):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    package = collect_package(tmp_path, needed=[Path("a/b.pt")], exclude=["old"])
    assert sorted(map(str, package.files)) == sorted([*goes, "a/b.pt"])
    assert package.size_bytes == 4 * len(package.files)
    package.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy" / "a" / "words.json").read_text() == "text"


def test_a_package_that_is_too_large_is_refused_with_its_largest_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "LIMIT_BYTES", 3_000_000)
    (tmp_path / "films").mkdir()
    for name in ("films/a.bin", "films/b.bin", "c.bin"):
        (tmp_path / name).write_bytes(bytes(1_500_000))
    with pytest.raises(BadInput, match=r"more than 3 MB .* films \(3 MB\).*--exclude NAME"):
        collect_package(tmp_path, needed=[])
    assert collect_package(tmp_path, needed=[], exclude=["films"]).size_bytes == 1_500_000


# ---- what is refused


def build_document(folder: Path, *overrides: str) -> Document:
    return load_document(write_project(folder, build_experiment(folder)) / "experiment.yaml", overrides)


LASTING = ("tracking.uri=http://mlflow:5000", "checkpoint.storage=s3://bucket/checkpoints")
LOST = {
    "no store": ((LASTING[1],), {}, "tracking.uri: null, without MLFLOW_TRACKING_URI"),
    "a relative store": ((LASTING[1], "tracking.uri=sqlite:///mlflow.db"), {}, "sqlite:///mlflow.db is relative"),
    "a relative variable": ((LASTING[1],), {"MLFLOW_TRACKING_URI": "mlruns"}, "MLFLOW_TRACKING_URI: mlruns is relati"),
    "no storage": ((LASTING[0],), {}, "checkpoint.storage: null is below ./runs"),
    "a relative storage": ((LASTING[0], "checkpoint.storage=kept"), {}, "checkpoint.storage: kept is relative"),
}


@pytest.mark.parametrize(("overrides", "environment", "problem"), LOST.values(), ids=LOST)
def test_results_that_would_be_lost_with_the_job_are_named(
    overrides: tuple[str, ...], environment: dict[str, str], problem: str, tmp_path: Path
) -> None:
    (found,) = find_lost_results(build_document(tmp_path, *overrides), "run", environment)
    assert problem in found
    assert "a job's working directory is temporary: write " in found


def test_results_that_outlive_the_job_are_accepted(tmp_path: Path) -> None:
    assert not find_lost_results(build_document(tmp_path, *LASTING), "run", {})
    variable = {"MLFLOW_TRACKING_URI": "sqlite:////shared/mlflow.db"}
    assert not find_lost_results(build_document(tmp_path, "checkpoint.every=null"), "run", variable)
    assert not find_lost_results(build_document(tmp_path, LASTING[0], "checkpoint.storage=/shared"), "compare", {})
    (found,) = find_lost_results(build_document(tmp_path, *LASTING), "tune", {})
    assert "./searches" in found


def test_within_a_job_only_the_temporary_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relative = build_document(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    check_results_outlive_job(relative, "run")  # outside of a job
    monkeypatch.setenv(JOB_VARIABLE, json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}))
    with pytest.raises(ConfigError) as caught:
        check_results_outlive_job(relative, "run")
    assert len(caught.value.problems) == 3
    monkeypatch.chdir(tmp_path)
    check_results_outlive_job(relative, "run")


def run_fednar(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = finish(start_fednar(*words, cwd=cwd, env=build_clean_environment(**environment)))
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


@pytest.mark.usefixtures("processes")
def test_every_problem_is_reported_at_once_before_the_cluster_is_contacted(tmp_path: Path, processes: None) -> None:
    write_project(tmp_path, build_experiment(tmp_path))
    done = run_fednar("submit", "experiment.yaml", "data.source=npz", "data.path=mine.npz", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.removeprefix("error: ").split(":")[0] for line in done.stderr.splitlines()[1:4]] == [
        "tracking.uri", "checkpoint.storage", "data.path",
    ]  # fmt: skip
    assert "fednar submit --directory" in done.stderr


BAD_INPUT = {
    "an unknown option of the command": (["run", "experiment.yaml", "--jsno"], "No such option"),
    "a directory of this machine": (["experiment.yaml", "--directory", "here"], "--directory here is a relative path"),
    "a run of this machine": (["run", "--resume", "held-1"], "a job does not see this working directory"),
    "a secret in the list of jobs": (["experiment.yaml", "tracking.uri=http://me:pw@mlflow"], "contains a password"),
    "a variable that is not set": (["experiment.yaml", "--env", "NOBODY"], "--env NOBODY: no such variable"),
    "no cluster": (["experiment.yaml", "--directory", "/shared"], "no dashboard of Ray answers at http://127.0.0.1:1"),
    "an address of another kind": (["--directory", "/shared", "--address", "ray://head:10001"], "http://head:8265"),
}


@pytest.mark.parametrize(("words", "problem"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_refused(words: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_project(tmp_path, build_experiment(tmp_path)))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises((BadInput, click.UsageError)) as caught:
        cli.main(["submit", *words], standalone_mode=False)
    assert problem in str(caught.value)


# ---- a real cluster, with a real MLflow server on a real database

AUTHENTICATION = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///users.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A head that other nodes may join, and a tracking server that the jobs and the test share."""

    cluster: Cluster
    mlflow: Server
    database: str  # its URI
    credentials: dict[str, str]
    processes: ExitStack  # ends the processes that were started

    def submit(self, *words: str, cwd: Path, **environment: str) -> ForkedProcess:
        """Starts ``fednar submit``."""
        variables = {**self.cluster.environment, "MLFLOW_TRACKING_URI": self.mlflow.uri, **environment}
        process = start_fednar("submit", *words, "--address", self.cluster.dashboard, cwd=cwd, env=variables)
        self.processes.enter_context(process)
        self.processes.callback(process.kill)
        return process

    def fednar(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Runs another command about jobs."""
        return self.cluster.fednar(*words, "--address", self.cluster.dashboard, cwd=cwd)


@pytest.fixture(scope="module")
def stage(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Yields MLflow with basic authentication on PostgreSQL (SQLite if not installed), and Ray with a token."""
    folder, programs = tmp_path_factory.mktemp("mlflow"), find_postgresql()
    (folder / "users.ini").write_text(AUTHENTICATION)
    password = secrets.token_urlsafe(16)
    credentials = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
    server_settings = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "users.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }
    with ExitStack() as stack:
        database = stack.enter_context(run_postgresql(programs)) if programs else f"sqlite:///{folder}/mlflow.db"
        server = Server(database, folder, "--app-name", "basic-auth", **server_settings)
        stack.callback(server.kill)
        server.start()
        nodes = stack.enter_context(run_cluster(RAY_metrics_report_interval_ms="1000", **credentials))
        yield Stage(cluster=nodes, mlflow=server, database=database, credentials=credentials, processes=stack)


@pytest.mark.usefixtures("own_ray")
def test_mlflow_keeps_its_runs_in_postgresql(stage: Stage) -> None:
    if find_postgresql() is None:
        pytest.skip("no initdb (Debian: postgresql): MLflow's server keeps its runs in SQLite instead")
    assert stage.database.startswith("postgresql")


@pytest.mark.usefixtures("own_ray")
def test_the_user_of_the_runs_is_created_once(stage: Stage) -> None:
    """Runs the program of the job in docs/cluster/mlflow.yaml, which Kubernetes may repeat."""
    documents = yaml.safe_load_all((ROOT / "docs" / "cluster" / "mlflow.yaml").read_text())
    (job,) = (each for each in documents if each["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    given = {"MLFLOW_TRACKING_URI": stage.mlflow.uri, **stage.credentials}
    runs = {"RUNS_USERNAME": "runs", "RUNS_PASSWORD": secrets.token_urlsafe(16)}
    assert {each["name"] for each in container["env"]} == {"HOME", *given, *runs}
    for _ in range(2):
        command = [get_executable(), *container["command"][1:], *container["args"]]
        subprocess.run(command, env=build_clean_environment(**given, **runs), check=True, timeout=PATIENCE_SECONDS)
    names = ("RUNS_USERNAME", "RUNS_PASSWORD")
    for variable, name in zip(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), names, strict=True):
        given[variable] = runs[name]
    create = "import mlflow; print(mlflow.create_experiment('of-runs'))"
    subprocess.run([get_executable(), "-c", create], env=build_clean_environment(**given), check=True)


@pytest.fixture
def client(processes: None, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """Returns a client of MLflow that has the credentials."""
    for name, value in stage.credentials.items():
        monkeypatch.setenv(name, value)
    return MlflowClient(stage.mlflow.uri)


def find_run(client: MlflowClient, name: str) -> Any:
    """Returns the newest run of an MLflow experiment, or None if there is none."""
    found = client.get_experiment_by_name(name)
    return next(iter(client.search_runs([found.experiment_id], max_results=1)), None) if found else None


def load_losses(client: MlflowClient, run: Any) -> list[float]:
    return [p.value for p in sorted(client.get_metric_history(run.info.run_id, "loss/train"), key=lambda p: p.step)]


@pytest.mark.usefixtures("processes")
@pytest.mark.usefixtures("own_ray")
def test_a_job_that_loses_and_regains_a_node_gives_the_bytes_of_a_serial_run(
    stage: Stage, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, project = stage.cluster, write_project(tmp_path / "project", build_experiment(tmp_path))
    (project / "mlflow.db").touch()
    (tmp_path / "hold").touch()
    nodes.join(SECOND)
    job = stage.submit(
        "run", "experiment.yaml", "--json", "--register", "paced", f"checkpoint.storage={tmp_path}/checkpoints",
        "tracking.system_metrics=true", cwd=project, MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="1",
    )  # fmt: skip

    def exists(name: str) -> bool:
        assert job.poll() is None, job.communicate()
        return (tmp_path / name).exists()

    wait_for(lambda: exists("held"), "training on the second node")
    wait_for(lambda: load_losses(client, find_run(client, "paced")), "a round in MLflow while the run is under way")
    nodes.kill(SECOND)
    nodes.join(THIRD)
    wait_for(lambda: exists(f"on-{THIRD}"), "training on the third node")
    wait_for(lambda: nodes.is_dead(SECOND), "the head to miss the second node")
    (tmp_path / "hold").unlink()
    out, err = job.communicate(timeout=PATIENCE_SECONDS)
    nodes.kill(THIRD)
    assert job.returncode == 0, out + err
    assert f"WARNING node {SECOND} was lost; its actor starts again elsewhere" in out.splitlines()
    assert "state-dump" not in out  # of the lost node's Ray
    assert "with 2 files" in err  # the store is not sent
    assert "MLFLOW_TRACKING_PASSWORD" in err  # it is not passed on, because the nodes have their own
    summary = json.loads(out.splitlines()[-1])

    monkeypatch.syspath_prepend(project)
    alone = list(fr.iter_rounds(fr.load(project / "experiment.yaml", ["execution.placement=serial"])))
    assert summary["parameters_sha256"] == hash_parameters(alone[-1])
    run = client.get_run(summary["run_id"])
    assert (run.info.status, summary["actors"]) == ("FINISHED", 2)
    assert load_losses(client, run) == [report.metrics["train_loss"] for report in alone]
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")  # through the server
    kept = client.download_artifacts(run.info.run_id, "experiment.yaml", str(tmp_path))
    assert fr.load(kept).name == "paced"
    (version,) = client.search_model_versions("name = 'paced'")
    assert (version.run_id, summary["registered_version"]) == (run.info.run_id, 1)
    phases = {f"time/{phase}" for phase in ("broadcast", "train", "aggregate", "evaluate", "log")}
    assert {*phases, "system/cpu_utilization_percentage"} <= run.data.metrics.keys()
    assert read_prometheus(nodes, "ray_fednar_rounds_total") == ROUNDS
    assert read_prometheus(nodes, "ray_fednar_clients_total") == ROUNDS * 6


def read_prometheus(nodes: Cluster, name: str) -> float:
    """Returns a counter of the only run from what the head offers to Prometheus."""

    def value() -> float | None:
        with urllib.request.urlopen(f"http://{HEAD}:{nodes.metrics_port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{")), None)

    return float(wait_for(value, name))


@pytest.mark.usefixtures("processes")
@pytest.mark.usefixtures("own_ray")
def test_a_job_outlives_its_client_and_can_be_followed_listed_and_stopped(
    stage: Stage, client: MlflowClient, tmp_path: Path
) -> None:
    settings = {**build_experiment(tmp_path), "name": "long", "checkpoint": {"every": None}}
    project = write_project(tmp_path / "project", settings)
    job = stage.submit("experiment.yaml", "federation.rounds=1000000", "execution.placement=serial", cwd=project)
    wait_for(
        lambda: (find_run(client, "long") and load_losses(client, find_run(client, "long"))) or job.poll() is not None
    )
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=PATIENCE_SECONDS)
    assert job.returncode == 130, err
    last = err.splitlines()[-1]
    assert last.startswith("interrupted; job long-")
    job_id = last.split()[2]
    assert last.endswith(f"follow it with: fednar logs {job_id} --follow; stop it with: fednar stop {job_id}")

    listed = json.loads(stage.fednar("jobs", "--json", cwd=tmp_path).stdout)
    (found,) = [row for row in listed if row["job_id"] == job_id]
    assert found["status"] == "running"
    assert found["command"].startswith("fednar run experiment.yaml federation.rounds=1000000")
    assert "Running entrypoint" in stage.fednar("logs", job_id, cwd=tmp_path).stdout
    done = stage.fednar("stop", job_id, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"job {job_id}: stopped\n")
    assert find_run(client, "long").info.status == "KILLED"
    followed = stage.fednar("logs", job_id, "--follow", cwd=tmp_path)
    assert followed.returncode == 143
    assert "terminated; fednar runs shows what can be resumed" in followed.stdout
    unknown = stage.fednar("logs", "nobody", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "has no such job; list the jobs with: fednar jobs" in unknown.stderr


@pytest.mark.usefixtures("own_ray")
def test_the_exit_code_of_a_job_is_that_of_its_command(stage: Stage, tmp_path: Path) -> None:
    project = write_project(tmp_path / "project", build_experiment(tmp_path))
    data = ("data.source=npz", "data.path=/nowhere/mine.npz")
    job = stage.submit("experiment.yaml", *data, "--directory", str(tmp_path / "lasting"), cwd=project)
    out, err = job.communicate(timeout=PATIENCE_SECONDS)
    assert job.returncode == 2, out + err
    assert "/nowhere/mine.npz" in out
    assert "data.path: /nowhere/mine.npz is taken as the cluster's nodes see it" in err
    assert err.splitlines()[-1].endswith("ended with exit code 2")


@pytest.mark.usefixtures("processes")
@pytest.mark.usefixtures("own_ray")
def test_an_ordinary_ray_job_refuses_results_that_would_be_lost(stage: Stage, tmp_path: Path) -> None:
    project = write_project(tmp_path / "project", build_experiment(tmp_path))
    words = ("job", "submit", "--address", stage.cluster.dashboard, "--working-dir", str(project))
    words = (*words, "--", "fednar", "run", "experiment.yaml")
    done = finish(ForkedProcess(run_command_of_ray, words, cwd=tmp_path, env=stage.cluster.environment))
    assert done.returncode == 1
    assert "failed with exit code 2" in done.stdout
    assert "tracking.uri: null, without MLFLOW_TRACKING_URI" in done.stdout
    assert "checkpoint.storage: null is below ./runs" in done.stdout


@pytest.mark.usefixtures("processes")
@pytest.mark.usefixtures("own_ray")
def test_without_the_token_access_is_refused(stage: Stage, tmp_path: Path) -> None:
    for token in ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}, {"RAY_AUTH_MODE": "disabled"}):
        done = run_fednar("jobs", "--address", stage.cluster.dashboard, cwd=tmp_path, **token)
        assert done.returncode == 2
        assert "refuses access" in done.stderr
        assert "set RAY_AUTH_MODE=token" in done.stderr


@pytest.mark.usefixtures("own_ray")
def test_without_a_password_the_store_does_not_answer(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in stage.credentials:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TrackingUnavailable, match="does not answer"):
        Store(stage.mlflow.uri).check()
    assert os.environ.get("MLFLOW_TRACKING_PASSWORD") is None
