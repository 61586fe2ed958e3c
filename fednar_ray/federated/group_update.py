"""Turns a client group after its local steps into the update that is sent: sums over its included clients."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.algorithms.client_corrections import LocalRound
from fednar_ray.core.flat_params import BufferVector, FloatVector
from fednar_ray.core.messages import ClientMetrics, GroupTask, GroupUpdate
from fednar_ray.core.transfers import on_device
from fednar_ray.federated.local_steps import to_column
from fednar_ray.federated.training_plan import TrainingPlan
from fednar_ray.privacy.mechanism import compute_clip_factors

LENGTH_BLOCK = 1 << 16
"""How many numbers of an update are squared at once when its length is measured."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A client group after its local steps."""

    metrics: ClientMetrics
    delta: Tensor  # [C, d]
    buffers: BufferVector | None
    local_round: LocalRound

    @property
    def nbytes(self) -> int:
        """The memory that it takes, in bytes."""
        return self.delta.nbytes + self.local_round.state.nbytes


def build_update(plan: TrainingPlan, trained: Trained, task: GroupTask, norm_bound: float | None = None) -> GroupUpdate:
    """Returns the group's sums over its included clients.

    Args:
        plan: The weights, and the correction that computes the clients' states.
        trained: The group after its local steps.
        task: Each client's factor, and whether the rows are wanted, too.
        norm_bound: C_t, to which longer updates are scaled down; None: they are not. The metrics keep their norms.
    """
    metrics, delta, device = trained.metrics, trained.delta, trained.delta.device
    if task.factors is not None:
        factors = np.array(task.factors)
        included = metrics.included & (factors > 0)
        metrics = replace(metrics, included=included, delta_norms=metrics.delta_norms * factors)
    mask = torch.from_numpy(metrics.included).to(device).view(-1, 1)
    if not metrics.included.all():
        delta = delta.where(mask, 0.0)
    weights = to_column(metrics.examples if plan.weighted else np.ones_like(metrics.examples), device).view(-1)
    if norm_bound is not None:
        weights = weights * on_device(compute_clip_factors(measure_lengths(delta), norm_bound), device)
    states = _compute_states(plan, trained, delta, mask)
    buffers = trained.buffers
    return GroupUpdate(
        metrics=metrics,
        weighted_delta=(_apply_factors(weights, task) @ delta).cpu().numpy(),
        weighted_buffers=None if buffers is None else _weight_buffers(buffers, metrics, float(weights[0])),
        states=None if states is None else states.cpu().numpy(),
        shared_changes={} if states is None else _sum_shared_changes(plan, trained, states),
        # copied, since on the CPU the rows are a view of the memory in which the next client group trains
        rows=delta.cpu().numpy().copy() if task.return_rows else None,
    )


def measure_lengths(delta: Tensor) -> npt.NDArray[np.float64]:
    """Measures ‖Δ_i‖ of each row of [C, d] in float64, since float32 may lose a thousandth of a long sum.

    Blocks that fit into the cache take a fifth of the time of torch's own norm in float64.
    """
    squares = torch.zeros(len(delta), dtype=torch.float64, device=delta.device)
    for block in torch.split(delta, LENGTH_BLOCK, dim=-1):
        squares += block.double().square_().sum(dim=-1)
    lengths: npt.NDArray[np.float64] = squares.sqrt().cpu().numpy()
    return lengths


def _apply_factors(weights: Tensor, task: GroupTask) -> Tensor:
    """Returns each client's weight times its factor."""
    if task.factors is None:
        return weights
    return weights * on_device(np.array(task.factors, dtype=np.float32), weights.device)


def _compute_states(plan: TrainingPlan, trained: Trained, delta: Tensor, mask: Tensor) -> Tensor | None:
    """Returns the clients' new states [C, d]. A client that is not in ``mask`` [C, 1] keeps its old one."""
    local_round, next_state = trained.local_round, plan.correction.next_state
    if next_state is None:
        return None
    states = next_state(local_round, delta, to_column(trained.metrics.steps, delta.device))
    return states if mask.all() else states.where(mask, local_round.state)


def _sum_shared_changes(plan: TrainingPlan, trained: Trained, states: Tensor) -> dict[str, FloatVector]:
    """Returns Σ n_i·change_i for every shared vector. An excluded client has kept its state, so its change is 0."""
    examples = to_column(trained.metrics.examples, states.device).view(-1)
    return {
        name: (examples @ vector.change(trained.local_round, states)).cpu().numpy()
        for name, vector in plan.correction.shared.items()
    }


def _weight_buffers(buffers: BufferVector, metrics: ClientMetrics, weight: float) -> BufferVector:
    """Returns the buffers' term of the weighted sum; zeros for an excluded client."""
    return buffers * weight if metrics.included[0] else np.zeros_like(buffers)
