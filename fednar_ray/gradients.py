"""Gradients of a cohort: parameters [C, d] and a batch in, gradients [C, d] and losses [C] out.

One client goes through plain autograd, several through ``torch.func.vmap``, traced once for each shape.
"""

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fednar_ray.data.batches import Batch, BatchPlan
from fednar_ray.tasks import Task
from fednar_ray.tracing import traced
from fednar_ray.vectors import ParameterLayout, trainable


class Gradient(Protocol):
    """The gradient of one cohort's losses at ``params`` [C, d], for the batch of one step."""

    params: Tensor  # [C, d], updated in place by the caller between steps

    def __call__(self, plan: BatchPlan, step: int) -> tuple[Tensor, Tensor]:
        """Gradients [C, d] and mean batch losses [C]."""


class SingleGradient:
    """Plain autograd for a cohort of one: the module's parameters and gradients are views of [1, d] buffers."""

    def __init__(self, module: nn.Module, layout: ParameterLayout, task: Task, device: torch.device) -> None:
        self._mean_loss = task.mean_loss
        self.module = copy.deepcopy(module).to(device).train()
        self.params = torch.zeros(1, layout.dimension, device=device)
        self._grad = torch.zeros_like(self.params)
        values, grads = layout.unflatten(self.params[0]), layout.unflatten(self._grad[0])
        for name, parameter in zip(layout.names, trainable(self.module), strict=True):
            parameter.data, parameter.grad = values[name], grads[name]

    def __call__(self, plan: BatchPlan, step: int) -> tuple[Tensor, Tensor]:
        """The gradient lives in a buffer that the next call overwrites."""
        x, y = plan.single(step)
        self._grad.zero_()
        with torch.enable_grad():
            loss = self._mean_loss(self.module(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
        return self._grad, loss.detach().view(1)


class CohortGradient:
    """``vmap`` of the gradient over C rows, traced at its first batch of each shape."""

    def __init__(
        self, module: nn.Module, layout: ParameterLayout, task: Task, device: torch.device, width: int
    ) -> None:
        self.module = copy.deepcopy(module).to(device).train()
        self.params = torch.zeros(width, layout.dimension, device=device)
        self._vmapped = vmap(grad_and_value(_row_loss(self.module, layout, task)), randomness="different")
        self._traced: dict[torch.Size, Callable[..., Any]] = {}

    def __call__(self, plan: BatchPlan, step: int) -> tuple[Tensor, Tensor]:
        """Rows with fewer examples than the widest are padded; padding weighs nothing."""
        batch = plan.batch(step)
        grad, loss = self._prepared(batch)(self.params, batch.x, batch.y, batch.weights)
        return grad, loss

    def try_out(self, x: Tensor) -> None:
        """Call with one example a row, to learn whether the module can be batched."""
        rows = len(self.params)
        labels, weights = torch.zeros(rows, 1, dtype=torch.int64), torch.ones(rows, 1)
        with torch.random.fork_rng(devices=[]):
            self._vmapped(self.params, x[:rows].unsqueeze(1), labels, weights)

    def _prepared(self, batch: Batch) -> Callable[..., Any]:
        """The gradient for batches of this shape, traced where it can be. Tracing draws no random numbers."""
        if batch.y.shape not in self._traced:
            arguments = (self.params, batch.x, batch.y, batch.weights)
            with torch.random.fork_rng():
                try:
                    self._traced[batch.y.shape] = traced(self._vmapped, *arguments)
                except Exception:  # noqa: BLE001 - what cannot be traced is only slower
                    self._traced[batch.y.shape] = self._vmapped
        return self._traced[batch.y.shape]


def _row_loss(module: nn.Module, layout: ParameterLayout, task: Task) -> Callable[..., Tensor]:
    def loss(vector: Tensor, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        return task.weighted_loss(functional_call(module, layout.unflatten(vector), (x,)), y, weights)

    return loss
