"""Trains this package's rounds on one device, in this process: no Ray, no MLflow."""

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import workloads as w
from torch import nn

from fednar_ray.config import Experiment
from fednar_ray.config.execution import ExecutionSettings
from fednar_ray.core.reports import RoundReport
from fednar_ray.data.federation import Federation
from fednar_ray.experiments.iter_rounds import build_initial_state, train_rounds
from fednar_ray.experiments.placement import ExecutionPlan, SerialTrainer, plan_in_this_process
from fednar_ray.experiments.prepare import prepare
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.federated.server_state import FederationState

MEASURED_SECONDS = 4.0
COMPILED = {"not compiled": {"compile": "off"}, "compiled": {"compile": "on"}}


def list_variants(device: torch.device) -> Mapping[str, Mapping[str, Any]]:
    """Returns variants of ``execution`` that are measured side by side: what a row is called, and the settings.

    Nothing is compiled for a CPU, where the check only shows that it works.
    """
    return COMPILED if device.type == "cuda" else {"": {"compile": "off"}}


@dataclass(frozen=True)
class Run:
    """An experiment that trains on ``device``."""

    prepared: Prepared
    plan: ExecutionPlan
    device: torch.device

    def train(self, state: FederationState | None = None) -> Generator[RoundReport, None, None]:
        """Trains with a new trainer from the beginning, or from ``state``, which each round advances."""
        pool = SerialTrainer(self.prepared, self.device).build_pool(self.prepared, self.plan.program)
        state = build_initial_state(self.prepared) if state is None else state
        yield from train_rounds(self.prepared, self.plan, pool, state)


def build_run(
    sections: Mapping[str, Any], federation: Federation, model: nn.Module, device: torch.device, **execution: Any
) -> Run:
    """Builds a run. ``execution`` replaces settings of that section; the users' placement serial stays on the CPU."""
    experiment = Experiment.model_validate({**sections, "execution": {"placement": "serial"}})
    settings = ExecutionSettings.model_validate(execution)
    experiment = experiment.model_copy(update={"execution": settings.model_copy(update={"placement": "serial"})})
    prepared = prepare(experiment, federation, model)
    return Run(prepared, plan_in_this_process(prepared, device), device)


def build_workload_run(
    workload: w.Workload, rounds: int, device: torch.device, algorithm: str, regularizer: str, **execution: Any
) -> Run:
    """Builds the run of a workload. Only the last round is evaluated, on ten examples."""
    clients = w.Clients(workload, None)
    federation = Federation([clients[i] for i in range(workload.clients)], test=tuple(p[:10] for p in clients[0]))
    sections = w.build_sections(workload, rounds, algorithm, regularizer)
    return build_run(sections, federation, w.build_model(workload.model), device, **execution)


def measure_run(run: Run) -> dict[str, Any]:
    """Trains a run, and returns the size of its groups and what ``measure_rounds`` does."""
    rounds = run.train()
    found = measure_rounds(lambda: next(rounds), run.prepared.experiment.federation.rounds, run.device)
    rounds.close()
    return {"group": run.plan.group_size, **found}


def measure_rounds(train_round: Callable[[], object], rounds: int, device: torch.device) -> dict[str, Any]:
    """Trains the first round, then others for ``MEASURED_SECONDS``, at least one and fewer than ``rounds``.

    Returns:
        The median seconds of a round after the first, the seconds of the first, and what the GPU took meanwhile.
    """
    start = time.perf_counter()
    train_round()
    first, seconds = time.perf_counter() - start, list[float]()
    with Meter(device) as meter:
        while len(seconds) < rounds - 1 and sum(seconds) < MEASURED_SECONDS:
            start = time.perf_counter()
            train_round()
            seconds.append(time.perf_counter() - start)
    return {"round_seconds": statistics.median(seconds), "first": first, "rounds": len(seconds), **meter.found}


class Meter:
    """Measures peak memory and utilization of a GPU between enter and exit. On a CPU it finds nothing."""

    def __init__(self, device: torch.device) -> None:
        self._gpu, self.found = device.type == "cuda", dict[str, Any]()
        self._watch: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Meter":
        """Resets a GPU's peak memory, and starts to watch its utilization."""
        if self._gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            if (program := shutil.which("nvidia-smi")) is not None:
                query = ["--query-gpu=utilization.gpu,power.draw", "--format=csv,noheader,nounits", "-lms", "100"]
                self._watch = subprocess.Popen([program, *query], stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Ends measuring, and fills ``found``."""
        if self._gpu:
            torch.cuda.synchronize()
            self.found["peak_megabytes"] = torch.cuda.max_memory_allocated() / 1e6
        if self._watch is not None:
            self._watch.terminate()
            lines, _ = self._watch.communicate()
            self.found |= read_utilization(lines)


def read_utilization(lines: str) -> dict[str, float]:
    """Returns the means of what nvidia-smi printed, a line per sample: percent of the time, and watts."""
    rows = []
    for line in lines.splitlines():
        try:
            rows.append([float(cell) for cell in line.split(",")])
        except ValueError:
            continue  # [N/A]
    whole = [row for row in rows if len(row) == 2]
    if not whole:
        return {}
    percent, watts = np.mean(whole, axis=0)
    return {"utilization": float(percent), "watts": float(watts)}
