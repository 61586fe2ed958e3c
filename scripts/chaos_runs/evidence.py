"""Compares a disturbed run with an undisturbed one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from runs import Ended, Run

from fednar_ray.core.reports import RoundRecord
from fednar_ray.core.timing import DURATIONS
from fednar_ray.tracking.journal import parse_line
from fednar_ray.tracking.json_lines import read_lines
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """An undisturbed run."""

    parameters_sha256: str
    history: tuple[Any, ...]
    seconds: float  # from start to exit
    training_seconds: float  # from the end of the first round to the end of the last

    @classmethod
    def of(cls, run: Run, ended: Ended) -> "Undisturbed":
        """Reads the results of an undisturbed run. Exits if it failed, because no comparison is possible."""
        problems = (ended.err[-3000:],) if ended.code else find_mlflow_differences(run, ended)
        if problems:
            raise SystemExit(f"the undisturbed run of {run.preset} failed: {'; '.join(problems)}")
        return cls(
            parameters_sha256=ended.result["parameters_sha256"],
            history=load_history(run),
            seconds=run.seconds,
            training_seconds=measure_training_seconds(run),
        )

    def seconds_from(self, checkpoint: int) -> float:
        """Returns the seconds from start to exit for a run that resumes at this round."""
        return self.seconds - self.round_seconds * checkpoint

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.history)

    @property
    def round_seconds(self) -> float:
        """Mean seconds per round."""
        return self.training_seconds / self.rounds


def measure_training_seconds(run: Run) -> float:
    """Returns the seconds from the end of the first round to the end of the last."""
    times = [json.loads(line)["time"] for line in _load_lines(run)]
    return (times[-1] - times[0]) / 1000 if times else 0.0


def load_history(run: Run) -> tuple[Any, ...]:
    """Reads what the journal holds of each round, without durations."""
    return tuple((r.round_index, r.client_ids, r.exclusions, _drop_durations(r)) for r in _load_records(run))


def _drop_durations(record: RoundRecord) -> Mapping[str, str]:
    """Returns metrics as text, so that NaN equals NaN."""
    return {name: repr(value) for name, value in record.metrics.items() if name not in DURATIONS}


def _load_records(run: Run) -> list[RoundRecord]:
    return [parse_line(line) for line in _load_lines(run)]


def _load_lines(run: Run) -> tuple[str, ...]:
    return () if run.directory is None else read_lines(RunDirectory(run.directory).journal)


def find_differences(run: Run, ended: Ended, undisturbed: Undisturbed) -> tuple[str, ...]:
    """Returns the differences of an ended run from the undisturbed one; empty if the two are equal."""
    if ended.code:
        return (f"exit code {ended.code}: {ended.err.strip()[-300:]}",)
    problems = []
    if ended.result["parameters_sha256"] != undisturbed.parameters_sha256:
        problems.append("other final bytes")
    if load_history(run) != undisturbed.history:
        problems.append("another history")
    return (*problems, *find_mlflow_differences(run, ended))


def find_mlflow_differences(run: Run, ended: Ended) -> tuple[str, ...]:
    """Returns the differences of MLflow from the journal: gaps, duplicates, other values, an unfinished run."""
    client, run_id = MlflowClient(ended.result["tracking_uri"]), ended.result["run_id"]
    wanted: dict[str, list[tuple[int, float]]] = {}
    for record in _load_records(run):
        for name, value in record.metrics.items():
            wanted.setdefault(name_in_mlflow(name), []).append((record.round_index, value))
    problems = []
    for name, points in wanted.items():
        found = sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))
        if found != points:
            problems.append(f"MLflow has {len(found)} points of {name}, and not the {len(points)} that were recorded")
    status = client.get_run(run_id).info.status
    return (*problems, *([] if status == "FINISHED" else [f"MLflow calls the run {status}"]))
