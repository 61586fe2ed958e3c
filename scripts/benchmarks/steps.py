"""The cost of a local step by group size: measured on a device, and the ``StepCosts`` that fit best."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fednar_ray.config import Experiment
from fednar_ray.core.flat_params import flatten
from fednar_ray.core.messages import Broadcast, GroupTask
from fednar_ray.data.federation import Federation
from fednar_ray.experiments.prepare import prepare
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.model_traits import ModelTraits
from fednar_ray.federated.vectorization import StepCosts

CLIENTS, SAMPLED, STEPS = 40, 20, 10
WIDTHS = (1, 2, 5, 10, 20)
CPU_DEVICE = torch.device("cpu")


def build_mlp(inputs: int, *hidden: int) -> nn.Module:
    """Builds fully connected layers."""
    sizes = (inputs, *hidden)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], 10))


def build_cnn(
    channels: int, first: int, second: int, hidden: int, side: int, kernel: int, norm: bool = False
) -> nn.Module:
    """Builds two convolutions, each with pooling, and a hidden layer."""

    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        groups = [nn.GroupNorm(2, outputs)] if norm else []
        return [nn.Conv2d(inputs, outputs, kernel), *groups, nn.ReLU(), nn.MaxPool2d(2)]

    last = ((side - kernel + 1) // 2 - kernel + 1) // 2
    head = (nn.Flatten(), nn.Linear(second * last * last, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    return nn.Sequential(*stage(channels, first), *stage(first, second), *head)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 64-128-10": (lambda: build_mlp(64, 128), (64,)),
    "MLP 64-512-10": (lambda: build_mlp(64, 512), (64,)),
    "MLP 64, 8 layers of 64": (lambda: build_mlp(64, *[64] * 8), (64,)),
    "MLP 784-200-200-10": (lambda: build_mlp(784, 200, 200), (784,)),
    "MLP 3072-512-512-10": (lambda: build_mlp(3072, 512, 512), (3072,)),
    "CNN 4, 8 (28x28)": (lambda: build_cnn(1, 4, 8, 32, 28, 5), (1, 28, 28)),
    "CNN 16, 32 (28x28)": (lambda: build_cnn(1, 16, 32, 128, 28, 5), (1, 28, 28)),
    "CNN 8, 16 GroupNorm (16x16)": (lambda: build_cnn(3, 8, 16, 64, 16, 3, norm=True), (3, 16, 16)),
    "LeNet 32, 64, 512 (32x32)": (lambda: build_cnn(3, 32, 64, 512, 32, 5), (3, 32, 32)),
}


def build_federation(shape: tuple[int, ...], batch: int) -> Federation:
    """Builds random clients of two batches each."""
    rng = np.random.default_rng(0)
    pairs = [
        (rng.random((2 * batch, *shape), dtype=np.float32), rng.integers(10, size=2 * batch)) for _ in range(CLIENTS)
    ]
    return Federation(pairs, test=pairs[0])


def build_step_experiment(batch: int) -> Experiment:
    """Builds the experiment whose local steps are measured: plain SGD."""
    federation = {"rounds": 1, "clients_per_round": SAMPLED, "local_steps": STEPS, "batch_size": batch}
    sections = {"federation": federation, "algorithm": {"local_lr": 0.01}, "regularizer": {"name": "none"}}
    return Experiment.model_validate({**sections, "execution": {"placement": "serial"}})


def measure_group_seconds(prepared: Prepared, width: int, device: torch.device = CPU_DEVICE, times: int = 6) -> float:
    """Returns the minimum seconds of one local step of a client group."""
    trainer = GroupTrainer(prepared.build_training_plan(), prepared.federation.shards, device)
    task = GroupTask(client_ids=tuple(range(width)), states=None)
    seconds = []
    for index in range(times):
        broadcast = Broadcast(
            round_index=index,
            scalars=prepared.experiment.compute_scalars(index),
            parameters=flatten(prepared.model),
            shared={},
            buffers=None,
        )
        start = time.perf_counter()
        trainer.train(broadcast, task)
        seconds.append((time.perf_counter() - start) / STEPS)
    return min(seconds)


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """The seconds of one local step of a client group."""

    model: str
    traits: ModelTraits
    batch: int
    width: int
    seconds: float


def iter_measured_steps(device: torch.device, batches: Sequence[int], models: Sequence[str]) -> Iterator[MeasuredStep]:
    """Yields the cost of a step of each model, batch size and group size; all models of the first batch size first."""
    for batch in batches:
        for name in models:
            build, shape = MODELS[name]
            prepared = prepare(build_step_experiment(batch), build_federation(shape, batch), build())
            for width in WIDTHS:
                seconds = measure_group_seconds(prepared, width, device)
                yield MeasuredStep(name, prepared.traits, batch, width, seconds)


def list_shares(traits: ModelTraits, batch: int, width: int) -> npt.NDArray[np.float64]:
    """Returns by what each number of ``StepCosts`` is multiplied in a step's cost, [9], in the order of the fields."""
    wide, examples = width > 1, 3 * batch * width  # forward and backward cost three times the forward
    flops = traits.matmul_flops + (0 if wide else traits.convolution_flops)
    pairs = [[0.0, count] if wide else [count, 0.0] for count in (traits.matmuls, traits.convolutions)]
    vectors = [0.0, width * traits.parameters] if wide else [width * traits.parameters, 0.0]
    grouped = traits.convolution_flops if wide else 0.0
    return np.array([1.0, *pairs[0], *pairs[1], examples * flops, examples * grouped, *vectors])


def fit_costs(steps: Sequence[MeasuredStep]) -> StepCosts:
    """Fits ``StepCosts`` to measured steps, by least squares of the relative error. No cost is negative.

    A number that no measured step has, such as a convolution's, comes out as 0.
    """
    shares = np.stack([list_shares(each.traits, each.batch, each.width) / each.seconds for each in steps])
    scale = np.maximum(np.abs(shares).max(axis=0), 1e-300)
    costs = solve_nonnegative(shares / scale, np.ones(len(steps))) / scale
    step, m1, mc, c1, cc, flop, grouped, p1, pc = map(float, costs)
    return StepCosts(
        step=step, matmul=(m1, mc), convolution=(c1, cc), flop=flop, convolution_flop=grouped, parameter=(p1, pc)
    )


def solve_nonnegative(matrix: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Solves least squares with x ≥ 0 by coordinate descent, which needs no SciPy."""
    products, target = matrix.T @ matrix, matrix.T @ wanted
    x = np.zeros(matrix.shape[1])
    for _ in range(20_000):
        before = x.copy()
        for index in np.flatnonzero(products.diagonal()):
            x[index] = max(0.0, x[index] + (target[index] - products[index] @ x) / products[index, index])
        if np.abs(x - before).max() <= 1e-12 * np.abs(x).max():
            break
    return x


def format_costs(costs: StepCosts) -> str:
    """Returns the costs as they are written in ``federated/vectorization.py``, with two digits."""
    lines = [
        f"    step={costs.step:.2g},",
        f"    matmul=({costs.matmul[0]:.2g}, {costs.matmul[1]:.2g}),",
        f"    convolution=({costs.convolution[0]:.2g}, {costs.convolution[1]:.2g}),",
        f"    flop={costs.flop:.2g},",
        f"    convolution_flop={costs.convolution_flop:.2g},",
        f"    parameter=({costs.parameter[0]:.2g}, {costs.parameter[1]:.2g}),",
    ]
    return "\n".join(("StepCosts(", *lines, ")"))
