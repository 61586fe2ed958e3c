"""The limit: bare processes of one thread, each training its part of the sampled clients and doing nothing else."""

import time

import numpy as np
import torch
import torch.multiprocessing as mp
import workloads as w


def train(name: str, cifar: str | None, count: int, rounds: int, together: "mp.Barrier", queue: "mp.Queue") -> None:
    """A process: ``count`` clients a round, and the seconds of every round."""
    torch.set_num_threads(1)
    workload, clients = w.WORKLOADS[name], w.clients(name, cifar)
    model = w.build_model(workload.model)
    for client in range(count):
        clients[client]  # made before the clock runs
    together.wait()
    seconds = []
    for _ in range(w.WARM_UP + rounds):
        start = time.perf_counter()
        for client in range(count):
            w.local_train(model, *clients[client], workload)
        seconds.append(time.perf_counter() - start)
    queue.put(seconds)


def main() -> None:
    """Run it."""
    options = w.arguments(__doc__)
    context = mp.get_context("spawn")
    together, queue = context.Barrier(options.workers), context.Queue()
    count = w.WORKLOADS[options.workload].sampled // options.workers
    work = (options.workload, options.cifar and str(options.cifar), count, options.rounds, together, queue)
    processes = [context.Process(target=train, args=work) for _ in range(options.workers)]
    for process in processes:
        process.start()
    seconds = np.max([queue.get() for _ in processes], axis=0)
    for process in processes:
        process.join()
    end = time.perf_counter()
    w.report((end - seconds.sum() + np.concatenate([[0], np.cumsum(seconds)])).tolist())


if __name__ == "__main__":
    main()
