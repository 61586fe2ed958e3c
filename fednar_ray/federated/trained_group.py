"""A client group before and after its local steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.algorithms.client_corrections import LocalRound
from fednar_ray.core.blocks import cut_columns
from fednar_ray.core.exclusion import Exclusion
from fednar_ray.core.flat_params import BufferVector
from fednar_ray.core.messages import ClientMetrics, GroupTask
from fednar_ray.core.schedules import RoundScalars
from fednar_ray.core.step_norms import summarize_norms
from fednar_ray.data.batches import BatchPlan
from fednar_ray.federated.local_steps import StepSums
from fednar_ray.federated.training_plan import TrainingPlan


@dataclass(frozen=True, slots=True)
class StartedGroup:
    """A client group before its local steps."""

    task: GroupTask
    scalars: RoundScalars
    examples: npt.NDArray[np.int64]  # [C] n_i
    steps: npt.NDArray[np.int64]  # [C] K_i
    local_round: LocalRound
    batches: BatchPlan


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


def finish_group(
    plan: TrainingPlan,
    group: StartedGroup,
    params: Tensor,
    sums: StepSums,
    seconds: float,
    *,
    buffers: BufferVector | None = None,
    exclusion: Exclusion | None = None,
) -> Trained:
    """Returns a client group after its local steps, with the metrics of each client.

    Args:
        plan: Who attacks.
        group: The group before its steps.
        params: The parameters after them, [C, d]. What the steps added to them takes their place.
        sums: The sums over the steps.
        seconds: How long the group took.
        buffers: The running statistics after the steps; None if the model has none.
        exclusion: Why the whole group is excluded; None if it is not.
    """
    client_ids = group.task.client_ids
    norms = _subtract_start(params, group.local_round.global_params, [plan.attack_factors.get(i) for i in client_ids])
    included = np.isfinite(norms) & np.isfinite(sums.loss)
    if exclusion is not None:
        included = np.zeros_like(included)
    metrics = ClientMetrics(
        client_ids=client_ids,
        included=included,
        examples=group.examples,
        steps=group.steps,
        clipped_steps=sums.clipped.astype(np.int64),
        effective_weight_decay=sums.decay / group.steps,
        step_norms=sums.norm / group.steps,
        norm_points=summarize_norms(sums.norms, group.steps),
        losses=sums.loss / group.steps,
        delta_norms=norms,
        train_seconds=seconds,
        exclusions={} if exclusion is None else dict.fromkeys(client_ids, exclusion),
    )
    return Trained(metrics, params, buffers, group.local_round)


def _subtract_start(params: Tensor, global_params: Tensor, factors: Sequence[float | None]) -> npt.NDArray[np.float64]:
    """Turns parameters [C, d] into what was added to them, in place, and returns its norms [C].

    Args:
        params: The parameters after the local steps.
        global_params: Those before, [d].
        factors: What each simulated attacker multiplies its row by; None for honest clients.
    """
    parts = []
    for block in cut_columns(params):
        part = params[:, block].sub_(global_params[block])
        for row, factor in zip(part, factors, strict=True):
            if factor is not None:
                row *= factor
        parts.append(torch.linalg.vector_norm(part, dim=-1))
    norms = parts[0] if len(parts) == 1 else torch.stack(parts).double().square_().sum(dim=0).sqrt_()
    result: npt.NDArray[np.float64] = norms.cpu().numpy().astype(np.float64)
    return result
