"""The MLflow server is killed and comes back some seconds later, before or after the end of the run."""

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle, islice
from random import Random
from types import TracebackType
from typing import Self

from evidence import find_differences, measure_training_seconds
from processes import end_all_in, kill, list_tree, wait_for
from runs import FEDNAR, Hung, Run
from stage import Outcome, Stage

LONGEST_ABSENCE_SECONDS = 4.0  # its start takes additional seconds


class Server:
    """``mlflow server`` on a SQLite file; a context manager."""

    def __init__(self, stage: Stage) -> None:
        self._folder = stage.folder / "mlflow-server"
        self._folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._environment = stage.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def __enter__(self) -> Self:
        """Starts it, and waits until it answers."""
        self.start()
        self.wait()
        return self

    def start(self) -> None:
        """Starts it without waiting; it answers some seconds later."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        store = ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--artifacts-destination", "artifacts"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *store, "--workers", "1"],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Waits until it answers."""
        wait_for(self._answers, f"MLflow's server, {self._folder / 'log'}")

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:  # noqa: S310 - ours
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        """Sends SIGKILL to the server and its workers."""
        kill(list_tree(self._process.pid))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the server."""
        end_all_in(self._folder)


def disturb(stage: Stage, kills: int) -> Iterator[Outcome]:
    """Kills the server once per run."""
    random = stage.random("MLflow")
    presets = list(islice(cycle(reversed(stage.presets)), kills))
    for preset in presets:
        stage.undisturbed(preset)
    with Server(stage) as server:
        for preset in presets:
            yield _disturb_run(stage, server, preset, random)


def _disturb_run(stage: Stage, server: Server, preset: str, random: Random) -> Outcome:
    undisturbed = stage.undisturbed(preset)
    hits: tuple[str, ...] = ()
    with stage.run(preset, f"tracking.uri={server.uri}") as run:
        run.start()
        try:
            target = random.uniform(1, 0.9 * undisturbed.rounds)
            if not run.ended_before_round(target, undisturbed.round_seconds):
                server.kill()
                run.ended_within(random.uniform(0, LONGEST_ABSENCE_SECONDS))
                server.start()
            ended = run.finish()
            server.wait()
            owed = "fednar sync" in ended.err
            hits = ("back too late: fednar sync sent the rest" if owed else "back in time: the run sent the rest",)
            problems = (*(_synchronize(stage, run) if owed else ()), *find_differences(run, ended, undisturbed))
        except Hung as error:
            problems = (str(error),)
    lost = measure_training_seconds(run) - undisturbed.training_seconds
    return Outcome(preset=preset, hits=hits, problems=problems, seconds_lost=lost)


def _synchronize(stage: Stage, run: Run) -> tuple[str, ...]:
    """Sends what MLflow missed. Returns what went wrong."""
    done = subprocess.run(
        [FEDNAR, "sync"], cwd=run.folder, env=stage.environment, capture_output=True, text=True, check=False
    )
    return (f"fednar sync: exit code {done.returncode}: {done.stderr[-300:]}",) if done.returncode else ()
