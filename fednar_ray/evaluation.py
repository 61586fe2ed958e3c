"""Parameters and data to metrics."""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fednar_ray.data.federation import Examples
from fednar_ray.vectors import BufferVector, FloatVector, load_buffers, load_parameters

BATCH = 1024


class Evaluator:
    """Accuracy and loss of a model on held-out examples, in the driver's process."""

    def __init__(self, model: nn.Module, splits: dict[str, Examples]) -> None:
        self._model = copy.deepcopy(model).cpu().eval()
        self._splits = {n: (torch.from_numpy(s.x), torch.from_numpy(s.y)) for n, s in splits.items()}

    def __call__(self, parameters: FloatVector, buffers: BufferVector) -> dict[str, float]:
        """``<split>_accuracy`` in 0..1 and ``<split>_loss``, the mean cross-entropy in nats, for each split."""
        load_parameters(self._model, parameters)
        load_buffers(self._model, buffers)
        metrics: dict[str, float] = {}
        for name, (x, y) in self._splits.items():
            metrics[f"{name}_accuracy"], metrics[f"{name}_loss"] = accuracy_and_loss(self._model, x, y)
        return metrics


@torch.no_grad()
def accuracy_and_loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Share of right answers and mean cross-entropy (nats) over x [N, …], y [N]."""
    right, loss = 0, 0.0
    for start in range(0, len(y), BATCH):
        outputs, labels = model(x[start : start + BATCH]), y[start : start + BATCH]
        right += int((outputs.argmax(dim=-1) == labels).sum())
        loss += float(cross_entropy(outputs, labels, reduction="sum"))
    return right / len(y), loss / len(y)
