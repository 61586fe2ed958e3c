"""An independent federated loop: float64, one client after the other, without any code of the package.

It is written from the papers' formulas. It checks what the golden trajectories do not contain: annealing of all three
rates, minibatch order, unequal shards, and the presets for which there is no reference program.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

BATCHES, SAMPLING = 4, 3  # the addresses of the package's generators


def build_generator(seed: int, purpose: int, round_index: int, client_id: int = 0) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, round_index, client_id)))


class Oracle:
    def __init__(self, settings: dict[str, Any], clients: list[tuple[np.ndarray, np.ndarray]], model: torch.nn.Module):
        self.s, self.clients = settings, [(torch.tensor(x).double(), torch.tensor(y)) for x, y in clients]
        self.model = copy.deepcopy(model).double()
        self.x = torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])
        self.n = np.array([len(y) for _, y in clients], dtype=np.float64)
        zero = torch.zeros_like(self.x)
        self.c, self.c_i = zero, [zero] * len(clients)  # SCAFFOLD's variates, or FedDyn's h_i
        self.m, self.h, self.r, self.previous = zero, zero, 0.0, None
        self.v = torch.full_like(zero, self.a("epsilon", 0.0) ** 2)
        if self.name == "fedadam_li2023":
            self.v = zero

    @property
    def name(self) -> str:
        return self.s["algorithm"]["name"]

    def a(self, key: str, default: float = 1.0) -> float:
        return self.s["algorithm"].get(key, default)

    def gradient(self, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        torch.nn.utils.vector_to_parameters(at, self.model.parameters())
        loss = cross_entropy(self.model(x), y)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(self.model.parameters()))])

    def batches(self, t: int, i: int, steps: int) -> list[np.ndarray]:
        n, size, draw, out = int(self.n[i]), self.s["batch_size"], build_generator(self.s["seed"], BATCHES, t, i), []
        while len(out) < steps:
            order = draw.permutation(n) if size < n else np.arange(n)
            out += [order[start : start + size] for start in range(0, n, size)]
        return out[:steps]

    def local(self, t: int, i: int) -> tuple[torch.Tensor, int]:
        reg = self.s["regularizer"]
        lr = self.a("local_lr") * self.a("local_lr_anneal") ** t
        decay = reg["weight_decay"] * reg["weight_decay_anneal"] ** t
        bound = reg["clip_bound"] * reg["clip_bound_anneal"] ** t
        per_epoch = int(np.ceil(self.n[i] / self.s["batch_size"]))
        steps = self.s.get("local_steps") or self.s["local_epochs"] * per_epoch
        w = self.x.clone()
        for batch in self.batches(t, i, steps):
            g = self.gradient(w, self.clients[i][0][batch], self.clients[i][1][batch])
            if self.name.startswith("fedprox"):
                g = g + self.a("mu") * (w - self.x)
            if self.name.startswith("scaffold"):
                g = g - self.c_i[i] + self.c
            if self.name == "feddyn":
                g = g + self.a("alpha") * (w - self.x) - self.c_i[i]
            if reg["name"] == "fednar":
                v = g + decay * w
                w = w - lr * v * min(1.0, bound / (float(v.norm()) + 1e-6))
            elif reg["name"] == "decoupled":
                w = w - lr * (g * min(1.0, bound / (float(g.norm()) + 1e-6)) + decay * w)
            else:
                w = w - lr * (g + (decay * w if reg["name"] == "coupled" else 0.0))
        delta = w - self.x
        self.changed[i] = self.c_i[i]
        if self.name.startswith("scaffold"):
            self.changed[i] = self.c_i[i] - self.c - delta / (steps * lr)
        if self.name == "feddyn":
            self.changed[i] = self.c_i[i] - self.a("alpha") * delta
        return delta, steps

    def round(self, t: int) -> torch.Tensor:
        count, self.changed = len(self.clients), {}
        sampled = sorted(
            build_generator(self.s["seed"], SAMPLING, t).choice(count, self.s["clients_per_round"], replace=False)
        )
        deltas = [self.local(t, i)[0] for i in sampled]
        for i, state in self.changed.items():
            self.c_i[i] = state
        self.c = sum(p * c for p, c in zip(self.n / self.n.sum(), self.c_i, strict=True))
        w = self.n[sampled] / self.n[sampled].sum()
        delta = sum(wi * d for wi, d in zip(w, deltas, strict=True))
        squares = float(sum(wi * d.norm() ** 2 for wi, d in zip(w, deltas, strict=True)))
        self.x = self.x + self.server(t, delta, squares, deltas)
        return self.x

    def server(self, t: int, delta: torch.Tensor, squares: float, deltas: list[torch.Tensor]) -> torch.Tensor:
        name, lr, beta = self.name, self.a("server_lr"), self.a("beta", 0.9)
        eps, clients = self.a("epsilon", 0.0) * self.a("epsilon_anneal") ** t, len(deltas)
        if name == "feddyn":
            total = sum(deltas)
            self.h = self.h - self.a("alpha") / len(self.clients) * total
            return total / clients - self.h / self.a("alpha")
        if name == "fedavgm":
            self.m = delta + beta * self.m
            return lr * self.m
        if name == "fedavgm+exp":
            self.r, self.m = squares + 0.5 * beta * self.r, delta + beta * self.m
            return max(1.0, 0.5 * self.r / (float(self.m.norm()) ** 2 + clients * eps)) * self.m
        if name.endswith("exp"):
            return max(1.0, 0.5 * squares / (float(delta.norm()) ** 2 + clients * eps)) * delta
        if name == "fedadam_li2023":
            self.m = 0.1 * delta + 0.9 * self.m
            self.v = 0.99 * self.v + 0.01 * self.m**2
            return lr * (self.m / 0.1) / (self.v / 0.01 + eps).sqrt()
        if name in ("fedadam", "fedyogi", "fedadagrad"):
            beta1 = 0.0 if name == "fedadagrad" else self.a("beta1", 0.9)
            self.m = beta1 * self.m + (1 - beta1) * delta
            square, rate = delta**2, 1 - self.a("beta2", 0.99)
            if name == "fedadam":
                self.v = (1 - rate) * self.v + rate * square
            elif name == "fedyogi":
                self.v = self.v - rate * square * torch.sign(self.v - square)
            else:
                self.v = self.v + square
            return lr * self.m / (self.v.sqrt() + eps)
        return lr * delta
