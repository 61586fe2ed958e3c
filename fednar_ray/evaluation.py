"""Parameters and examples to metrics: actors score examples in large batches, the driver adds up.

Scores come back example by example, in the order of the split, so a metric does not depend on who scored what.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fednar_ray.data.federation import Examples, Federation, Shards
from fednar_ray.messages import Readout, Scores, ScoringTask
from fednar_ray.transfers import on_device
from fednar_ray.vectors import load_buffers, load_parameters

BATCH = 512  # examples a forward pass
TASK_BATCHES = 4  # a call: enough work to outweigh its message, and calls enough to keep actors busy
CLIENTS = "clients"

Score = Callable[[Readout, Sequence[ScoringTask]], Iterator[Scores]]


class Scorer:
    """Scores examples on one device; the model and the splits stay there."""

    def __init__(self, model: nn.Module, shards: Shards, splits: Mapping[str, Examples], device: torch.device) -> None:
        self._model = copy.deepcopy(model).to(device).eval()
        self._shards, self._splits, self._device = shards, {**splits, CLIENTS: shards.examples}, device
        self._resident: dict[str, tuple[Tensor, Tensor]] = {}
        self._loaded: int | None = None

    def score(self, readout: Readout, task: ScoringTask) -> Scores:
        """The task's examples under the readout, batch by batch."""
        if self._loaded != readout.round_index:
            load_parameters(self._model, readout.parameters)
            load_buffers(self._model, readout.buffers)
            self._loaded = readout.round_index
        x, y = self._rows(task)
        parts = [score(self._model, x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(y), BATCH)]
        right, losses = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
        return Scores(right=right, losses=losses)

    def _rows(self, task: ScoringTask) -> tuple[Tensor, Tensor]:
        if task.split not in self._resident:
            split = self._splits[task.split]
            self._resident[task.split] = on_device(split.x, self._device), on_device(split.y, self._device)
        start, stop = task.start, task.stop
        if task.client_id is not None:
            starts, sizes = self._shards.rows((task.client_id,))
            start, stop = int(starts[0]), int(starts[0] + sizes[0])
        x, y = self._resident[task.split]
        return x[start:stop], y[start:stop]


@torch.no_grad()
def score(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Which of x [n, …] are classified as y [n] says, and each one's cross-entropy (nats): [n] bool, [n]."""
    outputs = model(x)
    return outputs.argmax(dim=-1) == y, cross_entropy(outputs, y, reduction="none")


class Evaluation:
    """The metrics of a readout; ``by_client``: an actor scores its own client's examples and no other's."""

    def __init__(self, federation: Federation, score: Score, *, federated: bool, by_client: bool) -> None:
        self._score = score
        self._offsets = federation.shards.offsets
        self._tasks = [task for name, split in federation.splits().items() for task in _ranges(name, len(split))]
        if federated:
            self._tasks += self._of_clients() if by_client else _ranges(CLIENTS, len(federation.shards.examples))

    def _of_clients(self) -> list[ScoringTask]:
        bounds = zip(self._offsets[:-1].tolist(), self._offsets[1:].tolist(), strict=True)
        return [ScoringTask(split=CLIENTS, start=a, stop=b, client_id=i) for i, (a, b) in enumerate(bounds) if b > a]

    def __call__(self, readout: Readout) -> dict[str, float]:
        """``<split>_accuracy`` in 0..1 and ``<split>_loss`` (nats); of clients the figures of ``across_clients``."""
        gathered: dict[str, list[Scores]] = {}
        for task, scores in zip(self._tasks, self._score(readout, self._tasks), strict=True):
            gathered.setdefault(task.split, []).append(scores)
        metrics: dict[str, float] = {}
        for name, parts in gathered.items():
            right = np.concatenate([part.right for part in parts])
            if name == CLIENTS:
                metrics |= across_clients(right, self._offsets)
            else:
                metrics[f"{name}_accuracy"] = float(right.mean())
                metrics[f"{name}_loss"] = float(np.concatenate([p.losses for p in parts]).mean(dtype=np.float64))
        return metrics


def _ranges(split: str, examples: int) -> list[ScoringTask]:
    length = BATCH * TASK_BATCHES
    starts = range(0, examples, length)
    return [ScoringTask(split=split, start=start, stop=min(start + length, examples)) for start in starts]


def across_clients(right: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int64]) -> dict[str, float]:
    """The mean over clients of their accuracies, and over the worst tenth of them (at least one client).

    ``right`` [Σ n_i] in the order of clients, ``offsets`` [N + 1]; clients without examples do not count.
    """
    sums = np.concatenate([[0], np.cumsum(right)])[offsets]
    sizes = np.diff(offsets)
    accuracies = np.sort(np.diff(sums)[sizes > 0] / sizes[sizes > 0])
    worst = accuracies[: max(1, len(accuracies) // 10)]
    return {"client_accuracy_mean": float(accuracies.mean()), "client_accuracy_worst_decile": float(worst.mean())}
