"""Checks ``vectorize: auto``: rounds at the group size that it takes against rounds one by one, with 1 to 4 actors.

With ``--steps``: the cost of a local step at several group sizes, measured and as the cost model predicts it.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import nn

import fednar_ray as fr
from fednar_ray.core.flat_params import flatten
from fednar_ray.core.messages import Broadcast, GroupTask
from fednar_ray.execution.devices import keep_freed_memory
from fednar_ray.experiments.placement import plan_execution
from fednar_ray.experiments.prepare import Prepared, prepare
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.vectorization import CPU, _estimate_step_seconds

CLIENTS, SAMPLED, STEPS = 40, 20, 10
ROUNDS, TIMES = 6, 3
WIDTHS = (1, 2, 5, 10, 20)


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


def build_federation(shape: tuple[int, ...], batch: int) -> fr.Federation:
    """Builds random clients of two batches each."""
    rng = np.random.default_rng(0)
    pairs = [
        (rng.random((2 * batch, *shape), dtype=np.float32), rng.integers(10, size=2 * batch)) for _ in range(CLIENTS)
    ]
    return fr.Federation(pairs, test=pairs[0])


def build_experiment(batch: int, width: str | int, actors: int) -> fr.Experiment:
    """Builds an experiment of plain SGD, evaluated only in the last round."""
    rounds = ROUNDS + 2
    return fr.Experiment.model_validate(
        {
            "federation": {
                "rounds": rounds,
                "clients_per_round": SAMPLED,
                "local_steps": STEPS,
                "batch_size": batch,
            },
            "algorithm": {"local_lr": 0.01},
            "regularizer": {"name": "none"},
            "evaluation": {"every": rounds},
            "execution": {
                "placement": "pooled",
                "actors": actors,
                "cpus_per_actor": 0.5,
                "vectorize": width,
            },
        }
    )


def measure_rounds(settings: fr.Experiment, clients: fr.Federation, model: nn.Module, session: fr.RaySession) -> float:
    """Returns the median seconds of a round."""
    marks = [time.perf_counter() for _ in fr.iter_rounds(settings, federation=clients, model=model, session=session)]
    return float(np.median(np.diff(marks)[:-1]))


def compare(batches: tuple[int, ...]) -> Iterator[dict[str, object]]:
    """Yields one row per model and batch size: the group size taken, and round times relative to C = 1, by actors."""
    with fr.RaySession() as session:
        session.connect()
        for name, (build, shape) in MODELS.items():
            for batch in batches:
                clients, model = build_federation(shape, batch), build()
                width = plan_execution(prepare(build_experiment(batch, "auto", 1), clients, model), session).group_size
                ratios = {}
                for actors in (1, 2, 3, 4) if width > 1 else ():
                    pairs = [
                        [
                            measure_rounds(build_experiment(batch, w, actors), clients, model, session)
                            for w in (width, 1)
                        ]
                        for _ in range(TIMES)
                    ]
                    ratios[str(actors)] = float(np.median([wide / alone for wide, alone in pairs]))
                yield {"model": name, "batch": batch, "width": width, "ratios": ratios}


def measure_group_seconds(prepared: Prepared, width: int) -> float:
    """Returns the minimum seconds of one local step of a client group."""
    trainer = GroupTrainer(prepared.build_training_plan(), prepared.federation.shards, torch.device("cpu"))
    task = GroupTask(client_ids=tuple(range(width)), states=None)
    seconds = []
    for index in range(6):
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


def measure_steps(batches: tuple[int, ...]) -> Iterator[dict[str, object]]:
    """Yields one row per model and batch size: milliseconds of a step by group size, measured and predicted."""
    keep_freed_memory()
    for name, (build, shape) in MODELS.items():
        for batch in batches:
            prepared = prepare(build_experiment(batch, "auto", 1), build_federation(shape, batch), build())
            measured = {width: round(1e3 * measure_group_seconds(prepared, width), 3) for width in WIDTHS}
            predicted = {w: round(1e3 * _estimate_step_seconds(prepared.traits, batch, CPU, w), 3) for w in WIDTHS}
            yield {"model": name, "batch": batch, "measured_ms": measured, "predicted_ms": predicted}


def main() -> None:
    """Prints one JSON object per line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 32])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for row in (measure_steps if options.steps else compare)(tuple(options.batches)):
        print("ROW " + json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
