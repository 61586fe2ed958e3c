"""Takes the local steps of a client group: gradient, client correction, regularizer, and the step itself."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.algorithms.client_corrections import LocalRound
from fednar_ray.core.schedules import RoundScalars
from fednar_ray.core.transfers import on_device
from fednar_ray.data.batches import BatchPlan
from fednar_ray.federated.gradients import Gradient
from fednar_ray.federated.training_plan import TrainingPlan


@dataclass(slots=True)
class StepSums:
    """Sums over a group's local steps, one number per client, [C, 1] each."""

    loss: Tensor
    clipped: Tensor
    decay: Tensor
    norm: Tensor
    norms: Tensor  # [K, C] of every step; those after a client's last step mean nothing


def take_local_steps(
    plan: TrainingPlan,
    gradient: Gradient,
    batches: BatchPlan,
    steps: npt.NDArray[np.int64],
    local_round: LocalRound,
    scalars: RoundScalars,
) -> StepSums:
    """Takes the local steps x ← x − η_t·direction of a client group, K_i of them in row i.

    Args:
        plan: The correction and the regularizer.
        gradient: Computes the gradients, and holds x, the clients' parameters [C, d], which the steps change.
        batches: The examples of each step.
        steps: K_i of each client, [C].
        local_round: What the correction reads: the global parameters, and the clients' states.
        scalars: η_t, λ_t and A_t.

    Returns:
        Sums over the steps, by client.
    """
    params = gradient.params
    correct = plan.correction.correction(local_round)
    norms = params.new_zeros(int(steps.max()), len(params))
    loss_sum, clipped, decay, norm = (params.new_zeros(len(params), 1) for _ in range(4))
    sums = StepSums(loss_sum, clipped, decay, norm, norms)
    taken, active = to_column(steps, params.device), params.new_ones(len(params), 1)
    rate = params.new_empty(len(params), 1).fill_(scalars.local_lr)
    for step in range(int(steps.max())):
        if step >= steps.min():  # some rows have taken all their steps
            active = (taken > step).to(params.dtype)
            rate = scalars.local_lr * active
        grad, loss = gradient(batches, step)
        direction = plan.regularizer(correct(grad, params), params, scalars.weight_decay, scalars.clip_bound)
        params.addcmul_(direction.step, rate, value=-1)
        sums.loss.addcmul_(loss.view(-1, 1), active)
        sums.clipped.addcmul_(direction.scale < 1, active)
        sums.decay.addcmul_(direction.decay, active)
        sums.norm.addcmul_(direction.norm, active)
        norms[step] = direction.norm.view(-1)
    return sums


def to_column(values: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """Returns [C] as a float column [C, 1] on a device."""
    return on_device(values.astype(np.float32), device).view(-1, 1)
