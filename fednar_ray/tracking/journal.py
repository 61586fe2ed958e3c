"""The run directory ``runs/<name>-<id>/``: the experiment as it was run, and a line of JSON a round."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from fednar_ray.config import Experiment, dump
from fednar_ray.messages import RoundRecord


def run_directory(experiment: Experiment, run_id: str) -> Path:
    """``runs/<name>-<id>`` under the working directory, absolute."""
    return Path("runs").absolute() / f"{experiment.name}-{run_id[:8]}"


def for_json(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON can say them: null where one is not finite."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


class Journal:
    """Appends each round to ``metrics.jsonl``, flushed, so that a crash loses nothing that was reported."""

    def __init__(self, directory: Path, experiment: Experiment) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "experiment.yaml").write_text(dump(experiment), encoding="utf-8")
        self._file = (directory / "metrics.jsonl").open("a", encoding="utf-8")

    def log(self, record: RoundRecord) -> None:
        """Write one round."""
        line = {"round": record.round_index, "clients": record.client_ids, "failures": record.failures}
        self._file.write(json.dumps({**line, "metrics": for_json(record.metrics)}) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
