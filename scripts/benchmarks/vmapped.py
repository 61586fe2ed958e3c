"""The sampled clients as one vmapped batch in one process, no framework."""

import random
import time

import torch
import workloads as w
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy


def main() -> None:
    """Run it."""
    options = w.arguments(__doc__)
    torch.set_num_threads(1)
    workload, clients = w.WORKLOADS[options.workload], w.clients(options.workload, options.cifar)
    model, rng = w.build_model(workload.model), random.Random(0)
    rows = [clients[client] for client in range(workload.clients)]
    inputs, labels = torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])
    state = {name: value.detach().clone() for name, value in model.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(functional_call(model, parameters, (x,)), y)

    gradient = vmap(grad(loss))
    marks = [time.perf_counter()]
    for _ in range(w.WARM_UP + options.rounds):
        sampled = torch.tensor(rng.sample(range(workload.clients), workload.sampled))
        x, y = inputs[sampled], labels[sampled]
        group = {name: value.expand(workload.sampled, *value.shape).clone() for name, value in state.items()}
        for start in range(0, workload.rows, workload.batch):
            batch = slice(start, start + workload.batch)
            for name, value in gradient(group, x[:, batch], y[:, batch]).items():
                group[name].sub_(value, alpha=w.LR)
        state = {name: value.mean(0) for name, value in group.items()}
        marks.append(time.perf_counter())
    w.report(marks, w.flat(list(state.values())), options.parameters)


if __name__ == "__main__":
    main()
