"""DP-SGD's gradient of a silo: the gradients of single examples are clipped, and noise is added to their sum.

With the bound C, the multiplier z and B examples per step on average, at batches that were drawn by Poisson sampling:

    g = (Σ g_j · min(1, C/‖g_j‖) + N(0, z²·C²·I)) / B

Whatever is computed from g afterwards, such as FedNAR's clipping and weight decay, costs no more privacy.
Source: Abadi et al., CCS 2016, Algorithm 1.
"""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from fednar_ray.config.execution import Precision
from fednar_ray.core.flat_params import ParameterLayout
from fednar_ray.core.module_state import GivenState, copy_with_leaf_parameters
from fednar_ray.data.batches import BatchPlan
from fednar_ray.federated.addressed_draws import AddressedDraws
from fednar_ray.federated.gradients import build_row_loss, trace_if_possible
from fednar_ray.federated.recorder import without_compiler
from fednar_ray.models.tasks import Task
from fednar_ray.privacy.mechanism import ROUNDING


class PrivateGradient:
    """DP-SGD's gradient of one client. It is traced once, for batches of ``physical_batch`` examples.

    Larger draws are split, and smaller ones padded, so none is truncated. The loss that it returns is always zero: the
    mean loss of a batch would be released without noise.

    Args:
        module: The network.
        layout: Its trainable parameters as a vector of d numbers.
        task: The loss.
        device: Where to compute.
        norm: C, the largest norm of an example's gradient.
        physical_batch: How many examples' gradients are in memory at a time, [physical_batch, d].
        precision: In what gradients are computed.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: ParameterLayout,
        task: Task,
        device: torch.device,
        *,
        norm: float,
        physical_batch: int,
        precision: Precision = "float32",
    ) -> None:
        self.module = copy_with_leaf_parameters(module).to(device).train()
        self.given = GivenState(self.module)
        self.params = torch.zeros(1, layout.dimension, device=device)
        self._loss = torch.zeros(1, device=device)
        self._norm, self._rows = norm, physical_batch
        self._noise: Callable[[], Tensor] = lambda: torch.zeros_like(self.params)
        self._expected = float(physical_batch)
        self._gradients = vmap(
            grad(build_row_loss(self.module, layout, task, precision)), in_dims=(None, 0, 0, 0), randomness="different"
        )
        self._program: Callable[..., Tensor] | None = None

    def begin(self, generator: np.random.Generator, noise_multiplier: float, expected: float) -> None:
        """Sets what the steps of a round need.

        Args:
            generator: Draws the noise of the round's steps, one after the other.
            noise_multiplier: z.
            expected: B, the number of examples that a step has on average. The sum is divided by it.
        """
        scale, shape = np.float32(noise_multiplier * self._norm), self.params.shape

        def draw() -> Tensor:
            return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32) * scale).to(self.params.device)

        self._noise, self._expected = draw, expected

    def __call__(self, plan: BatchPlan, step: int) -> tuple[Tensor, Tensor]:
        """Returns the noised gradient [1, d] and a zero in place of the loss, [1]."""
        x, y = plan.unpadded_batch(step)
        keys = () if plan.keys is None else (plan.keys[step],)
        total = self._noise()
        for start in range(0, len(y), self._rows):
            arguments = self._pad(x[start : start + self._rows], y[start : start + self._rows])
            total += self._find_program(*arguments, *keys)(self.params, *arguments, *keys)
        return total / self._expected, self._loss

    def _pad(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pads examples to ``physical_batch`` by repeating the first one, with weight 0."""
        index = torch.zeros(self._rows, dtype=torch.int64, device=x.device)
        index[: len(y)] = torch.arange(len(y), device=x.device)
        weights = (torch.arange(self._rows, device=x.device) < len(y)).to(self.params.dtype)
        return x[index], y[index], weights

    def _find_program(self, *arguments: Tensor) -> Callable[..., Tensor]:
        if self._program is None:
            self._program = trace_if_possible(self._sum_clipped, self.params, *arguments)
        return self._program

    def _sum_clipped(self, params: Tensor, x: Tensor, y: Tensor, weights: Tensor, *keys: Tensor) -> Tensor:
        """Returns Σ g_j·min(1, C/‖g_j‖), [1, d]. Gradients that are not finite count as zero."""
        with without_compiler(), AddressedDraws(*keys) if keys else nullcontext():
            gradients = self._gradients(params[0], x.unsqueeze(1), y.unsqueeze(1), weights.unsqueeze(1))
        norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True, dtype=torch.float64)
        factors = (self._norm * (1 - ROUNDING) / norms).clamp(max=1.0).to(gradients.dtype)
        return torch.where(torch.isfinite(norms), gradients * factors, 0.0).sum(dim=0, keepdim=True)
