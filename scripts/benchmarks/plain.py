"""The plain loop: one client after the other in one process, no framework."""

import random
import time

import torch
import workloads as w


def main() -> None:
    """Run it."""
    options = w.arguments(__doc__)
    torch.set_num_threads(1)
    workload, clients = w.WORKLOADS[options.workload], w.clients(options.workload, options.cifar)
    model, rng = w.build_model(workload.model), random.Random(0)
    state = [parameter.detach().clone() for parameter in model.parameters()]
    marks = [time.perf_counter()]
    for _ in range(w.WARM_UP + options.rounds):
        total = [torch.zeros_like(value) for value in state]
        for client in rng.sample(range(workload.clients), workload.sampled):
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), state, strict=True):
                    parameter.copy_(value)
            w.local_train(model, *clients[client], workload)
            with torch.no_grad():
                for sums, parameter in zip(total, model.parameters(), strict=True):
                    sums.add_(parameter, alpha=1 / workload.sampled)
        state = total
        marks.append(time.perf_counter())
    w.report(marks, w.flat(state), options.parameters)


if __name__ == "__main__":
    main()
