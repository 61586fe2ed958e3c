"""Turns a client group after its local steps into the update that is sent: sums over its included clients."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.core.blocks import BLOCK, Columns, cut_columns
from fednar_ray.core.file_rows import RowWriter
from fednar_ray.core.flat_params import BufferVector
from fednar_ray.core.messages import ClientMetrics, GroupTask, GroupUpdate
from fednar_ray.core.transfers import on_device
from fednar_ray.federated.local_steps import to_column
from fednar_ray.federated.trained_group import Trained
from fednar_ray.federated.training_plan import TrainingPlan
from fednar_ray.privacy.mechanism import compute_clip_factors


def build_update(
    plan: TrainingPlan,
    trained: Trained,
    task: GroupTask,
    norm_bound: float | None = None,
    before: GroupUpdate | None = None,
) -> GroupUpdate:
    """Returns the group's sums over its included clients.

    Args:
        plan: The weights, and the correction that computes the clients' states.
        trained: The group after its local steps.
        task: Each client's factor, and whether the rows are wanted, too.
        norm_bound: C_t, to which longer updates are scaled down; None: they are not. The metrics keep their norms.
        before: The update of the groups before this one in its term. This one is added to it, in its memory.
    """
    metrics, delta, correction = trained.metrics, trained.delta, plan.correction
    if task.factors is not None:
        factors = np.array(task.factors)
        included = metrics.included & (factors > 0)
        metrics = replace(metrics, included=included, delta_norms=metrics.delta_norms * factors)
    mask = None if metrics.included.all() else torch.from_numpy(metrics.included).to(delta.device).view(-1, 1)
    weights = _compute_weights(plan, delta, metrics, norm_bound)
    factored = weights if task.factors is None else weights * on_device(_to_float32(task.factors), delta.device)
    examples, steps = to_column(metrics.examples, delta.device).view(-1), to_column(metrics.steps, delta.device)
    dimension, stateful = delta.shape[1], correction.next_state is not None
    total = Columns(dimension, None if before is None else before.weighted_delta)
    earlier = {} if before is None else before.shared_changes
    changes = {name: Columns(dimension, earlier.get(name)) for name in correction.shared}
    rows, states = Columns(dimension), Columns(dimension) if task.places is None else RowWriter(task.places)
    for block in cut_columns(delta, whole=stateful and not correction.is_elementwise):
        part = delta[:, block] if mask is None else delta[:, block].where(mask, 0.0)
        total.put(block, factored @ part)
        if task.return_rows:
            rows.put(block, part.clone())  # the next client group trains in this memory
        if correction.next_state is not None:
            local = trained.local_round.cut(block)
            new = correction.next_state(local, part, steps)
            new = new if mask is None else new.where(mask, local.state)  # then its change is 0
            if new.untyped_storage().data_ptr() == delta.untyped_storage().data_ptr():
                new = new.clone()  # the next client group trains in this memory
            states.put(block, new)
            for name, vector in correction.shared.items():
                changes[name].put(block, examples @ vector.change(local, new))
    update = GroupUpdate(
        metrics=metrics,
        weighted_delta=total.get(),
        weighted_buffers=_weight_buffers(trained.buffers, metrics, float(weights[0])),
        states=tuple(states.get()) if stateful else None,
        shared_changes={name: change.get() for name, change in changes.items()},
        rows=rows.get() if task.return_rows else None,
        term=task.term,
    )
    return update if before is None else _join(before, update)


def _join(before: GroupUpdate, update: GroupUpdate) -> GroupUpdate:
    """Returns one update of two, of which the second has been added to the vectors of the first."""
    assert update.rows is None
    old, new = before.weighted_buffers, update.weighted_buffers
    if old is not None and new is not None and old.shape != new.shape:
        raise ValueError(f"buffers {list(new.shape)} after {list(old.shape)}")
    return replace(
        update,
        metrics=before.metrics.followed_by(update.metrics),
        weighted_buffers=None if old is None or new is None else old + new,
        states=None if before.states is None or update.states is None else before.states + update.states,
    )


def measure_lengths(delta: Tensor) -> npt.NDArray[np.float64]:
    """Measures ‖Δ_i‖ of each row of [C, d] in float64, since float32 may lose a thousandth of a long sum.

    Blocks that fit into the cache take a fifth of the time of torch's own norm in float64.
    """
    squares = torch.zeros(len(delta), dtype=torch.float64, device=delta.device)
    for block in torch.split(delta, BLOCK, dim=-1):
        squares += block.double().square_().sum(dim=-1)
    lengths: npt.NDArray[np.float64] = squares.sqrt().cpu().numpy()
    return lengths


def _compute_weights(plan: TrainingPlan, delta: Tensor, metrics: ClientMetrics, norm_bound: float | None) -> Tensor:
    """Returns each client's weight [C], lowered where its update is longer than ``norm_bound``."""
    weights = to_column(metrics.examples if plan.weighted else np.ones_like(metrics.examples), delta.device).view(-1)
    if norm_bound is None:
        return weights
    lengths = np.where(metrics.included, measure_lengths(delta), 0.0)
    return weights * on_device(compute_clip_factors(lengths, norm_bound), delta.device)


def _to_float32(factors: tuple[float, ...]) -> npt.NDArray[np.float32]:
    return np.array(factors, dtype=np.float32)


def _weight_buffers(buffers: BufferVector | None, metrics: ClientMetrics, weight: float) -> BufferVector | None:
    """Returns the buffers' term of the weighted sum; zeros for an excluded client."""
    if buffers is None:
        return None
    return buffers * weight if metrics.included[0] else np.zeros_like(buffers)
