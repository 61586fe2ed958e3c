"""The run directory ``runs/<name>-<id>/``: the experiment as it was run, and a line of JSON a round."""

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
from fednar_ray.tracking.lines import Lines, make_directory, replace, whole_lines
from fednar_ray.tracking.run_directory import RunDirectory


def for_json(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON can say them: null where one is not finite."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def parse(line: str) -> RoundRecord:
    """The round that a line of the journal records; what is null there is NaN here."""
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
    )


def is_round(line: str, index: int) -> bool:
    """Whether a line of a journal records round ``index``, with everything that is read from it."""
    try:
        fields, record = json.loads(line), parse(line)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return False
    numbers = [fields["time"], *record.metrics.values(), *record.client_ids, *record.step_norms.values()]
    return (
        type(fields["round"]) is int
        and fields["round"] == index
        and all(type(number) in (int, float) for number in numbers)
        and all(isinstance(exclusion.detail, str) for exclusion in record.exclusions.values())
    )


def line_of(record: RoundRecord) -> str:
    """A round that has just ended, as a line of the journal."""
    line = {
        "round": record.round_index,
        "time": int(time.time() * 1000),  # ms since the epoch; MLflow gets the same, however late
        "clients": record.client_ids,
        "exclusions": {client_id: asdict(exclusion) for client_id, exclusion in record.exclusions.items()},
        "metrics": for_json(record.metrics),
        "step_norms": {client_id: float(f"{norm:.4g}") for client_id, norm in record.step_norms.items()},
    }
    return json.dumps(line)


def recorded(directory: Path) -> tuple[RoundRecord, ...]:
    """The rounds in a run directory, whether or not its run is still being written.

    They end at the first line that is not the next round.  Raises OSError where the file cannot be read.
    """
    return tuple(parse(line) for line in whole_lines(RunDirectory(directory).journal, is_round))


class Journal(RoundCallback):
    """Every round in ``metrics.jsonl``, written as it ends: a crash loses nothing that was reported.

    ``lines`` are rounds 0, 1, … as a checkpoint keeps them; those that the file lacks are written first.
    Writing raises RunFailed where there is no room.
    """

    def __init__(self, directory: Path, experiment: Experiment, *, lines: Sequence[str] = ()) -> None:
        make_directory(directory)
        replace(RunDirectory(directory).experiment_yaml, dump(experiment))
        self.file = Lines(RunDirectory(directory).journal, is_round)
        for line in lines[self.rounds :]:
            self.file.append(line)

    @property
    def rounds(self) -> int:
        """How many rounds are recorded."""
        return len(self.file)

    def log(self, record: RoundRecord) -> None:
        """Record the next round. One that is recorded already is left as it is: a resumed run trains it again."""
        if record.round_index < self.rounds:
            return
        assert record.round_index == self.rounds, f"round {record.round_index} after {self.rounds} rounds"
        self.file.append(line_of(record))

    def truncate(self, rounds: int) -> None:
        """Forget all but the first ``rounds``, for a run that goes on differently from there."""
        self.file.truncate(rounds)

    def lines(self, rounds: int) -> tuple[str, ...]:
        """The first so many rounds, verbatim, for a checkpoint."""
        return self.file.read(0, rounds)

    def records(self) -> tuple[RoundRecord, ...]:
        """Every round recorded."""
        return tuple(parse(line) for line in self.lines(self.rounds))

    def on_round_end(self, report: RoundReport) -> None:
        """Records the round, before anything else learns of it."""
        self.log(report)

    def on_run_end(self) -> None:
        """Closes the file."""
        self.file.close()

    def on_error(self, error: BaseException) -> None:
        """Closes the file."""
        self.file.close()
