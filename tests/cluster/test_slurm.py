"""The script for Slurm: what it starts, what its signals do, and a job on two nodes that is requeued and resumes."""

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fednar_ray as fr
from tests.support.cluster_nodes import HEAD, SECOND
from tests.support.commands import hash_parameters
from tests.support.servers import wait_for
from tests.support.slurm import JOB_ID, SlurmJob, end_node_processes
from tests.support.stores import create_store

SCRIPT = Path(__file__).parents[2] / "docs" / "cluster" / "slurm.sbatch"
OPTIONS = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)$", SCRIPT.read_text(), re.MULTILINE))


def test_a_job_has_its_nodes_to_itself_and_can_be_requeued() -> None:
    assert {"exclusive", "requeue"} <= OPTIONS.keys()
    assert (OPTIONS["ntasks-per-node"], OPTIONS["open-mode"]) == ("1", "append")
    assert re.fullmatch(r"B:USR1@\d+", OPTIONS["signal"])  # B: the shell, not the processes of the step


# ---- one node, without Ray and training

STUBS = {
    "srun": 'export SLURM_PROCID=0; exec "$@"',
    "scontrol": 'echo "$*" >>scontrol',
    "ray": 'while [ "$1" != -- ]; do echo "$1" >>options; shift; done; shift; "$@"',
    "fednar": 'echo "$*" >>words; trap "echo TERM >>signals; exit 143" TERM; . ./behavior',
}
WAIT = "touch started; while :; do sleep 0.05; done"


def start_script(folder: Path, *words: str, restarts: int = 0, behavior: str = "exit 0") -> "subprocess.Popen[bytes]":
    """Starts the script with programs that note what they were asked to do. ``behavior`` is that of the command."""
    programs = folder / "bin"
    programs.mkdir()
    for name, text in STUBS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    (folder / "behavior").write_text(behavior)
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": JOB_ID, "SLURM_JOB_NAME": "fednar",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "4", "SLURM_RESTART_COUNT": str(restarts),
        "SLURMD_NODENAME": HEAD, "RAY_TEMP": str(folder / "ray"), "TMPDIR": str(folder),
    }  # fmt: skip
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(["bash", str(SCRIPT), *words], cwd=folder, env=environment, stdout=log, stderr=log)


@pytest.mark.parametrize(
    ("words", "restarts", "started"),
    [
        ("run mine.yaml seed=3", 0, "run mine.yaml seed=3"),
        ("run mine.yaml seed=3", 1, "run mine.yaml seed=3 --resume"),
        ("compare mine.yaml", 2, "compare mine.yaml --resume"),
        ("tune mine.yaml", 0, f"tune mine.yaml search.name=fednar-{JOB_ID}"),
        ("tune mine.yaml", 1, f"tune mine.yaml search.name=fednar-{JOB_ID}"),  # it ended before there was a search
        ("run --resume mine-1a2b3c4d", 1, "run --resume mine-1a2b3c4d"),
        ("tune --resume first", 0, "tune --resume first"),
        ("tune begun.yaml", 1, f"tune --resume fednar-{JOB_ID}"),
    ],
)
def test_a_restarted_job_resumes(words: str, restarts: int, started: str, tmp_path: Path) -> None:
    if "begun" in words:
        (tmp_path / "searches" / f"fednar-{JOB_ID}").mkdir(parents=True)
    assert start_script(tmp_path, *words.split(), restarts=restarts).wait() == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "words").read_text() == f"{started} --address {HEAD}:6379\n"
    assert not (tmp_path / "scontrol").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("tmp.")) == []


def test_ray_is_started_with_what_slurm_gave_the_job(tmp_path: Path) -> None:
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

    assert start_script(tmp_path, "run", "mine.yaml").wait() == 0
    program, *options = (tmp_path / "options").read_text().splitlines()
    assert program == symmetric_run.name.replace("_", "-")
    given = symmetric_run.make_context("ray", list(options), resilient_parsing=True).params
    assert (given["address"], given["min_nodes"]) == (f"{HEAD}:6379", 2)
    started = curate_and_validate_ray_start_args(options)
    assert started == ["--num-cpus", "4", "--temp-dir", str(tmp_path / "ray")]


def test_other_words_are_refused(tmp_path: Path) -> None:
    assert start_script(tmp_path, "mine.yaml").wait() == 2
    assert (tmp_path / "log").read_text().startswith("usage: sbatch slurm.sbatch run|compare|tune")


def test_a_command_that_fails_is_not_requeued(tmp_path: Path) -> None:
    assert start_script(tmp_path, "run", "mine.yaml", behavior="exit 3").wait() == 3
    assert not (tmp_path / "scontrol").exists()


def test_the_early_signal_ends_the_command_and_requeues_the_job(tmp_path: Path) -> None:
    script = start_script(tmp_path, "run", "mine.yaml", behavior=WAIT)
    wait_for((tmp_path / "started").exists)
    script.send_signal(signal.SIGUSR1)
    assert script.wait() == 143
    assert (tmp_path / "signals").read_text() == "TERM\n"
    assert (tmp_path / "scontrol").read_text() == f"requeue {JOB_ID}\n"


def test_a_command_that_ends_by_itself_after_the_early_signal_is_not_requeued(tmp_path: Path) -> None:
    script = start_script(tmp_path, "run", "mine.yaml", behavior=f"trap 'exit 0' TERM; {WAIT}")
    wait_for((tmp_path / "started").exists)
    script.send_signal(signal.SIGUSR1)
    assert script.wait() == 0
    assert not (tmp_path / "scontrol").exists()


def test_a_signal_that_slurm_sends_to_all_processes_is_not_passed_on(tmp_path: Path) -> None:
    script = start_script(tmp_path, "run", "mine.yaml", behavior=f"echo $$ >pid; {WAIT}")
    wait_for((tmp_path / "started").exists)
    script.send_signal(signal.SIGTERM)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    assert script.wait() == 143
    assert (tmp_path / "signals").read_text() == "TERM\n"
    assert not (tmp_path / "scontrol").exists()  # Slurm requeues the job, or it was canceled


# ---- two nodes with Ray

NETWORK = """
import time
from pathlib import Path

import ray
import torch


class Slow(torch.nn.Module):
    # In an actor it writes a file that names its node, and is slow while the file "slow" exists.

    def __init__(self, folder):
        super().__init__()
        torch.manual_seed(0)
        self.folder = Path(folder)
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    def forward(self, x):
        if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
            (self.folder / f"on-{ray.util.get_node_ip_address()}").touch()
            if (self.folder / "slow").exists():
                time.sleep(0.05)
        return self.layers(x)


def network(folder):
    return Slow(folder)
"""
ROUNDS = 12


@pytest.fixture
def job(tmp_path: Path) -> Iterator[SlurmJob]:
    """Yields a job that was submitted, but has not started. All of its processes end with the test."""
    settings = {
        "name": "mine",
        "data": {"partition": {"clients": 6}},
        "model": {"function": "slurm_networks.network", "arguments": {"folder": str(tmp_path)}},
        "federation": {"rounds": ROUNDS, "local_steps": 2},
        "algorithm": {"name": "scaffold"},
        "execution": {"placement": "pooled", "actors": 2, "vectorize": 1},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps({"experiment": settings}))
    (tmp_path / "slurm_networks.py").write_text(NETWORK)
    (tmp_path / "slow").touch()
    create_store(tmp_path / "mlflow.db")
    with tempfile.TemporaryDirectory(prefix="s-", ignore_cleanup_errors=True) as scratch:
        try:
            yield SlurmJob(script=SCRIPT, words=("run", "mine.yaml", "--json"), folder=tmp_path, scratch=Path(scratch))
        finally:
            end_node_processes(Path(scratch))


@pytest.mark.usefixtures("processes", "own_ray")
def test_a_job_that_is_stopped_and_requeued_ends_in_the_bytes_of_a_serial_run(
    job: SlurmJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = job.start()
    try:

        def is_training() -> bool:
            assert script.poll() is None, job.log.read_text()
            rounds = sum(len(path.read_text().splitlines()) for path in tmp_path.glob("runs/*/metrics.jsonl"))
            return rounds >= 2 and all((tmp_path / f"on-{node}").exists() for node in (HEAD, SECOND))

        wait_for(is_training, "rounds on both nodes")
        script.send_signal(signal.SIGUSR1)  # of sbatch --signal: to the batch shell alone
        assert script.wait() == 143, job.log.read_text()
        assert job.is_requeued
        assert "terminated; " in job.log.read_text()
        (tmp_path / "slow").unlink()
        job.restarts += 1
        script = job.start()
        assert script.wait() == 0, job.log.read_text()
    finally:
        script.kill()
    assert not job.is_requeued
    log = job.log.read_text()
    assert "state-dump" not in log
    summary = json.loads(next(line for line in reversed(log.splitlines()) if line.startswith("{")))
    assert 2 <= summary["resumed_from_round"] < ROUNDS
    assert summary["actors"] == 2
    assert not list(tmp_path.glob("fednar-*.log.*"))

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    *_, alone = fr.iter_rounds(fr.load("mine.yaml", ["execution.placement=serial"]))
    assert summary["parameters_sha256"] == hash_parameters(alone)
