"""What a search costs beside its trials: 32 trials of 20 rounds on digits, and 32 empty trials with bare Tune.

Both in one Ray, one after the other; prints a ROW.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

import fednar_ray as fr
from fednar_ray.config import embedded
from fednar_ray.tuning.search import begin

TRIALS = 32
OVERRIDES = (f"search.trials={TRIALS}", "search.algorithm=random", "search.scheduler=none", "federation.rounds=20")


class Empty(tune.Trainable):  # type: ignore[misc]
    """A trial that does nothing."""

    def step(self) -> dict[str, Any]:
        """Done at once."""
        return {"value": 0.0, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The same process serves the next trial."""
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """There is nothing to save."""

    def load_checkpoint(self, checkpoint: str) -> None:
        """There is nothing to load."""


def empty_seconds(folder: Path) -> float:
    """Of bare Tune."""
    start = time.perf_counter()
    tune.run(Empty, num_samples=TRIALS, reuse_actors=True, verbose=0, storage_path=str(folder), name="empty")
    return time.perf_counter() - start


def main() -> None:
    """Measure."""
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    with tempfile.TemporaryDirectory() as folder, fr.RaySession() as session:
        os.chdir(folder)
        session.connect()
        empty = empty_seconds(Path(folder))
        seconds: list[float] = []
        start = time.perf_counter()
        document = embedded("digits", OVERRIDES, to_search=True)
        result = begin(document, session, lambda standing: seconds.append(time.perf_counter() - start))
        row = {
            "search": seconds[-1],  # from the call, with the store made, until the last trial ended
            "whole": time.perf_counter() - start,  # with the best and the baseline trained once more, and the report
            "trials": sum(entry.seconds for entry in result.trials),
            "cores": ray.cluster_resources()["CPU"],
            "empty": empty,
        }
    print("ROW", json.dumps(row))


if __name__ == "__main__":
    main()
