"""Trains many variants of the digits experiment, one process per core."""

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import fednar_ray as fr

FILE = Path(__file__).resolve().parents[2] / "tune_configs" / "digits.yaml"
SEEDS = range(5)  # they vary the partition, the initial parameters, the sampling, and the misbehaving clients
FINAL_ROUNDS = 10
COMMON = ("execution.placement=serial", "federation.rounds=40")

Overrides = tuple[str, ...]
"""Overrides of the settings in ``FILE``."""


@dataclass(frozen=True)
class Outcome:
    """The results of a run."""

    accuracy: tuple[float, ...]  # on the test set, by round
    clients: float  # whose updates were included; mean over rounds

    @property
    def final(self) -> float:
        """The mean accuracy of the last rounds."""
        return float(np.mean(self.accuracy[-FINAL_ROUNDS:]))

    def rounds_to(self, target: float) -> int | None:
        """Returns the round in which the accuracy first reached ``target``, from 1; None if it did not."""
        return next((t for t, accuracy in enumerate(self.accuracy, 1) if accuracy >= target), None)


Outcomes = Mapping[Overrides, Sequence[Outcome]]
"""One outcome per seed, in order."""


def train(overrides: Overrides) -> Outcome:
    """Trains once, in this process."""
    metrics = [report.metrics for report in fr.iter_rounds(fr.load(FILE, overrides=[*COMMON, *overrides]))]
    return Outcome(
        accuracy=tuple(each["test_accuracy"] for each in metrics),
        clients=float(np.mean([each["clients_trained"] for each in metrics])),
    )


def train_all(configurations: Iterable[Overrides]) -> Outcomes:
    """Trains every configuration once with every seed; print each result when it is there."""
    wanted = list(dict.fromkeys(configurations))
    runs = [(*overrides, f"seed={seed}") for overrides in wanted for seed in SEEDS]
    outcomes, start = [], time.monotonic()
    with ProcessPoolExecutor(os.cpu_count(), initializer=_set_up_process) as pool:
        for outcome in pool.map(train, runs):
            outcomes.append(outcome)
            seconds = time.monotonic() - start
            label = " ".join(runs[len(outcomes) - 1])
            print(f"{len(outcomes)}/{len(runs)}  {seconds:5.0f} s  {outcome.final:.3f}  {label}", flush=True)
    return {overrides: outcomes[i * len(SEEDS) : (i + 1) * len(SEEDS)] for i, overrides in enumerate(wanted)}


def format_mean(values: npt.NDArray[np.float64]) -> str:
    """Formats the mean over seeds with the sample's standard deviation."""
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _set_up_process() -> None:
    """Sets up a process of the pool: one thread, and no message about each excluded client."""
    torch.set_num_threads(1)
    logging.getLogger("fednar_ray").setLevel(logging.ERROR)
