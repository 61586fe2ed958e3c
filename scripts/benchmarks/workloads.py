"""The workloads that every system runs: same data, model and local steps, so that only the system differs.

Needs only torch and NumPy: each peer imports it in its own environment.
"""

import argparse
import functools
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

LR = 0.05
WARM_UP = 1  # rounds that are not measured
DIGITS = Path(__file__).resolve().parents[2] / "fednar_ray" / "data" / "sources" / "digits.csv"  # scikit-learn's


@dataclass(frozen=True)
class Workload:
    """Local SGD on ``sampled`` of ``clients``; each client holds ``steps``·``batch`` rows, each used once per round."""

    model: str
    clients: int
    sampled: int
    steps: int
    batch: int
    distinct: int | None = (
        None  # number of different rows per client, repeated in order; None: its share of the data set
    )

    @property
    def rows(self) -> int:
        """Number of rows per client."""
        return self.steps * self.batch


WORKLOADS = {
    "mlp": Workload("mlp", clients=100, sampled=20, steps=20, batch=32),
    "lenet": Workload("lenet", clients=100, sampled=20, steps=10, batch=50),
    "resnet": Workload("resnet", clients=100, sampled=20, steps=1, batch=2),
    "large": Workload("resnet", clients=10, sampled=10, steps=50, batch=50),  # that of FL-Simulator's benchmark
    # all clients sampled, every batch a client's whole data: sampling and order cannot differ
    "check": Workload("mlp", clients=40, sampled=40, steps=20, batch=32, distinct=32),
}


def build_sections(workload: Workload, rounds: int, algorithm: str, regularizer: str) -> dict[str, dict[str, object]]:
    """Builds the sections of fednar_ray's experiment for a workload. Only the last round is evaluated."""
    return {
        "federation": {
            "rounds": rounds,
            "clients_per_round": workload.sampled,
            "local_steps": workload.steps,
            "batch_size": workload.batch,
        },
        "algorithm": {"name": algorithm, "local_lr": LR},
        "regularizer": {"name": regularizer},
        "evaluation": {"every": rounds},
    }


def parse_arguments(description: str | None, parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """Parses the command line that all systems share."""
    parser = parser or argparse.ArgumentParser(description=description)
    parser.add_argument("--workload", choices=WORKLOADS, default="mlp")
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds, after the first")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parameters", type=Path, help="save the final parameters here (.npy)")
    parser.add_argument("--cifar", type=Path, help="cifar10.npz with train_x, train_y; else seeded random images")
    return parser.parse_args()


class Clients:
    """A workload's clients. The rows of a client are made at first use and kept."""

    def __init__(self, workload: Workload, cifar: Path | None) -> None:
        self._workload = workload
        x, y = _load_digits() if workload.model == "mlp" else _load_images(cifar, workload)
        order = np.random.default_rng(0).permutation(len(y))
        if workload.distinct:
            order = order[: workload.clients * workload.distinct]
        self._x, self._y, self._parts = x, y, np.array_split(order, workload.clients)
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def __getitem__(self, client: int) -> tuple[Tensor, Tensor]:
        """Returns inputs [rows, …] float32 and labels [rows]."""
        if client not in self._made:
            part = self._parts[client]
            rows = part[np.arange(self._workload.rows) % len(part)]
            x = self._x[rows]
            if x.dtype == np.uint8:
                x = np.ascontiguousarray(x.transpose(0, 3, 1, 2).astype(np.float32) / 255)
            self._made[client] = torch.from_numpy(x), torch.from_numpy(self._y[rows])
        return self._made[client]


@functools.cache
def build_clients(name: str, cifar: str | None) -> Clients:
    """Returns a workload's clients, made once per process."""
    return Clients(WORKLOADS[name], None if cifar is None else Path(cifar))


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    rows = np.loadtxt(DIGITS, dtype=np.int64, delimiter=",")  # 64 pixels in 0..16, and the label
    return (rows[:, :64] / 16).astype(np.float32), rows[:, 64]


def _load_images(path: Path | None, workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Loads images, uint8 [n, 32, 32, 3], and labels."""
    if path is None:
        rng, count = np.random.default_rng(0), workload.clients * workload.rows
        return rng.integers(256, size=(count, 32, 32, 3), dtype=np.uint8), rng.integers(10, size=count)
    with np.load(path) as archive:
        return archive["train_x"], archive["train_y"].astype(np.int64)


def build_model(name: str) -> nn.Module:
    """Builds the model with the same initial parameters in every system."""
    torch.manual_seed(0)
    return {"mlp": _build_mlp, "lenet": _build_lenet, "resnet": _build_resnet}[name]()


def _build_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def _build_lenet() -> nn.Module:
    """Builds two 5x5 convolutions with 32 and 64 channels, and a hidden layer of 512."""
    first = (nn.Conv2d(3, 32, 5), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(1600, 512), nn.ReLU(), nn.Linear(512, 10))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.GroupNorm(2, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.GroupNorm(2, outputs),
        )
        narrow = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(2, outputs))
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else narrow

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _build_resnet() -> nn.Module:
    """Builds ResNet-18 with GroupNorm, with 11.2 million parameters."""
    stages = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
    blocks = [block for i, o, stride in stages for block in (_Block(i, o, stride), _Block(o, o, 1))]
    stem = (nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.GroupNorm(2, 64), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def count_round_flops(workload: Workload) -> float:
    """Counts the floating-point operations of a round's products and convolutions, forward and backward."""
    shape = (1, 64) if workload.model == "mlp" else (1, 3, 32, 32)
    model = build_model(workload.model)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(shape)).sum().backward()
    return float(workload.sampled * workload.rows * counter.get_total_flops())


def train_locally(model: nn.Module, x: Tensor, y: Tensor, workload: Workload) -> None:
    """Takes K plain SGD steps in place, as a torch user writes them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    model.train()
    for start in range(0, workload.rows, workload.batch):
        optimizer.zero_grad()
        rows = slice(start, start + workload.batch)
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


def flatten(tensors: list[Tensor] | list[np.ndarray]) -> np.ndarray:
    """Joins tensors into one vector."""
    return np.concatenate([np.asarray(tensor, dtype=np.float32).ravel() for tensor in tensors])


def print_report(
    marks: list[float], parameters: np.ndarray | None = None, out: Path | None = None, **more: object
) -> None:
    """Prints the result. ``marks``: perf_counter when training could start, and after each round."""
    rounds = np.diff(marks)
    started, now = float(os.environ.get("BENCH_STARTED", time.time())), time.time()
    first_round_over = now - (time.perf_counter() - marks[1])
    if out is not None and parameters is not None:
        np.save(out, parameters)
    result = {"round_seconds": rounds[WARM_UP:].tolist(), "first_round_after": first_round_over - started, **more}
    print("RESULT " + json.dumps(result), flush=True)
