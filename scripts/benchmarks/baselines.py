"""Training without a framework: a plain loop, one vmapped batch, or bare processes (the limit of the machine)."""

import argparse
import multiprocessing.connection
import random
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.multiprocessing as mp
import workloads as w
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

Round = Callable[[list[torch.Tensor], list[int]], list[torch.Tensor]]
"""(global parameters, sampled clients) → next global parameters."""


def build_plain_round(workload: w.Workload, clients: w.Clients, model: torch.nn.Module) -> Round:
    """Trains one client after the other."""
    parameters = list(model.parameters())

    def train_round(state: list[torch.Tensor], sampled: list[int]) -> list[torch.Tensor]:
        total = [torch.zeros_like(value) for value in state]
        for client in sampled:
            with torch.no_grad():
                for parameter, value in zip(parameters, state, strict=True):
                    parameter.copy_(value)
            w.train_locally(model, *clients[client], workload)
            with torch.no_grad():
                for sums, parameter in zip(total, parameters, strict=True):
                    sums.add_(parameter, alpha=1 / workload.sampled)
        return total

    return train_round


def build_vmapped_round(workload: w.Workload, clients: w.Clients, model: torch.nn.Module) -> Round:
    """Trains the sampled clients as one vmapped batch."""
    rows = [clients[client] for client in range(workload.clients)]
    inputs, labels = torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])
    names = [name for name, _ in model.named_parameters()]

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(functional_call(model, parameters, (x,)), y)

    gradient = vmap(grad(loss))

    def train_round(state: list[torch.Tensor], sampled: list[int]) -> list[torch.Tensor]:
        x, y = inputs[torch.tensor(sampled)], labels[torch.tensor(sampled)]
        group = {n: v.expand(workload.sampled, *v.shape).clone() for n, v in zip(names, state, strict=True)}
        for start in range(0, workload.rows, workload.batch):
            batch = slice(start, start + workload.batch)
            for name, value in gradient(group, x[:, batch], y[:, batch]).items():
                group[name].sub_(value, alpha=w.LR)
        return [value.mean(0) for value in group.values()]

    return train_round


def run_in_this_process(options: argparse.Namespace, build: Callable[..., Round]) -> None:
    """Trains in one process and reports."""
    workload, clients = w.WORKLOADS[options.workload], w.build_clients(options.workload, options.cifar)
    model, rng = w.build_model(workload.model), random.Random(0)
    state = [parameter.detach().clone() for parameter in model.parameters()]
    train_round = build(workload, clients, model)
    marks = [time.perf_counter()]
    for _ in range(w.WARM_UP + options.rounds):
        state = train_round(state, rng.sample(range(workload.clients), workload.sampled))
        marks.append(time.perf_counter())
    w.print_report(marks, w.flatten(state), options.parameters)


def train_bare(
    name: str, cifar: str | None, count: int, rounds: int, together: "mp.Barrier", queue: "mp.Queue"
) -> None:
    """Trains ``count`` clients per round in its own process, and puts the seconds of every round into the queue."""
    torch.set_num_threads(1)
    workload, clients = w.WORKLOADS[name], w.build_clients(name, cifar)
    model = w.build_model(workload.model)
    for client in range(count):
        clients[client]  # made before the clock runs
    together.wait()
    seconds = []
    for _ in range(w.WARM_UP + rounds):
        start = time.perf_counter()
        for client in range(count):
            w.train_locally(model, *clients[client], workload)
        seconds.append(time.perf_counter() - start)
    queue.put(seconds)


def run_bare(options: argparse.Namespace) -> None:
    """Trains in bare processes of one thread that do nothing else, and reports the slowest one's rounds."""
    context = mp.get_context("spawn")
    together, queue = context.Barrier(options.workers), context.Queue()
    count = w.WORKLOADS[options.workload].sampled // options.workers
    work = (options.workload, options.cifar and str(options.cifar), count, options.rounds, together, queue)
    processes = [context.Process(target=train_bare, args=work, daemon=True) for _ in range(options.workers)]
    for process in processes:
        process.start()
    while running := [process.sentinel for process in processes if process.is_alive()]:
        multiprocessing.connection.wait(running)
        if any(process.exitcode for process in processes):
            raise SystemExit("a process failed; its output says why")
    seconds = np.max([queue.get() for _ in processes], axis=0)
    end = time.perf_counter()
    w.print_report((end - seconds.sum() + np.concatenate([[0], np.cumsum(seconds)])).tolist())


def main() -> None:
    """Runs one baseline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=("plain", "vmapped", "bare"))
    options = w.parse_arguments(None, parser)
    torch.set_num_threads(1)
    if options.system == "bare":
        run_bare(options)
    else:
        run_in_this_process(options, build_plain_round if options.system == "plain" else build_vmapped_round)


if __name__ == "__main__":
    main()
