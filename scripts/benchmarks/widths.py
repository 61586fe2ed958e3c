"""Checks ``vectorize: auto``: rounds at the group size that it takes against rounds one by one, with 1 to 4 actors.

With ``--steps``: the cost of a local step at several group sizes, measured and as the cost model predicts it.
"""

import argparse
import json
import time
from collections.abc import Iterator

import numpy as np
import torch
from steps import (
    CPU_DEVICE,
    MODELS,
    SAMPLED,
    STEPS,
    build_federation,
    fit_costs,
    format_costs,
    iter_measured_steps,
)
from torch import nn

import fednar_ray as fr
from fednar_ray.core.freed_memory import keep_freed_memory
from fednar_ray.experiments.placement import plan_execution
from fednar_ray.experiments.prepare import prepare
from fednar_ray.federated.vectorization import CPU, _estimate_step_seconds

ROUNDS, TIMES = 6, 3


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


def measure_steps(batches: tuple[int, ...]) -> Iterator[dict[str, object]]:
    """Yields one row per step: its milliseconds by group size, measured and predicted; at the end the costs that fit.

    The last row is what the steps of this machine say ``CPU`` in federated/vectorization.py should be.
    """
    keep_freed_memory()
    steps = []
    for each in iter_measured_steps(CPU_DEVICE, batches, [*MODELS]):
        steps.append(each)
        predicted = _estimate_step_seconds(each.traits, each.batch, CPU, each.width)
        row: dict[str, object] = {"model": each.model, "batch": each.batch, "width": each.width}
        yield row | {"measured_ms": round(1e3 * each.seconds, 3), "predicted_ms": round(1e3 * predicted, 3)}
    yield {"fitted": format_costs(fit_costs(steps))}


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
