"""FedNAR's step as a ``torch.optim.Optimizer``: the plug-in alone, for anyone's own training loop."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fednar_ray.algorithms.regularizers import TINY


class FedNARSGD(Optimizer):
    """SGD whose gradient and weight decay are bounded by one norm (Li et al., NeurIPS 2023, Algorithm 1).

    v = g + λ·x;  s = min(1, A / (‖v‖₂ + 1e-6));  x ← x − η·s·v.  One norm over every parameter with a
    gradient, in all groups.  Sparse gradients count as dense ones, and steps of float16 and bfloat16
    parameters are computed in float32.  ``lr`` (η), ``weight_decay`` (λ) and ``clip_bound`` (A) live in
    ``param_groups``, so they can be annealed from round to round; λ and η may differ by group, A may not.
    ``last_scale`` holds s of the last step, a tensor [] (below 1: the clip fired).
    Raises ValueError for lr or clip_bound ≤ 0, weight_decay < 0, or bounds that differ by group.
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
        """Add a group. Raises ValueError for scalars out of range."""
        group = {**self.defaults, **param_group}
        if not group["lr"] > 0 or not group["clip_bound"] > 0 or not group["weight_decay"] >= 0:
            raise ValueError(
                f"lr {group['lr']} and clip_bound {group['clip_bound']} must be above 0, "
                f"weight_decay {group['weight_decay']} not below"
            )
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; with a ``closure``, its loss is computed first and returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        directions = [(group["lr"], p, self._direction(group, p)) for group, p in self._with_gradient()]
        if directions:
            self.last_scale = _clip_scale([v for _, _, v in directions], self._bound())
        for lr, parameter, v in directions:
            parameter.sub_(lr * self.last_scale.to(v.device) * v)
        return loss

    def _with_gradient(self) -> Iterable[tuple[dict[str, Any], nn.Parameter]]:
        return ((group, p) for group in self.param_groups for p in group["params"] if p.grad is not None)

    @staticmethod
    def _direction(group: dict[str, Any], parameter: nn.Parameter) -> Tensor:
        """v = g + λ·x as a dense tensor, of at least float32."""
        grad = parameter.grad
        assert grad is not None
        dense = grad if grad.layout == torch.strided else grad.to_dense()
        v: Tensor = _widened(dense) + group["weight_decay"] * _widened(parameter)
        return v

    def _bound(self) -> float:
        bounds = {float(group["clip_bound"]) for group in self.param_groups}
        if len(bounds) > 1:
            raise ValueError(f"one norm has one bound; the groups' clip_bound differ: {sorted(bounds)}")
        return bounds.pop()


def _widened(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, and other types as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _clip_scale(vectors: list[Tensor], bound: float) -> Tensor:
    """s = min(1, A / (‖v‖₂ + 1e-6)) over all vectors together, as a tensor []."""
    norm = _norm(vectors, torch.float32)
    scale = (bound / (norm + TINY)).clamp(max=1.0)
    # squares exceed float32 from 1.8e19 on; chosen on the device, so that no step waits for it
    wide_scale = (bound / (_norm(vectors, torch.float64) + TINY)).clamp(max=1.0)
    return torch.where(norm.isfinite(), scale, wide_scale.to(scale.dtype))


def _norm(vectors: list[Tensor], least: torch.dtype) -> Tensor:
    """‖v‖₂ over all vectors together, a tensor [], in ``least`` or their own type, whichever is wider."""
    norms = [torch.linalg.vector_norm(v, dtype=torch.promote_types(v.dtype, least)) for v in vectors]
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    return total
