"""FedNAR's co-clipping, and the baselines that it is compared with.

A regularizer turns a client's loss gradient g into the direction of its local step x ← x − η_t·direction. It decides
two things: how weight decay λ_t·x enters, and whether the length of the step is bounded by A_t. If the algorithm
corrects gradients (FedProx, SCAFFOLD, FedDyn), g is the corrected gradient.

    ==============  ===============================  =============================
    name            direction                        weight decay that takes effect
    ==============  ===============================  =============================
    ``fednar``      s(v)·v  with  v = g + λ_t·x      s(v)·λ_t
    ``decoupled``   s(g)·g + λ_t·x                   λ_t
    ``coupled``     g + λ_t·x                        λ_t
    ``none``        g                                0
    ==============  ===============================  =============================

    s(u) = min(1, A_t / (‖u‖₂ + 1e-6))

There is one norm per client, over all of its trainable parameters. All functions work over the last axis: one row per
client, [C, d].

Source: Li et al., *FedNAR: Federated Optimization with Normalized Annealing Regularization*, NeurIPS 2023, Algorithm 1.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Scalar = float | Tensor
"""One value for all clients, or a tensor [C, 1] with one value per client."""

TINY = 1e-6  # keeps A/‖v‖ finite, as in the authors' program


class Direction(NamedTuple):
    """The direction of a regularized step, before it is multiplied by the learning rate.

    Attributes:
        step: The direction, [C, d].
        scale: s, [C, 1]. It is below 1 where the step was clipped.
        decay: The weight decay that took effect, [C, 1].
        norm: The norm that the bound was compared with, [C, 1]. Where nothing is bounded, the norm of the step.
    """

    step: Tensor
    scale: Tensor
    decay: Tensor
    norm: Tensor


Regularizer = Callable[[Tensor, Tensor, Scalar, Scalar], Direction]
"""(gradient [C, d], parameters [C, d], weight decay λ_t, clip bound A_t) → the direction of the step."""


def compute_norms(vectors: Tensor) -> Tensor:
    """Computes ‖v‖₂ of each row: [C, d] → [C, 1]."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return norms


def compute_clip_scale(norm: Tensor, clip_bound: Scalar) -> Tensor:
    """Computes s = min(1, A / (‖v‖₂ + 1e-6)).

    Args:
        norm: ‖v‖₂, [C, 1].
        clip_bound: A, one value or [C, 1].

    Returns:
        The factor that shortens v to at most A, [C, 1].
    """
    # A times the reciprocal: the same bits for a float A and for a tensor
    return torch.clamp((norm + TINY).reciprocal() * clip_bound, max=1.0)


def _add_decay(vectors: Tensor, params: Tensor, weight_decay: Scalar) -> Tensor:
    """Returns v + λ·x as new vectors [C, d], in one pass over the memory."""
    if isinstance(weight_decay, Tensor):
        return torch.addcmul(vectors, params, weight_decay)
    return torch.add(vectors, params, alpha=weight_decay)


def co_clip(grad: Tensor, params: Tensor, weight_decay: Scalar, clip_bound: Scalar) -> Direction:
    """Clips gradient and weight decay together by the norm of their sum (FedNAR).

    Weight decay pulls every client towards zero. In heterogeneous federations this pull disagrees with what the clients
    jointly minimize. Co-clipping bounds the whole step, so the decay weakens by the same factor as the gradient:

        v = g + λ_t·x,   s = min(1, A_t / (‖v‖₂ + 1e-6)),   direction = s·v.

    A step is therefore never longer than η_t·A_t, and the weight decay that takes effect is s·λ_t. If no step is
    clipped, FedNAR equals ``coupled``.

    Args:
        grad: Loss gradients g, one row per client, [C, d].
        params: Current parameters x, [C, d].
        weight_decay: λ_t, one value or one per client, [C, 1].
        clip_bound: A_t, one value or one per client, [C, 1].

    Returns:
        The direction s·v, the scale s, the effective weight decay s·λ_t, and the norm ‖v‖₂ before clipping.

    Source: Li et al., NeurIPS 2023, Algorithm 1.

    Examples:
        v = [3, 0] + 0.05·[0, −80] = [3, −4] has norm 5, and the bound 2.5 halves it:

        >>> grad, params = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, -80.0]])
        >>> co_clip(grad, params, weight_decay=0.05, clip_bound=2.5).step
        tensor([[ 1.5000, -2.0000]])
    """
    v = _add_decay(grad, params, weight_decay)
    norm = compute_norms(v)
    scale = compute_clip_scale(norm, clip_bound)
    return Direction(v.mul_(scale), scale, scale * weight_decay, norm)


def clip_then_decay(grad: Tensor, params: Tensor, weight_decay: Scalar, clip_bound: Scalar) -> Direction:
    """Clips the gradient, then adds the full weight decay: direction = s(g)·g + λ_t·x (``decoupled``).

    This is the usual baseline. The decay is not bounded, so it dominates where gradients are clipped strongly.
    Arguments and results are those of ``co_clip``; the norm is ‖g‖₂.
    """
    norm = compute_norms(grad)
    scale = compute_clip_scale(norm, clip_bound)
    step = _add_decay(scale * grad, params, weight_decay)
    return Direction(step, scale, torch.ones_like(scale) * weight_decay, norm)


def decay_only(grad: Tensor, params: Tensor, weight_decay: Scalar, clip_bound: Scalar) -> Direction:
    """Adds weight decay and clips nothing: direction = g + λ_t·x (``coupled``), plain SGD with weight decay.

    Arguments and results are those of ``co_clip``; ``clip_bound`` is ignored.
    """
    v = _add_decay(grad, params, weight_decay)
    norm = compute_norms(v)
    ones = torch.ones_like(norm)
    return Direction(v, ones, ones * weight_decay, norm)


def no_regularization(grad: Tensor, params: Tensor, weight_decay: Scalar, clip_bound: Scalar) -> Direction:
    """Returns the gradient itself: direction = g (``none``), plain SGD.

    Arguments and results are those of ``co_clip``; ``weight_decay`` and ``clip_bound`` are ignored.
    """
    norm = compute_norms(grad)
    return Direction(grad, torch.ones_like(norm), torch.zeros_like(norm), norm)


REGULARIZERS: Mapping[str, Regularizer] = {
    "fednar": co_clip,
    "decoupled": clip_then_decay,
    "coupled": decay_only,
    "none": no_regularization,
}
"""By ``regularizer.name``."""

CLIPPING = frozenset({"fednar", "decoupled"})
"""The names of those that shorten what exceeds the clip bound A. The others ignore A."""

GRADIENT_ALONE = frozenset({"decoupled", "none"})
"""The names of those that measure the norm of the gradient without the weight decay."""
