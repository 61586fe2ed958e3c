"""FedNAR's local step as a ``torch.optim.Optimizer``, for use in any training loop."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fednar_ray.algorithms.regularizers import TINY


class FedNARSGD(Optimizer):
    """SGD that clips gradient and weight decay together by the norm of their sum (FedNAR).

    The step is v = g + λ·x;  s = min(1, A / (‖v‖₂ + 1e-6));  x ← x − η·s·v. The norm is taken over all parameters with
    a gradient, in all parameter groups. Sparse gradients are converted to dense ones, and the steps of float16 and
    bfloat16 parameters are computed in float32.

    ``lr``, ``weight_decay`` and ``clip_bound`` are in ``param_groups``, so a schedule can change them. ``lr`` and
    ``weight_decay`` may differ between groups, but ``clip_bound`` may not.

    Args:
        params: The parameters, or dictionaries of parameter groups.
        lr: Learning rate η, above 0.
        weight_decay: λ, at least 0.
        clip_bound: A, above 0. ‖s·v‖₂ never exceeds it.

    Attributes:
        last_scale: The scale s of the last step, a tensor []. Below 1 the step was clipped.

    Raises:
        ValueError: A value is out of range. ``step`` raises it if ``clip_bound`` differs between groups.

    Source: Li et al., NeurIPS 2023, Algorithm 1.

    Examples:
        >>> optimizer = FedNARSGD(model.parameters(), lr=0.01, weight_decay=0.1, clip_bound=10.0)
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 0.1,
        weight_decay: float = 0.0,
        clip_bound: float = 10.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "clip_bound": clip_bound})
        self.last_scale = torch.ones(())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group. Raises ValueError if one of its values is out of range."""
        group = {**self.defaults, **param_group}
        if not group["lr"] > 0 or not group["clip_bound"] > 0 or not group["weight_decay"] >= 0:
            raise ValueError(
                f"lr {group['lr']} and clip_bound {group['clip_bound']} must be above 0, "
                f"and weight_decay {group['weight_decay']} must be at least 0"
            )
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step.

        Args:
            closure: Computes the loss and its gradients before the step.

        Returns:
            The closure's loss; None without a closure.

        Raises:
            ValueError: ``clip_bound`` differs between parameter groups.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        directions = [(group["lr"], p, self._compute_direction(group, p)) for group, p in self._iter_parameters()]
        if directions:
            self.last_scale = _compute_clip_scale([v for _, _, v in directions], self._get_clip_bound())
        for lr, parameter, v in directions:
            parameter.sub_(lr * self.last_scale.to(v.device) * v)
        return loss

    def _iter_parameters(self) -> Iterable[tuple[dict[str, Any], nn.Parameter]]:
        """Yields the parameters that have a gradient, each with its group."""
        return ((group, p) for group in self.param_groups for p in group["params"] if p.grad is not None)

    @staticmethod
    def _compute_direction(group: dict[str, Any], parameter: nn.Parameter) -> Tensor:
        """Computes v = g + λ·x as a dense tensor in float32 or wider."""
        grad = parameter.grad
        assert grad is not None
        dense = grad if grad.layout == torch.strided else grad.to_dense()
        v: Tensor = _widen(dense) + group["weight_decay"] * _widen(parameter)
        return v

    def _get_clip_bound(self) -> float:
        bounds = {float(group["clip_bound"]) for group in self.param_groups}
        if len(bounds) > 1:
            raise ValueError(f"clip_bound must be the same in all parameter groups, not {sorted(bounds)}")
        return bounds.pop()


def _widen(tensor: Tensor) -> Tensor:
    """Converts float16 and bfloat16 to float32, and returns other types unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _compute_clip_scale(vectors: list[Tensor], bound: float) -> Tensor:
    """Computes s = min(1, A / (‖v‖₂ + 1e-6)) for all vectors together, as a tensor []."""
    norm = _compute_norm(vectors, torch.float32)
    scale = (bound / (norm + TINY)).clamp(max=1.0)
    # squares overflow float32 from 1.8e19 on; torch.where chooses on the device, so that the host need not wait
    wide_scale = (bound / (_compute_norm(vectors, torch.float64) + TINY)).clamp(max=1.0)
    return torch.where(norm.isfinite(), scale, wide_scale.to(scale.dtype))


def _compute_norm(vectors: list[Tensor], least: torch.dtype) -> Tensor:
    """Computes ‖v‖₂ of all vectors together, as a tensor [], in ``least`` or the vectors' type if that is wider."""
    norms = [torch.linalg.vector_norm(v, dtype=torch.promote_types(v.dtype, least)) for v in vectors]
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    return total
