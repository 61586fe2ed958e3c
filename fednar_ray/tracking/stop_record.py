"""Records that a callback ended a run early: after how many rounds, and why."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fednar_ray.tracking.file_writes import replace_file
from fednar_ray.tracking.run_directory import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The early end of a run.

    Attributes:
        rounds: How many rounds were trained.
        planned: ``federation.rounds`` at that time. The run is finished unless it is resumed with more rounds.
        reason: What the callback said.
    """

    rounds: int
    planned: int
    reason: str

    def __str__(self) -> str:
        return f"stopped early, after {self.rounds} of {self.planned} rounds: {self.reason}"

    def save(self, directory: Path) -> None:
        """Writes the record into a run directory. Raises RunFailed on a full disk."""
        replace_file(RunDirectory(directory).stop, json.dumps(asdict(self)) + "\n")


def read_stop(directory: Path) -> Stop | None:
    """Reads the record of a run directory; None if there is none, or if it is damaged."""
    try:
        fields = json.loads(RunDirectory(directory).stop.read_text(encoding="utf-8"))
        return Stop(rounds=int(fields["rounds"]), planned=int(fields["planned"]), reason=str(fields["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
