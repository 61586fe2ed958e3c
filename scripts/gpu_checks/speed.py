"""Measures rounds of the benchmarks' workloads on a device: this package, and the loop that one writes without it."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import workloads as w
from baselines import build_plain_round
from gpu_checks.runs import build_workload_run, list_variants, measure_rounds, measure_run
from peak import measure_peak
from steps import fit_costs, format_costs, iter_measured_steps

from fednar_ray.config.execution import Precision
from fednar_ray.federated.precision import use_precision

Row = dict[str, Any]
PLAIN = "plain loop"
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@dataclass(frozen=True)
class System:
    """A row of a table: this package with some settings."""

    label: str
    execution: Mapping[str, Any]
    algorithm: str = "fedavg"
    regularizer: str = "none"


FEDNAR = System("FedNAR", {}, regularizer="fednar")
SCAFFOLD = System("SCAFFOLD", {}, "scaffold")
TF32, BFLOAT16 = System("tf32", {"precision": "tf32"}), System("bfloat16", {"precision": "bfloat16"})


def in_groups_of(size: int) -> System:
    """Returns the package with a fixed group size."""
    return System(f"C = {size}", {"vectorize": size})


@dataclass(frozen=True)
class Table:
    """A workload, the most rounds of it (the first is not counted), and what is measured on it in this order."""

    title: str
    workload: str
    rounds: int
    plain: tuple[Precision, ...]
    systems: tuple[System, ...]


AUTO = System("", {})
TABLES = {
    "W1": Table(
        "MLP 64-128-10 on digits: 20 clients, 20 steps of 32",
        "mlp", 200, ("float32",), (AUTO, FEDNAR, SCAFFOLD, in_groups_of(20), in_groups_of(1), TF32, BFLOAT16),
    ),
    "large": Table(
        "ResNet-18 with GroupNorm on 32x32: 10 clients, 50 steps of 50 (FL-Simulator: 15.9 s on a V100)",
        "large", 3, ("float32", "tf32"),
        (in_groups_of(1), AUTO, System("C = 1, tf32", {"vectorize": 1, "precision": "tf32"}),
         System("C = 1, bfloat16", {"vectorize": 1, "precision": "bfloat16"}),
         in_groups_of(2), in_groups_of(5), in_groups_of(10)),
    ),
    "W2": Table(
        "LeNet on random 32x32 images: 20 clients, 10 steps of 50",
        "lenet", 50, ("float32", "tf32"), (AUTO, FEDNAR, in_groups_of(1), in_groups_of(20), TF32, BFLOAT16),
    ),
    "W4": Table(
        "ResNet-18 with GroupNorm (11.2 million parameters): 20 clients, 1 step of 2",
        "resnet", 50, ("float32",), (AUTO, FEDNAR, SCAFFOLD, in_groups_of(1), in_groups_of(5)),
    ),
}  # fmt: skip


def shrink(table: Table) -> Table:
    """Returns a table that a CPU finishes in a second. The MLP stands in for the ResNet."""
    model = "lenet" if w.WORKLOADS[table.workload].model == "lenet" else "mlp"
    name = f"tiny {model}"
    w.WORKLOADS[name] = w.Workload(model, clients=4, sampled=2, steps=2, batch=2)
    systems = (table.systems[0], *(each for each in table.systems if each is BFLOAT16 and model == "mlp"))
    return replace(table, title=f"{model}, tiny: {table.title}", workload=name, rounds=2, systems=systems)


def measure_table(table: Table, device: torch.device, left: Callable[[], float]) -> Iterator[Row]:
    """Measures the rows of a table, the plain loop first. What would not end in time is skipped.

    Args:
        table: What to measure.
        device: Where.
        left: Returns the seconds that are left.
    """
    workload, took = w.WORKLOADS[table.workload], 0.0
    yield {"gflop": 1e-9 * w.count_round_flops(workload), "title": table.title}
    for precision in (each for each in table.plain if device.type == "cuda" or each != "tf32"):
        row = measure_plain(workload, table.rounds, device, precision)
        yield {"system": f"{PLAIN}, {precision}", "precision": precision, **row}
    for system in table.systems:
        for variant, settings in list_variants(device).items():
            execution = {**settings, **system.execution}
            label = ", ".join(filter(None, ("fednar_ray", system.label, variant)))
            precision = execution.get("precision", "float32")
            if device.type != "cuda" and precision == "tf32":
                yield {"system": label, "skipped": "a CPU has no TF32"}
                continue
            if left() < 1.5 * took:
                yield {"system": label, "skipped": f"the one before took {took:.0f} s, and {left():.0f} s are left"}
                continue
            start = time.perf_counter()
            yield {"system": label, "precision": precision, **_try_system(table, system, execution, device)}
            took = time.perf_counter() - start


def _try_system(table: Table, system: System, execution: Mapping[str, Any], device: torch.device) -> Row:
    """Measures a system; returns the error in one line if it fails, so that the others are measured."""
    workload = w.WORKLOADS[table.workload]
    try:
        run = build_workload_run(workload, table.rounds, device, system.algorithm, system.regularizer, **execution)
        return measure_run(run)
    except Exception as error:  # noqa: BLE001 - whatever a device raises
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


def measure_plain(workload: w.Workload, rounds: int, device: torch.device, precision: Precision) -> Row:
    """Measures the plain loop: one client after the other, data and model on the device."""
    made = w.Clients(workload, None)
    clients = {i: tuple(part.to(device) for part in made[i]) for i in range(workload.clients)}
    model, rng = w.build_model(workload.model).to(device), random.Random(0)
    state = [parameter.detach().clone() for parameter in model.parameters()]
    train_round = build_plain_round(workload, clients, model)

    def train_one() -> None:
        nonlocal state
        state = train_round(state, rng.sample(range(workload.clients), workload.sampled))
        if device.type == "cuda":
            torch.cuda.synchronize()

    with use_precision(precision, device):
        return {"group": 1, **measure_rounds(train_one, rounds, device)}


def measure_peaks(device: torch.device, *, tiny: bool) -> Iterator[Row]:
    """Measures the rate of a large product in each precision."""
    for precision in ("float32", "tf32", "bfloat16"):
        if precision == "tf32" and device.type != "cuda":
            continue
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        with use_precision(precision, device):
            rate = measure_peak(device, dtype, *((128, 0.01) if tiny else ()))
            yield {"precision": precision, "gflops": rate}


def measure_costs(device: torch.device, left: Callable[[], float], *, tiny: bool) -> Iterator[Row]:
    """Measures steps of many models, and fits the costs that ``vectorize: auto`` predicts them with."""
    from steps import MODELS

    from fednar_ray.federated.vectorization import CPU, GPU, _estimate_step_seconds

    steps, known = [], GPU if device.type == "cuda" else CPU
    for each in iter_measured_steps(device, (4,) if tiny else (32, 4), [*MODELS][: 1 if tiny else None]):
        steps.append(each)
        predicted = _estimate_step_seconds(each.traits, each.batch, known, each.width)
        row = {"model": each.model, "batch": each.batch, "group": each.width}
        yield row | {"seconds": each.seconds, "predicted": predicted}
        if left() < 5:
            yield {"skipped": f"the time was over after {len(steps)} steps"}
            break
    costs = fit_costs(steps)
    ratios = sorted(_estimate_step_seconds(e.traits, e.batch, costs, e.width) / e.seconds for e in steps)
    yield {"fitted": format_costs(costs), "ratios": [ratios[0], ratios[len(ratios) // 2], ratios[-1]]}


def run_jax(left: Callable[[], float], *, tiny: bool) -> Iterator[Row]:
    """Runs the JAX script on W1, plain and with co-clipping, if JAX is installed."""
    if find_spec("jax") is None:
        yield {"skipped": "JAX is not installed"}
        return
    for label, options in (("JAX", ()), ("JAX, co-clipping", ("--clip-bound", "10"))):
        command = [sys.executable, str(BENCHMARKS / "jax_peer.py"), "--rounds", "2" if tiny else "30", *options]
        try:
            out = subprocess.run(command, capture_output=True, text=True, timeout=left(), check=True).stdout
        except (subprocess.SubprocessError, OSError) as error:
            yield {"system": label, "failed": str(error).splitlines()[0][:300]}
            continue
        yield {"system": label, "result": out.partition("RESULT ")[2].strip()}
