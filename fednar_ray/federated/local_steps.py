"""Takes the local steps of a client group: gradient, client correction, regularizer, and the step itself."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.algorithms.client_corrections import ClientCorrection, Correction, LocalRound, keep_gradient
from fednar_ray.algorithms.regularizers import Regularizer, Scalar
from fednar_ray.core.blocks import cut_columns
from fednar_ray.core.schedules import RoundScalars
from fednar_ray.core.transfers import on_device
from fednar_ray.data.batches import BatchPlan
from fednar_ray.federated.gradients import Gradient

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StepSums:
    """Sums over a group's local steps, one number per client, [C] each."""

    loss: FloatArray
    clipped: FloatArray
    decay: FloatArray
    norm: FloatArray
    norms: FloatArray  # [C, K] of every step; those after a client's last step mean nothing

    @classmethod
    def of(cls, statistics: Tensor, steps: npt.NDArray[np.int64]) -> "StepSums":
        """Sums over each client's own steps, in float64.

        Args:
            statistics: Loss, whether the step was clipped (0 or 1), effective decay and norm of each step, [K, 4, C].
            steps: K_i of each client, [C].
        """
        values = statistics.cpu().numpy().astype(np.float64)
        active = np.arange(len(values))[:, None] < steps
        loss, clipped, decay, norm = np.where(active[:, None], values, 0.0).sum(axis=0)
        return cls(loss, clipped, decay, norm, values[:, 3].T)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScalars:
    """η_t, λ_t and A_t of local steps: one value for all clients, or tensors [C, 1]."""

    local_lr: Scalar
    weight_decay: Scalar
    clip_bound: Scalar

    @classmethod
    def of(cls, scalars: RoundScalars) -> "RowScalars":
        """Returns the scalars of a round, the same for all clients."""
        return cls(local_lr=scalars.local_lr, weight_decay=scalars.weight_decay, clip_bound=scalars.clip_bound)


def build_correction(client: ClientCorrection, local_round: LocalRound, params: Tensor) -> Correction:
    """Returns the correction of a round's gradients, by blocks of columns if these are large. It may write to them.

    Args:
        client: The client's half of the algorithm.
        local_round: What it reads of the round.
        params: The clients' parameters [C, d].
    """
    blocks = list(cut_columns(params, whole=not client.is_elementwise))
    if len(blocks) == 1:
        return client.correction(local_round)
    first = client.correction(local_round.cut(blocks[0]))
    if first is keep_gradient:
        return first
    corrections = {0: first}

    def correct(grad: Tensor, params: Tensor) -> Tensor:
        for index, block in enumerate(blocks):
            if index not in corrections:  # what it computes of the round is still in the cache when it is used
                corrections[index] = client.correction(local_round.cut(block))
            grad[:, block] = corrections[index](grad[:, block], params[:, block])
        return grad

    return correct


def take_local_steps(
    regularizer: Regularizer,
    gradient: Gradient,
    batches: BatchPlan,
    steps: npt.NDArray[np.int64],
    correct: Correction,
    scalars: RowScalars,
) -> Tensor:
    """Takes the local steps x ← x − η_t·direction of a client group, K_i of them in row i.

    Args:
        regularizer: Turns corrected gradients into directions.
        gradient: Computes the gradients, and holds x, the clients' parameters [C, d], which the steps change.
        batches: The examples of each step.
        steps: K_i of each client, [C].
        correct: The client correction of this round.
        scalars: η_t, λ_t and A_t.

    Returns:
        What ``StepSums.of`` reads of each step: loss, whether it was clipped, effective decay and norm, [K, 4, C].
    """
    params = gradient.params
    losses, scales, decays, norms = [], [], [], []
    taken = to_column(steps, params.device)
    full_rate = params.new_empty(len(params), 1)
    full_rate[:] = scalars.local_lr
    rate = full_rate
    for step in range(int(steps.max())):
        if step >= steps.min():  # some rows have taken all their steps
            rate = full_rate * (taken > step).to(params.dtype)
        grad, loss = gradient(batches, step)
        direction = regularizer(correct(grad, params), params, scalars.weight_decay, scalars.clip_bound)
        params.addcmul_(direction.step, rate, value=-1)
        losses.append(loss)
        scales.append(direction.scale)
        decays.append(direction.decay)
        norms.append(direction.norm)
    scale, decay, norm = (torch.stack(each).squeeze(-1) for each in (scales, decays, norms))
    return torch.stack([torch.stack(losses), (scale < 1).to(params.dtype), decay, norm], dim=1)


def to_column(values: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """Returns [C] as a float column [C, 1] on a device."""
    return on_device(values.astype(np.float32), device).view(-1, 1)
