"""Measures a search of 32 trials of 20 rounds on digits: packed, one trial per process, and empty with bare Tune.

They run one after the other, each with its own Ray. Before that, eight trials are trained in this process, without Ray
and MLflow, as rows of one matrix and one after the other. Prints one ROW.
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
from fednar_ray.config import Experiment, load_embedded
from fednar_ray.federated.pack_trainer import PackTrainer
from fednar_ray.tuning.lockstep import train_together
from fednar_ray.tuning.search import start_search
from fednar_ray.tuning.trial_federation import TrialFederation

TRIALS = 32
TOGETHER, ROUNDS, UNMEASURED = 8, 20, 2
OVERRIDES = (f"search.trials={TRIALS}", "search.algorithm=random", "search.scheduler=none", "federation.rounds=20")


class Empty(tune.Trainable):  # type: ignore[misc]
    """A trial that does nothing."""

    def step(self) -> dict[str, Any]:
        """Ends the trial at once."""
        return {"value": 0.0, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Accepts the next trial in the same process."""
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Saves nothing."""

    def load_checkpoint(self, checkpoint: str) -> None:
        """Loads nothing."""


def measure_empty_seconds(folder: Path) -> float:
    """Measures the seconds of empty trials with bare Tune."""
    start = time.perf_counter()
    with fr.RaySession() as session:
        session.connect()
        tune.run(Empty, num_samples=TRIALS, reuse_actors=True, verbose=0, storage_path=str(folder), name="empty")
        return time.perf_counter() - start


def build_trials() -> list[Experiment]:
    """Builds trials that differ in the clipping bound and the weight decay."""
    settings = ("execution.placement=serial", f"federation.rounds={UNMEASURED + ROUNDS}")
    numbers = [2.0**i / 8 for i in range(TOGETHER)]
    points = [(f"regularizer.clip_bound={number}", f"regularizer.weight_decay={0.01 / number}") for number in numbers]
    return [fr.load("digits", [*settings, *each]) for each in points]


def measure_training(pack: PackTrainer | None) -> float:
    """Measures the milliseconds of a core that a round of a trial takes, with its evaluation, once all is traced."""
    federations = [TrialFederation(experiment, fr.RaySession(), "trial") for experiment in build_trials()]
    train_together(federations, [UNMEASURED] * TOGETHER, pack)
    start = time.process_time()
    train_together(federations, [UNMEASURED + ROUNDS] * TOGETHER, pack)
    seconds = time.process_time() - start
    for federation in federations:
        federation.close()
    return 1000 * seconds / TOGETHER / ROUNDS


def measure_search(folder: Path, pack: str) -> dict[str, float]:
    """Measures a search with ``search.pack=pack``, in a directory of its own."""
    folder.mkdir()
    os.chdir(folder)
    seconds: list[float] = []
    start = time.perf_counter()
    document = load_embedded("digits", (*OVERRIDES, f"search.pack={pack}"), to_search=True)
    with fr.RaySession() as session:
        result = start_search(document, session, lambda status: seconds.append(time.perf_counter() - start))
        cores = ray.cluster_resources()["CPU"]
        whole = time.perf_counter() - start
    return {
        "search": seconds[-1],  # from the call, with Ray started and the store made, until the last trial ended
        "whole": whole,  # also with the final runs of the best trial and the baseline, and the report
        "trials": sum(entry.seconds for entry in result.trials) / cores,
    }


def main() -> None:
    """Measures all three and prints the row."""
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row = {
            "training": {"unpacked": measure_training(None), "packed": measure_training(PackTrainer())},
            "empty": measure_empty_seconds(folder / "empty"),
            "packed": measure_search(folder / "packed", "auto"),
            "unpacked": measure_search(folder / "unpacked", "off"),
        }
    print("ROW", json.dumps(row))


if __name__ == "__main__":
    main()
