"""Writes and reads the journal of a run: one line of JSON per round, next to the experiment of the run."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from fednar_ray.config import Experiment, dump
from fednar_ray.core.callbacks import RoundCallback
from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.reports import RoundRecord, RoundReport
from fednar_ray.tracking.file_writes import make_directory, replace_file
from fednar_ray.tracking.json_lines import JsonLines, read_lines
from fednar_ray.tracking.run_directory import RunDirectory


def replace_non_finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Replaces metrics that are not finite by None, since JSON cannot represent them."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def parse_line(line: str) -> RoundRecord:
    """Parses a line of the journal. A metric that is null there becomes NaN."""
    fields = json.loads(line)
    return RoundRecord(
        round_index=fields["round"],
        metrics={name: math.nan if value is None else value for name, value in fields["metrics"].items()},
        client_ids=tuple(fields["clients"]),
        exclusions={
            int(client_id): Exclusion(ExclusionReason(why["reason"]), why["detail"])
            for client_id, why in fields.get("exclusions", {}).items()
        },
        step_norms={int(client_id): norm for client_id, norm in fields.get("step_norms", {}).items()},
        norm_quantiles=tuple(fields.get("norm_quantiles", ())),
    )


def is_round(line: str, index: int) -> bool:
    """Returns whether a line of a journal records round ``index``, with everything that is read from it."""
    try:
        fields, record = json.loads(line), parse_line(line)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return False
    norms = (*record.step_norms.values(), *record.norm_quantiles)
    numbers = [fields["time"], *record.metrics.values(), *record.client_ids, *norms]
    return (
        type(fields["round"]) is int
        and fields["round"] == index
        and all(type(number) in (int, float) for number in numbers)
        and all(isinstance(exclusion.detail, str) for exclusion in record.exclusions.values())
    )


def _round(norm: float) -> float:
    """Rounds to four digits, since every checkpoint contains the journal."""
    return float(f"{norm:.4g}")


def format_line(record: RoundRecord) -> str:
    """Formats a round that has just ended as a line of the journal."""
    line = {
        "round": record.round_index,
        "time": int(time.time() * 1000),  # ms since the epoch; MLflow gets the same, however late
        "clients": record.client_ids,
        "exclusions": {client_id: asdict(exclusion) for client_id, exclusion in record.exclusions.items()},
        "metrics": replace_non_finite(record.metrics),
        "step_norms": {client_id: _round(norm) for client_id, norm in record.step_norms.items()},
        "norm_quantiles": [_round(norm) for norm in record.norm_quantiles],  # at the levels of core.step_norms
    }
    return json.dumps(line)


def load_records(directory: Path) -> tuple[RoundRecord, ...]:
    """Loads the rounds recorded in a run directory, which may still be written by another process.

    Loading stops at the first line that is not the next round.

    Raises:
        OSError: The file cannot be read.
    """
    return tuple(parse_line(line) for line in read_lines(RunDirectory(directory).journal, is_round))


class Journal(RoundCallback):
    """Writes every round to ``metrics.jsonl`` as it ends, so that a crash loses nothing that was reported.

    Writing raises RunFailed if the disk is full.

    Args:
        directory: The run directory, which is created if needed.
        experiment: Written to the directory, too.
        lines: Rounds 0, 1, … from a checkpoint. Those that the file does not have yet are written first.
    """

    def __init__(self, directory: Path, experiment: Experiment, *, lines: Sequence[str] = ()) -> None:
        make_directory(directory)
        replace_file(RunDirectory(directory).experiment_yaml, dump(experiment))
        self.file = JsonLines(RunDirectory(directory).journal, is_round)
        for line in lines[self.rounds :]:
            self.file.append(line)

    @property
    def rounds(self) -> int:
        """The number of recorded rounds."""
        return len(self.file)

    def log(self, record: RoundRecord) -> None:
        """Records the next round. A round that is already recorded, and is trained again after a resumption, stays."""
        if record.round_index < self.rounds:
            return
        assert record.round_index == self.rounds, f"round {record.round_index} after {self.rounds} rounds"
        self.file.append(format_line(record))

    def truncate(self, rounds: int) -> None:
        """Removes all but the first ``rounds``, for a resumed run whose next rounds may differ."""
        self.file.truncate(rounds)

    def get_lines(self, rounds: int) -> tuple[str, ...]:
        """Returns the lines of the first ``rounds``, verbatim, for a checkpoint."""
        return self.file.read(0, rounds)

    def get_records(self) -> tuple[RoundRecord, ...]:
        """Returns the records of all rounds in the journal."""
        return tuple(parse_line(line) for line in self.get_lines(self.rounds))

    def on_round_end(self, report: RoundReport) -> None:
        """Records the round before the other callbacks see it."""
        self.log(report)

    def on_run_end(self) -> None:
        """Closes the journal's file."""
        self.file.close()

    def on_error(self, error: BaseException) -> None:
        """Closes the journal's file."""
        self.file.close()
