"""FedNAR's co-clipping and its baselines (Li et al., *FedNAR*, NeurIPS 2023, Algorithm 1).

Each takes the loss gradient g [C, d] (a backbone's correction already inside), the parameters x [C, d],
the weight decay λ_t and the bound A_t (floats, or [C, 1] where rows differ), and gives the direction of
the step x ← x − η_t·direction.  One norm a row, over all trainable parameters.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Scalar = float | Tensor
"""A float, or a tensor [C, 1] with one value a row."""

TINY = 1e-6  # keeps A/‖v‖ finite, as in the authors' program


class Direction(NamedTuple):
    """A regularized step of unit learning rate."""

    step: Tensor  # [C, d]
    scale: Tensor  # [C, 1] s, below 1 where the clip fired
    decay: Tensor  # [C, 1] the weight decay that took effect
    norm: Tensor  # [C, 1] ‖v‖₂ of what is bounded, before it is; where nothing is, of the step


Regularizer = Callable[[Tensor, Tensor, Scalar, Scalar], Direction]


def norms(vectors: Tensor) -> Tensor:
    """‖v‖₂ of each row: [C, d] → [C, 1]."""
    found: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return found


def clip_scale(norm: Tensor, bound: Scalar) -> Tensor:
    """s = min(1, A / (‖v‖₂ + 1e-6)), for norms [C, 1]."""
    return torch.clamp(bound / (norm + TINY), max=1.0)


def fednar(grad: Tensor, params: Tensor, weight_decay: Scalar, bound: Scalar) -> Direction:
    """FedNAR: gradient and decay bounded together.  v = g + λx;  direction = s(v)·v;  decay s·λ."""
    v = grad + weight_decay * params
    norm = norms(v)
    scale = clip_scale(norm, bound)
    return Direction(scale * v, scale, scale * weight_decay, norm)


def decoupled(grad: Tensor, params: Tensor, weight_decay: Scalar, bound: Scalar) -> Direction:
    """The usual baseline: the gradient clipped, then the decay added.  direction = s(g)·g + λx."""
    norm = norms(grad)
    scale = clip_scale(norm, bound)
    return Direction(scale * grad + weight_decay * params, scale, torch.ones_like(scale) * weight_decay, norm)


def coupled(grad: Tensor, params: Tensor, weight_decay: Scalar, bound: Scalar) -> Direction:
    """Plain SGD with weight decay, nothing clipped.  direction = g + λx."""
    v = grad + weight_decay * params
    norm = norms(v)
    ones = torch.ones_like(norm)
    return Direction(v, ones, ones * weight_decay, norm)


def none(grad: Tensor, params: Tensor, weight_decay: Scalar, bound: Scalar) -> Direction:
    """Plain SGD, no decay and nothing clipped.  direction = g."""
    norm = norms(grad)
    return Direction(grad, torch.ones_like(norm), torch.zeros_like(norm), norm)


REGULARIZERS: Mapping[str, Regularizer] = {
    "fednar": fednar,
    "decoupled": decoupled,
    "coupled": coupled,
    "none": none,
}
