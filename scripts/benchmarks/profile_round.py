"""Profiles a round of W1: the driver with cProfile, an actor's client group with torch.profiler."""

import cProfile
import json
import pstats
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
import workloads as w
from ours import build_experiment
from torch.profiler import ProfilerActivity, profile

import fednar_ray as fr
from fednar_ray.core.flat_params import flatten
from fednar_ray.core.messages import Broadcast, GroupTask
from fednar_ray.experiments.prepare import prepare
from fednar_ray.federated.client_trainer import GroupTrainer

ROUNDS, GROUP = 200, 10
DRIVER = {
    "waiting for the actors (ray.wait)": ("wait",),
    "sending the calls": ("_actor_method_call",),
    "receiving the updates (ray.get)": ("get",),
}
OPERATORS = {
    "bmm": "matrix products",
    "cat": "gradient into one vector",
    "addcmul_": "the update and its metrics",
    "_log_softmax": "softmax and cross-entropy",
    "_log_softmax_backward_data": "softmax and cross-entropy",
    "gather": "softmax and cross-entropy",
    "scatter_add": "softmax and cross-entropy",
    "index_select": "gathering the batch",
}


def profile_driver(clients: fr.Federation) -> Iterator[tuple[str, float]]:
    """Yields the milliseconds per round of each part of the driver's work."""
    settings = build_experiment("fedavg", "none", w.WORKLOADS["mlp"], ROUNDS + 2)
    rounds = fr.iter_rounds(settings, federation=clients, model=w.build_model("mlp"))
    next(rounds)  # actors have started
    profiler, start = cProfile.Profile(), time.perf_counter()
    profiler.enable()
    for _ in range(ROUNDS):
        next(rounds)
    profiler.disable()
    total = 1e3 * (time.perf_counter() - start) / ROUNDS
    rounds.close()
    rest = total
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    for label, names in DRIVER.items():
        spent = sum(v[3] for (file, _, name), v in stats.items() if name in names and "/ray/" in file)
        rest -= 1e3 * spent / ROUNDS
        yield label, 1e3 * spent / ROUNDS
    yield "the driver's own work: sampling, client groups, sums, server step, metrics", rest


def profile_group(clients: fr.Federation) -> Iterator[tuple[str, float]]:
    """Yields the milliseconds per client group of ten of each part of the actor's work."""
    settings = build_experiment("fedavg", "none", w.WORKLOADS["mlp"], ROUNDS)
    prepared = prepare(settings, clients, w.build_model("mlp"))
    trainer = GroupTrainer(prepared.build_training_plan(), clients.shards, torch.device("cpu"))
    task = GroupTask(client_ids=tuple(range(GROUP)), states=None)
    parameters = flatten(prepared.model)

    def train(index: int) -> float:
        scalars, start = settings.compute_scalars(index), time.perf_counter()
        trainer.train(
            Broadcast(round_index=index, scalars=scalars, parameters=parameters, shared={}, buffers=None), task
        )
        return 1e3 * (time.perf_counter() - start)

    total = float(np.median([train(index) for index in range(50)]))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for index in range(20):
            train(index)
    spent: Counter[str] = Counter()
    for event in profiled.key_averages():
        label = OPERATORS.get(event.key.removeprefix("aten::"), "other operators")
        spent[label] += event.self_cpu_time_total / 20 / 1e3
    yield from spent.most_common()
    yield "Python and dispatch between the operators", total - sum(spent.values())


def main() -> None:
    """Prints one JSON object."""
    torch.set_num_threads(1)
    shards = w.build_clients("mlp", None)
    clients = fr.Federation([shards[i] for i in range(100)], test=shards[0])
    print("ROW " + json.dumps({"driver": dict(profile_driver(clients)), "group": dict(profile_group(clients))}))


if __name__ == "__main__":
    main()
