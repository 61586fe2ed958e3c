"""A node of a two-node Ray cluster is killed, all its processes at once; later another node replaces it."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from evidence import find_differences, measure_training_seconds
from processes import ACTOR, end_all_in, kill, list_tree, read_title, wait_for
from runs import Hung
from stage import Outcome, Stage

RAY = str(Path(sys.executable).with_name("ray"))
HEAD, OTHER = "127.0.0.2", "127.0.0.3"  # Ray replaces 127.0.0.1, and no other address
LONGEST_ABSENCE_SECONDS = 4.0
SHORT_HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "5",  # a killed node refuses at once, a busy one is slow
    "RAY_health_check_timeout_ms": "2000",
}


class TwoNodes:
    """A context manager: a Ray cluster of a head and one more node, with one CPU each."""

    def __init__(self, stage: Stage) -> None:
        self._folder = stage.folder / "ray-nodes"
        self._folder.mkdir()
        self._environment = stage.environment | SHORT_HEALTH_CHECKS
        with socket.socket() as probe:
            probe.bind((HEAD, 0))
            self.address = f"{HEAD}:{probe.getsockname()[1]}"
        self._started = 0

    def __enter__(self) -> Self:
        """Starts both nodes."""
        port = self.address.rpartition(":")[2]
        self._start("--head", f"--port={port}", f"--node-ip-address={HEAD}", "--include-dashboard=false")
        self.join()
        self.wait()
        return self

    def join(self) -> None:
        """Starts the second node or its replacement; it joins some seconds later."""
        self._start(f"--address={self.address}", f"--node-ip-address={OTHER}")

    def wait(self) -> None:
        """Waits until the node that was started last has joined."""
        wait_for(lambda: "runtime started" in self._log.read_text(), f"a Ray node, {self._log}")

    def kill(self) -> str:
        """Sends SIGKILL to every process of the second node. Returns how many actors were on it."""
        processes = list_tree(self._newest.pid)
        doing = sorted(read_title(p).removeprefix(ACTOR) for p in processes if read_title(p).startswith(ACTOR))
        kill(processes)
        return f"{len(doing)} actor{'s' * (len(doing) != 1)} on it"

    def _start(self, *options: str) -> None:
        """Starts a node with its own directory and ports that the system chooses."""
        if self._started:
            self.wait()
        self._started += 1
        self._log = self._folder / f"{self._started}.log"
        common = ("--block", "--num-cpus=1", "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats")
        with self._log.open("wb") as log:
            self._newest = subprocess.Popen(
                [RAY, "start", *options, *common, f"--temp-dir={self._folder / str(self._started)}",
                 "--object-store-memory=100000000"],
                cwd=self._folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends both nodes and what is left of killed ones."""
        end_all_in(self._folder)


def disturb(stage: Stage, kills: int) -> Iterator[Outcome]:
    """Kills the second node once per run."""
    random = stage.random("node")
    presets = list(islice(cycle(stage.presets), kills))
    for preset in presets:
        stage.undisturbed(preset)
    with TwoNodes(stage) as nodes:
        for preset in presets:
            yield _disturb_run(stage, nodes, preset, random)


def _disturb_run(stage: Stage, nodes: TwoNodes, preset: str, random: Random) -> Outcome:
    undisturbed = stage.undisturbed(preset)
    hits: tuple[str, ...] = ()
    with stage.run(preset, "--address", nodes.address) as run:
        run.start()
        try:
            target = random.uniform(1, 0.8 * undisturbed.rounds)
            if not run.ended_before_round(target, undisturbed.round_seconds):
                hits = (nodes.kill(),)
                run.ended_within(random.uniform(0, LONGEST_ABSENCE_SECONDS))
                nodes.join()
            problems = find_differences(run, run.finish(), undisturbed)
        except Hung as error:
            problems = (str(error),)
    nodes.wait()
    lost = measure_training_seconds(run) - undisturbed.training_seconds
    return Outcome(preset=preset, hits=hits, problems=problems, seconds_lost=lost)
