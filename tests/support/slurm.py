"""Stand-ins for Slurm's commands and for machines: jobs run on loopback addresses, with real Ray nodes.

`sbatch` is ``SlurmJob.start``; ``srun``, ``scontrol`` and ``ray`` are programs on the job's PATH, which this module is.

- ``srun`` runs its command once per node, each with the node's name, and passes SIGTERM on, as Slurm's does.
- ``scontrol requeue`` notes that the job is back in the queue.
- ``ray symmetric-run`` is Ray's own. Only what it learns about its machine is replaced: a node has one address and no
  other Ray; and it polls more often.
- ``ray start`` is Ray's own, with the address, ports and memory of the node.
- ``ray stop``, which would end every Ray of this machine, ends the node's.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from tests.support.cluster_nodes import HEAD, ROOT, SECOND, build_clean_environment
from tests.support.forked_workers import fork_workers, get_executable
from tests.support.processes import run_command_of_ray
from tests.support.servers import find_free_port

NODES = (HEAD, SECOND)
PROGRAMS = ("srun", "scontrol", "ray")
JOB_ID = "17"


@dataclass(kw_only=True)
class SlurmJob:
    """A job in the directory from which it was submitted.

    Attributes:
        script: The batch script.
        words: The words after the script.
        folder: The directory that the job was submitted from.
        scratch: A short path for the files of the nodes.
        restarts: How often the job was started again.
    """

    script: Path
    words: Sequence[str]
    folder: Path
    scratch: Path
    restarts: int = 0

    def start(self) -> "subprocess.Popen[bytes]":
        """Runs the batch script on the first node, as Slurm does when the job's turn comes. Its log is appended to."""
        environment = build_clean_environment(
            PYTHONPATH=str(ROOT),
            SLURM_JOB_ID=JOB_ID,
            SLURM_JOB_NAME="fednar",
            SLURM_JOB_NUM_NODES=str(len(NODES)),
            SLURM_CPUS_PER_TASK="1",
            SLURM_RESTART_COUNT=str(self.restarts),
            SLURMD_NODENAME=HEAD,
            HEAD_PORT=str(find_free_port(HEAD)),
            HEAD_LOST_SECONDS="1",
            SLURM_STAND_IN=str(self.scratch),
            TMPDIR=str(self.scratch),
        )
        environment["PATH"] = f"{self._write_programs()}{os.pathsep}{environment['PATH']}"
        with self.log.open("ab") as log:
            return subprocess.Popen(
                ["bash", str(self.script), *self.words],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> Path:
        """The file that the output of all starts of the job is appended to."""
        return self.folder / f"fednar-{JOB_ID}.log"

    @property
    def is_requeued(self) -> bool:
        """Whether the script has put the job back into the queue. Asking forgets it."""
        requeued = self.scratch / "requeued"
        found = requeued.exists()
        requeued.unlink(missing_ok=True)
        return found

    def _write_programs(self) -> Path:
        folder = self.scratch / "bin"
        folder.mkdir(exist_ok=True)
        for name in PROGRAMS:
            (folder / name).write_text(f'#!/bin/sh\nexec "{get_executable()}" -m tests.support.slurm {name} "$@"\n')
            (folder / name).chmod(0o755)
        return folder


def run_srun(words: Sequence[str]) -> int:
    """Runs a command once per node and returns the highest exit code."""
    tasks = [
        subprocess.Popen(words, env={**os.environ, "SLURMD_NODENAME": node, "SLURM_PROCID": str(rank)})
        for rank, node in enumerate(NODES)
    ]
    signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
    return max(abs(task.wait()) for task in tasks)


def run_scontrol(words: Sequence[str]) -> int:
    """Notes that a job was put back into the queue."""
    assert list(words) == ["requeue", JOB_ID], words
    (_get_scratch() / "requeued").touch()
    return 0


def run_ray(words: Sequence[str]) -> int:
    """Runs a command of Ray on a node."""
    match words:
        case ["symmetric-run", *_]:
            return _run_symmetrically()
        case ["start", *options]:
            return _start_node(options)
        case ["stop"]:
            return _stop_node()
    raise AssertionError(words)


def _run_symmetrically() -> int:
    import ray
    from ray.scripts import symmetric_run as module

    node = _get_node()
    address = sys.argv[sys.argv.index("--address") + 1]
    own = SimpleNamespace(family=socket.AF_INET, address=node)
    connect = ray.init
    replaced: dict[str, Any] = {
        "check_ray_already_started": lambda: False,
        "is_localhost": lambda ip: False,
        "psutil": SimpleNamespace(net_if_addrs=lambda: {"eth0": [own]}),
        "time": SimpleNamespace(time=time.time, sleep=lambda seconds: time.sleep(seconds / 20)),
    }
    for name, value in replaced.items():
        assert hasattr(module, name), name
        setattr(module, name, value)
    ray.init = lambda **options: connect(address=address, **options)  # not another Ray of this machine
    sys.argv = ["ray", *sys.argv[2:]]
    module.symmetric_run.main(args=sys.argv[2:], prog_name="ray", standalone_mode=True)
    return 0


def _start_node(options: Sequence[str]) -> int:
    node, head = _get_node(), "--head" in options
    ports = ("--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={find_free_port(node)}")
    place = (f"--temp-dir={_get_scratch() / node}", "--object-store-memory=100000000")
    own = ("--include-dashboard=false",) if head else (f"--node-ip-address={node}",)
    fork_workers()
    run_command_of_ray(("start", *options, *ports, *place, *own))
    return 0


def _stop_node() -> int:
    """Ends what belongs to the node's Ray, and nothing else."""
    end_node_processes(_get_scratch() / _get_node())
    return 0


def end_node_processes(folder: Path) -> None:
    """Ends all processes that work below a folder of a node or name it in their arguments."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and any(str(folder) in word for word in (process.cwd(), *process.cmdline())):
                found.append(process)
                process.terminate()
    _, alive = psutil.wait_procs(found, timeout=2)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()


def _get_node() -> str:
    return os.environ["SLURMD_NODENAME"]


def _get_scratch() -> Path:
    return Path(os.environ["SLURM_STAND_IN"])


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    sys.exit({"srun": run_srun, "scontrol": run_scontrol, "ray": run_ray}[name](rest))
