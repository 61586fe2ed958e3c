"""What secure aggregation adds to a round: seconds, bytes, and where the time goes."""

import argparse
import tempfile
import time
from collections.abc import Iterator
from statistics import median

import numpy as np
import torch

import fednar_ray as fr
from fednar_ray.core.random import Purpose, seed_sequence
from fednar_ray.secure.masked_sum import MaskedSum
from fednar_ray.secure.messages import Attempt, MaskedUpdate
from fednar_ray.secure.plan import SecurePlan, compute_threshold
from fednar_ray.secure.quantizer import decode, quantize
from fednar_ray.secure.silo import Silo

THRESHOLD = 0.67


def build_experiment(directory: str, rounds: int, *, secure: bool, dedicated: bool) -> fr.Experiment:
    """Builds a run in which each client takes one step of one example, so that little but the sending is left."""
    placement = {"placement": "dedicated", "cpus_per_actor": 0.25} if dedicated else {"placement": "serial"}
    return fr.Experiment.model_validate(
        {
            "federation": {"rounds": rounds, "local_steps": 1, "batch_size": 1},
            "regularizer": {"clip_bound": 1.0},
            "execution": {**placement, "gpus_per_actor": 0, "vectorize": 1, "compile": "off"},
            "evaluation": {"every": rounds + 1},
            "secure_aggregation": {"directory": directory, "threshold": THRESHOLD} if secure else None,
        }
    )


def measure_rounds(silos: int, side: int, rounds: int, *, dedicated: bool) -> dict[str, list[fr.RoundReport]]:
    """Trains a plain and a masked run, a round of each in turn."""
    generator = np.random.default_rng(0)

    def points(count: int) -> tuple[np.ndarray, np.ndarray]:
        return generator.normal(size=(count, side)).astype(np.float32), np.arange(count) % 2

    federation = fr.Federation([points(2) for _ in range(silos)], test=points(2))
    model = torch.nn.Sequential(torch.nn.Linear(side, side, bias=False), torch.nn.Linear(side, 2))
    with tempfile.TemporaryDirectory() as directory, fr.RaySession() as session:
        runs: dict[str, Iterator[fr.RoundReport]] = {
            name: fr.iter_rounds(
                build_experiment(directory, rounds, secure=name == "masked", dedicated=dedicated),
                federation=federation,
                model=model,
                session=session,
            )
            for name in ("plain", "masked")
        }
        reports: dict[str, list[fr.RoundReport]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                reports[name].append(next(run))
        for run in runs.values():
            list(run)
    return reports


def measure_parts(silos: int, dimension: int) -> dict[str, float]:
    """Measures the parts of the protocol by themselves, in seconds: those of one silo, and those of the driver."""
    delta = np.random.default_rng(0).normal(scale=1e-4, size=dimension).astype(np.float32)
    with tempfile.TemporaryDirectory() as directory:
        plan = SecurePlan(
            run="cost", seed=0, threshold=THRESHOLD, bits=24, clip=1.0, steps=None, most_examples=1, weighted=True,
            directory=directory,
        )  # fmt: skip
        clients = {i: Silo(plan, i) for i in range(silos)}
        keys, threshold = {i: silo.public_key for i, silo in clients.items()}, compute_threshold(THRESHOLD, silos)
        attempt = Attempt(run="cost", round_index=0, number=0, members=tuple(clients), keys=keys, threshold=threshold)
        masked, seconds = (
            MaskedSum(attempt),
            dict.fromkeys(("quantize", "mask", "add", "reveal", "unmask", "decode"), 0.0),
        )

        def add(part: str, start: float, share: float = 1.0) -> None:
            seconds[part] += (time.perf_counter() - start) * share

        for i, silo in clients.items():
            start, vector = time.perf_counter(), np.empty(dimension, dtype=np.uint32)
            quantize(delta, 2.0**23 - 1, 24, seed_sequence(0, Purpose.QUANTIZATION, client_id=i), vector)
            add("quantize", start, 1 / silos)
            start = time.perf_counter()
            packages = silo.mask(attempt, vector)
            add("mask", start, 1 / silos)
            start = time.perf_counter()
            masked.add(MaskedUpdate(client_ids=(i,), vector=vector, packages=packages, train_seconds=0.0))
            add("add", start)
        start = time.perf_counter()
        request = masked.build_request()
        reveals = [clients[task.client_ids[0]].reveal(request, task) for task in masked.build_tasks()]
        add("reveal", start, 1 / silos)
        start = time.perf_counter()
        words = masked.unmask(reveals)
        add("unmask", start)
        start = time.perf_counter()
        decode(words, 1.0)
        add("decode", start)
    return seconds


def main() -> None:
    """Prints the cost."""
    parser = argparse.ArgumentParser(prog="scripts/secure_cost", description=__doc__)
    parser.add_argument("--silos", type=int, default=4)
    parser.add_argument("--side", type=int, default=3346)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dedicated", action="store_true")
    given = parser.parse_args()
    silos, side, rounds, dedicated = given.silos, given.side, given.rounds, given.dedicated
    torch.set_num_threads(1)
    reports = measure_rounds(silos, side, rounds, dedicated=dedicated)
    dimension = len(reports["plain"][0].parameters)
    times = {name: [r.metrics["round_seconds"] for r in each[1:]] for name, each in reports.items()}
    where = "on dedicated actors" if dedicated else "in one process"
    print(f"{silos} silos × {dimension / 1e6:.1f} million parameters, {where}; medians of {rounds - 1} rounds")
    plain, masked = median(times["plain"]), median(times["masked"])
    print(f"round: plain {plain:.2f} s, masked {masked:.2f} s, {masked - plain:+.2f} s")
    for name in ("bytes_up", "bytes_down"):
        ratio = reports["masked"][-1].metrics[name] / reports["plain"][-1].metrics[name]
        print(f"{name}: {ratio:.4f} times those of a plain round")
    parts = [measure_parts(silos, dimension) for _ in range(max(1, rounds - 1))]
    text = ", ".join(f"{part} {median(each[part] for each in parts):.3f}" for part in parts[0])
    print(f"seconds of one silo (quantize, mask, reveal) and of the driver (add, unmask, decode): {text}")


if __name__ == "__main__":
    main()
