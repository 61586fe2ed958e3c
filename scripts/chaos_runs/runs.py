"""A real run: ``fednar run`` in its own processes, restarted by one command line until it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import PAUSE_SECONDS, list_actors

from fednar_ray.checkpoint.manifest import MANIFEST, Damaged, Manifest
from fednar_ray.tracking.json_lines import read_lines
from fednar_ray.tracking.run_directory import RunDirectory

FEDNAR = str(Path(sys.executable).with_name("fednar"))
LIMIT_SECONDS = 600.0  # of one process


class Hung(Exception):
    """A process that did not end."""


@dataclass(frozen=True, kw_only=True)
class DiskState:
    """The state of a run on disk."""

    rounds: int = 0  # recorded in the journal
    checkpoint: int = 0  # rounds in the newest checkpoint
    loose: frozenset[str] = field(default_factory=frozenset)  # files that belong to no checkpoint


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The exit code and output of the last process of a run."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The object that ``--json`` printed."""
        summary: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return summary


class Run:
    """An experiment in its own working directory, started and restarted by the same command line."""

    def __init__(
        self, preset: str, options: Sequence[str], folder: Path, logs: Path, environment: Mapping[str, str]
    ) -> None:
        self.preset, self.folder = preset, folder
        self.seconds = 0.0  # lifetime of its processes
        self._logs, self._environment = logs, environment
        name = f"name=chaos-{preset.replace('+', '-')}"
        self._command = [FEDNAR, "run", name, f"algorithm.name={preset}", *options, "--resume", "--json"]
        self._attempt = 0

    def start(self) -> None:
        """Starts its command, for the first time or again."""
        self._attempt += 1
        with self._log("out").open("wb") as out, self._log("err").open("wb") as err:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # Ctrl-C reaches this program only
            )
        self._since = time.monotonic()

    @property
    def pid(self) -> int:
        """Process id of the driver."""
        return self._process.pid

    def ended_within(self, seconds: float) -> bool:
        """Waits up to ``seconds`` and returns whether it ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._count_seconds()
        return True

    def ended_before(self, condition: Callable[[], Any]) -> bool:
        """Waits until ``condition`` holds or it ends, and returns whether it ended."""
        deadline = self._since + LIMIT_SECONDS
        while not condition():
            if self.ended_within(PAUSE_SECONDS):
                return True
            if time.monotonic() > deadline:
                self.finish()
        return False

    def ended_before_round(self, target: float, round_seconds: float) -> bool:
        """Waits until it has recorded ``target`` rounds, the fraction of a round by the clock, or until it ends.

        Rounds are counted, since on a busy machine they come later than in the measured run.
        """
        whole = int(target)
        return self.ended_before(lambda: self.rounds >= whole) or self.ended_within((target - whole) * round_seconds)

    def kill(self) -> None:
        """Sends SIGKILL to the driver alone."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait()
        self._count_seconds()

    def finish(self) -> Ended:
        """Waits for its end. Raises Hung if it does not end within the limit."""
        left = self._since + LIMIT_SECONDS - time.monotonic()
        if self._process.returncode is None and not self.ended_within(max(0.0, left)):
            self.kill()
            raise Hung(f"a process did not end within {LIMIT_SECONDS:g} s; its last words: {self._log('err')}")
        out, err = (self._log(name).read_text(errors="replace") for name in ("out", "err"))
        return Ended(code=self._process.returncode, out=out, err=err)

    def _count_seconds(self) -> None:
        self.seconds += time.monotonic() - self._since

    def _log(self, suffix: str) -> Path:
        return self._logs.with_name(f"{self._logs.name}-{self._attempt}.{suffix}")

    def actors(self) -> list[Any]:
        """Returns the actors of the Ray that its driver started."""
        return list_actors(self.pid)

    @property
    def directory(self) -> Path | None:
        """The run directory; the newest one if a first attempt left nothing to resume."""
        found = [path for path in self.folder.glob("runs/*") if RunDirectory(path).experiment_yaml.exists()]
        return max(found, key=lambda path: RunDirectory(path).experiment_yaml.stat().st_ctime_ns, default=None)

    @property
    def rounds(self) -> int:
        """Number of rounds that it has recorded."""
        return 0 if self.directory is None else len(read_lines(RunDirectory(self.directory).journal))

    def read_disk(self) -> DiskState:
        """Reads what is on disk. None of its processes may be alive."""
        if self.directory is None:
            return DiskState()
        checkpoints = self.directory / "checkpoints"
        names = {path.relative_to(checkpoints).as_posix() for path in checkpoints.rglob("*") if path.is_file()}
        manifests = [manifest for name in names if (manifest := _load_manifest(checkpoints, name)) is not None]
        belong = {name for m in manifests for name in (m.name, *(file.name for file in m.list_files()))}
        newest = max((m.next_round for m in manifests), default=0)
        return DiskState(rounds=self.rounds, checkpoint=newest, loose=frozenset(names - belong))


def _load_manifest(checkpoints: Path, name: str) -> Manifest | None:
    try:
        return Manifest.decode(name, (checkpoints / name).read_bytes()) if MANIFEST.fullmatch(name) else None
    except Damaged:
        return None
