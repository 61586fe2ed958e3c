"""Computes the gradients of a client group: parameters [C, d] and a batch in, gradients [C, d] and losses [C] out.

One client goes through plain autograd, several go through ``torch.func.vmap``, traced once per batch shape.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fednar_ray.config.execution import Precision
from fednar_ray.core.errors import InconsistentModel, is_of_device, is_of_memory
from fednar_ray.core.flat_params import ParameterLayout, trainable
from fednar_ray.core.module_state import GivenState, copy_with_leaf_parameters, describe_draws
from fednar_ray.core.random import get_global_states
from fednar_ray.data.batches import BatchPlan
from fednar_ray.federated.addressed_draws import AddressedDraws
from fednar_ray.federated.precision import autocast, restore_float32
from fednar_ray.federated.recorder import without_compiler
from fednar_ray.federated.tracing import trace
from fednar_ray.models.tasks import Task

ROUNDING = 1e-3
"""Largest difference between a traced and an eager gradient, relative to its norm, that is taken for rounding."""


class Gradient(Protocol):
    """Computes the gradients of one client group at ``params`` [C, d], for the batch of one step."""

    params: Tensor  # [C, d], updated in place by the caller between steps

    def __call__(self, plan: BatchPlan, step: int) -> tuple[Tensor, Tensor]:
        """Returns the gradients [C, d] and the mean batch losses [C]."""


class SingleGradient:
    """Plain autograd for a group of one client. The module's parameters are views of a [1, d] tensor.

    Each parameter's gradient is copied to its place in the group's as soon as it is known, while it is in the cache.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: ParameterLayout,
        task: Task,
        device: torch.device,
        precision: Precision = "float32",
    ) -> None:
        self._mean_loss, self._precision = task.mean_loss, precision
        self.module = copy_with_leaf_parameters(module).to(device).train()
        self.given = GivenState(self.module)
        self.params = torch.zeros(1, layout.dimension, device=device)
        self._grad = torch.zeros_like(self.params)
        values, self._grads = layout.unflatten(self.params[0]), layout.unflatten(self._grad[0])
        self._missing: set[str] = set()  # the parameters without a gradient in this step, so far
        for name, parameter in zip(layout.names, trainable(self.module), strict=True):
            parameter.data, parameter.grad = values[name], None
            hook = partial(_collect_gradient, name, self._grads, self._missing)
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def __call__(self, plan: BatchPlan, step: int) -> tuple[Tensor, Tensor]:
        """Returns the gradient [1, d], in memory that the next call overwrites, and the loss [1]."""
        x, y = plan.unpadded_batch(step)
        self._missing.update(self._grads)
        with torch.enable_grad(), nullcontext() if plan.keys is None else AddressedDraws(plan.keys[step]):
            with autocast(self._precision, x.device):
                outputs = self.module(x)
            loss = self._mean_loss(restore_float32(outputs), y)
            loss.backward()  # type: ignore[no-untyped-call]
        for name in self._missing:
            self._grads[name].zero_()
        return self._grad, loss.detach().view(1)


def _collect_gradient(name: str, places: Mapping[str, Tensor], missing: set[str], parameter: Tensor) -> None:
    """Moves a parameter's gradient to its place; a part of it, if autograd runs in several parts, as with checkpoints.

    Args:
        name: The parameter's name.
        places: Where gradients go, by name.
        missing: The names of those that have none yet in this step.
        parameter: The parameter.
    """
    grad, parameter.grad = parameter.grad, None
    assert grad is not None
    grad = grad.to_dense() if grad.is_sparse else grad
    if name in missing:
        missing.remove(name)
        places[name].copy_(grad)
    else:
        places[name].add_(grad)


class GroupGradient:
    """``vmap`` of the gradient over C rows, traced at its first batch of each shape."""

    def __init__(
        self,
        module: nn.Module,
        layout: ParameterLayout,
        task: Task,
        device: torch.device,
        group_size: int,
        precision: Precision = "float32",
    ) -> None:
        self.module = copy_with_leaf_parameters(module).to(device).train()
        self.given = GivenState(self.module)
        self.params = torch.zeros(group_size, layout.dimension, device=device)
        row_loss = build_row_loss(self.module, layout, task, precision)
        self._vmapped = vmap(grad_and_value(row_loss), randomness="different")
        self._traced: dict[torch.Size, Callable[..., Any]] = {}

    def __call__(self, plan: BatchPlan, step: int) -> tuple[Tensor, Tensor]:
        """Returns the gradients [C, d] and losses [C]. Batches are padded to the largest; padding has weight 0."""
        arguments = self._gather(plan, step)
        program = self._find_program(arguments)
        with self._check_unchanged() if program == self._compute else nullcontext():
            grad, loss = program(*arguments)
        return grad, loss

    def check_vmap(self, x: Tensor) -> None:
        """Computes one gradient with one example per row.

        It raises if ``vmap`` cannot batch the module, or if the module draws random numbers that have no address.
        """
        rows = len(self.params)
        labels, weights = torch.zeros(rows, 1, dtype=torch.int64), torch.ones(rows, 1)
        self._compute(self.params, x[:rows].unsqueeze(1), labels, weights, torch.zeros(rows, 1, dtype=torch.int64))

    def verify(self, plan: BatchPlan, step: int) -> None:
        """Compares the traced gradient with one from the module's own forward, on the same batch and random draws.

        Rows that are not finite are left out.

        Raises:
            InconsistentModel: The gradients differ by more than rounding.
        """
        arguments = self._gather(plan, step)
        program = self._find_program(arguments)
        with self._check_unchanged():
            (wanted, _), (got, _) = self._compute(*arguments), program(*arguments)
        off = compute_distance(got, wanted)
        if off > ROUNDING:
            self._raise_inconsistent(
                f"the traced gradient differs from that of a fresh forward by {off:.2g} of its length"
            )

    def _gather(self, plan: BatchPlan, step: int) -> tuple[Tensor, ...]:
        batch = plan.batch(step)
        return (self.params, batch.x, batch.y, batch.weights, *(() if plan.keys is None else (plan.keys[step],)))

    def _compute(self, params: Tensor, x: Tensor, y: Tensor, weights: Tensor, *keys: Tensor) -> Any:
        """Returns the gradients and losses by the module's own forward. Random numbers have the addresses ``keys``."""
        with without_compiler(), AddressedDraws(*keys) if keys else nullcontext():
            return self._vmapped(params, x, y, weights)

    def _find_program(self, arguments: tuple[Tensor, ...]) -> Callable[..., Any]:
        """Returns the gradient function for batches of this shape, traced if possible.

        A module that cannot be traced runs its own forward in every step, in every placement. Only running out of
        memory depends on the placement, and that error is raised.
        """
        shape = arguments[2].shape
        if shape not in self._traced:
            with self._check_unchanged():
                self._traced[shape] = trace_if_possible(self._compute, *arguments)
        return self._traced[shape]

    @contextmanager
    def _check_unchanged(self) -> Iterator[None]:
        """Raises InconsistentModel if the module's forward changes Python state or draws from Python's generators."""
        before = get_global_states()
        yield
        problem = self.given.find_change() or describe_draws(before, get_global_states())
        if problem is not None:
            self._raise_inconsistent(problem)

    def _raise_inconsistent(self, problem: str) -> None:
        raise InconsistentModel(
            f"{type(self.module).__name__}: {problem}, which the trial before the first round did not show and a group "
            "of clients cannot follow; train clients one by one: execution.vectorize=1"
        )


def compute_distance(got: Tensor, wanted: Tensor) -> float:
    """Returns the largest ‖got − wanted‖ of the finite rows, relative to the largest ‖wanted‖. Both are [C, d]."""
    finite = torch.isfinite(wanted).all(dim=1) & torch.isfinite(got).all(dim=1)
    if not finite.any():
        return 0.0
    off, length = (torch.linalg.vector_norm(rows[finite], dim=1).max() for rows in (got - wanted, wanted))
    return float(off / length.clamp(min=1e-6))


def trace_if_possible(function: Callable[..., Any], *arguments: Tensor) -> Callable[..., Any]:
    """Returns a faster function for arguments of these shapes, or the function itself if it cannot be traced.

    Raises:
        Exception: A device failed or is out of memory, which depends on the placement.
    """
    try:
        return trace(function, *arguments)
    except Exception as error:
        if is_of_memory(error) or is_of_device(error):
            raise
        return function


def build_row_loss(
    module: nn.Module, layout: ParameterLayout, task: Task, precision: Precision
) -> Callable[..., Tensor]:
    """Builds the loss of one row: (parameters [d], x [B, …], y [B], weights [B]) → Σ weight·loss, []."""

    def loss(vector: Tensor, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        with autocast(precision, x.device):
            outputs = functional_call(module, layout.unflatten(vector), (x,))
        return task.weighted_loss(restore_float32(outputs), y, weights)

    return loss
