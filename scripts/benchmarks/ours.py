"""Trains with fednar_ray's public API; no evaluation in the measured rounds."""

import argparse
import os
import time

import numpy as np
import psutil
import torch
import workloads as w

import fednar_ray as fr

MANY = w.Workload("mlp", clients=100_000, sampled=100, steps=20, batch=32)
ROWS_OF_MANY = 10
STARTING = 100  # rounds of a small model that are not measured, because the second actor may still be starting


def build_federation(options: argparse.Namespace) -> fr.Federation:
    """Builds the workload's clients, or ``--clients`` small ones."""
    if options.clients:
        rng, rows = np.random.default_rng(0), ROWS_OF_MANY
        x = rng.random((options.clients * rows, 64), dtype=np.float32)
        y = rng.integers(10, size=options.clients * rows)
        pairs = [(x[i : i + rows], y[i : i + rows]) for i in range(0, len(y), rows)]
        return fr.Federation(pairs, test=(x[:rows].copy(), y[:rows].copy()))  # copied, since a view would keep all of x
    workload, clients = w.WORKLOADS[options.workload], w.build_clients(options.workload, options.cifar)
    kept = workload.distinct or workload.rows
    shards = [tuple(part[:kept] for part in clients[i]) for i in range(workload.clients)]
    return fr.Federation(shards, test=tuple(part[:10] for part in clients[0]))


def build_experiment(
    algorithm: str, regularizer: str, workload: w.Workload, rounds: int, **execution: str | int
) -> fr.Experiment:
    """Builds the workload's experiment; pooled on two actors, unless ``execution`` says otherwise."""
    return fr.Experiment.model_validate(
        {
            **w.build_sections(workload, rounds, algorithm, regularizer),
            "execution": {"placement": "pooled", "actors": 2} | execution,
        }
    )


def measure_own_megabytes() -> float:
    """Returns this process's memory without shared memory."""
    memory = psutil.Process(os.getpid()).memory_info()
    return (memory.rss - memory.shared) / 1e6


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithm", default="fedavg")
    parser.add_argument("--regularizer", default="none")
    parser.add_argument("--placement", default="pooled")
    parser.add_argument("--compile", choices=("on", "off"), help="execution.compile; default: as it is by default")
    parser.add_argument("--vectorize", default="auto", type=lambda text: text if text == "auto" else int(text))
    parser.add_argument(
        "--clients", type=int, help=f"number of clients with {ROWS_OF_MANY} random rows each, 100 sampled"
    )
    options = w.parse_arguments(None, parser)
    workload = MANY if options.clients else w.WORKLOADS[options.workload]
    before = measure_own_megabytes()
    clients, model = build_federation(options), w.build_model(workload.model)
    unmeasured = STARTING if workload.model == "mlp" and not options.parameters else 0  # their rounds are compared
    measured = w.WARM_UP + unmeasured + options.rounds
    evaluated = 0 if options.parameters else 1  # an extra last round is evaluated, and not measured
    marks, client_seconds, parameters = [time.perf_counter()], [], None
    execution = {"placement": options.placement, "vectorize": options.vectorize, "actors": options.workers}
    execution |= {"compile": options.compile} if options.compile else {}
    settings = build_experiment(options.algorithm, options.regularizer, workload, measured + evaluated, **execution)
    for record in fr.iter_rounds(settings, federation=clients, model=model):
        marks.append(time.perf_counter())
        client_seconds.append(record.metrics["client_seconds"])
        parameters = record.parameters
    client_seconds = client_seconds[w.WARM_UP + unmeasured : measured]
    compute = (np.array(client_seconds) / options.workers).tolist()
    first, rest = marks[: w.WARM_UP + 1], marks[w.WARM_UP + unmeasured : measured + 1]
    marks = [*first, *(mark - rest[0] + first[-1] for mark in rest[1:])]
    own = measure_own_megabytes() - before
    w.print_report(marks, parameters, options.parameters, compute_seconds=compute, own_megabytes=own)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
