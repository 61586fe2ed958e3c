"""Real Ray nodes on loopback, each with its own processes, directory and address. All end with the test."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.support.forked_workers import get_executable
from tests.support.processes import ForkedProcess, finish, run_command_of_ray, start_fednar
from tests.support.servers import find_free_port, wait_for

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
HEAD, SECOND, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"  # Ray replaces 127.0.0.1, but no other loopback address
MAX_STARTS = 5
SHORT_HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "10",  # a killed node fails each check at once, a busy one is slow
    "RAY_health_check_timeout_ms": "2000",
}
REMOVED = ("RAY_", "MLFLOW_", "AWS_")


def build_clean_environment(**more: str) -> dict[str, str]:
    """Returns our environment with our commands on the path, and without variables that name a cluster or store."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(REMOVED)}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
    programs = (str(Path(get_executable()).parent), str(BIN))  # those that fork first
    return {**kept, **quiet, "PATH": os.pathsep.join((*programs, kept["PATH"])), **more}


def run_in_own_process(function: Callable[..., None], *paths: Path) -> Any:
    """Calls a function of a test module in its own process, and returns its last line of output, parsed as JSON.

    The function may start a Ray cluster. It works in its own folder, so the suite's Ray can run at the same time.
    """
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with (
        tempfile.TemporaryDirectory() as short
    ):  # Ray's sockets lie there, and their paths are limited to 107 characters
        environment = build_clean_environment(**token, RAY_TMPDIR=short)
        done = finish(ForkedProcess(function, *paths, cwd=ROOT, env=environment))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@dataclass(kw_only=True)
class Cluster:
    """A head with a dashboard, and the nodes that join it. All of them require the token."""

    folder: Path  # short, because Ray's sockets lie there, and their paths are limited to 107 characters
    environment: Mapping[str, str]  # with the token
    gcs: str
    dashboard: str
    metrics_port: int  # of the head's Prometheus metrics
    nodes: dict[str, ForkedProcess] = field(default_factory=dict)  # by IP address
    ids: dict[str, str] = field(default_factory=dict)  # of the newest node at an IP address

    def start_head(self, *options: str) -> None:
        """Starts the head, with one CPU."""
        port, dashboard_port = (address.rpartition(":")[2] for address in (self.gcs, self.dashboard))
        dashboard = ("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}")
        self._start(
            HEAD, "--head", f"--port={port}", f"--metrics-export-port={self.metrics_port}", *dashboard, *options
        )

    def join(self, ip: str, *options: str) -> None:
        """Starts another node, with one CPU."""
        self._start(ip, f"--address={self.gcs}", *options)

    def _start(self, ip: str, *options: str) -> None:
        """Starts a node, repeatedly if necessary: Ray gives up after 30 s, which is too soon on a busy machine."""
        for _ in range(MAX_STARTS):
            node = self._launch(ip, *options)
            if self._is_up(node):
                return
            output = node.read_output() + node.read_errors()
            self.kill(ip)
        raise AssertionError(output)

    def _is_up(self, node: ForkedProcess) -> bool:
        wait_for(lambda: "runtime started" in node.read_output() or node.poll() is not None, "a Ray node")
        return node.poll() is None

    def _launch(self, ip: str, *options: str) -> ForkedProcess:
        common = ("--block", "--num-cpus=1", "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats")
        folder = tempfile.mkdtemp(dir=self.folder)
        place = (f"--node-ip-address={ip}", f"--temp-dir={folder}", "--object-store-memory=100000000")
        words = ("start", *options, *common, *place, f"--dashboard-agent-listen-port={find_free_port(ip)}")
        self.ids[ip] = secrets.token_hex(28)  # forked processes draw the same random one
        self.nodes[ip] = ForkedProcess(
            run_command_of_ray, words, cwd=self.folder, start_new_session=True,
            env={**self.environment, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": self.ids[ip]},
        )  # fmt: skip
        return self.nodes[ip]

    def kill(self, ip: str) -> None:
        """Kills all processes of a node at once, as if the machine went down."""
        process = self.nodes.pop(ip)
        with suppress(psutil.NoSuchProcess):
            whole = psutil.Process(process.pid)
            processes = [whole, *whole.children(recursive=True)]
            for each in processes:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        process.close()

    def is_dead(self, ip: str) -> bool:
        """Whether the head has declared a node dead, which takes some missed health checks."""
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        answer = requests.get(f"{self.dashboard}/nodes?view=summary", headers=token, timeout=60)
        nodes = [node["raylet"] for node in answer.json()["data"]["summary"]]
        return any((node["nodeId"], node["state"]) == (self.ids[ip], "DEAD") for node in nodes)

    def fednar(self, *words: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of ours with the token."""
        return finish(start_fednar(*words, cwd=cwd, env={**self.environment, **more}))


@contextmanager
def run_cluster(**environment: str) -> Iterator[Cluster]:
    """Yields a cluster of a head alone. All processes, also of nodes that join, end with the context."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    nodes = Cluster(
        folder=folder,
        environment=build_clean_environment(**token, **SHORT_HEALTH_CHECKS, **environment),
        gcs=f"{HEAD}:{find_free_port(HEAD)}",
        dashboard=f"http://127.0.0.1:{find_free_port('127.0.0.1')}",
        metrics_port=find_free_port("127.0.0.1"),
    )
    try:
        nodes.start_head()
        yield nodes
    finally:
        for ip in reversed(list(nodes.nodes)):
            nodes.kill(ip)
        _end_orphans(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _end_orphans(folder: Path) -> None:
    """Kills what a killed node left behind: processes that work below the folder or name it in their arguments."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and any(str(folder) in word for word in (process.cwd(), *process.cmdline())):
                process.kill()
