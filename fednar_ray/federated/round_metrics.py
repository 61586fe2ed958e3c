"""Computes the metrics of a round: of training, of the steps, and of what was sent."""

import math

import numpy as np

from fednar_ray.algorithms.server_optimizers import RoundAggregate
from fednar_ray.core.schedules import RoundScalars
from fednar_ray.core.step_norms import merge_quantiles
from fednar_ray.federated.aggregation import RoundSums
from fednar_ray.federated.client_sampling import Selection
from fednar_ray.federated.round_plan import RoundPlan
from fednar_ray.federated.secure_round import SecureSums
from fednar_ray.federated.server_state import ServerSide

MOST_NORMS = 200
"""Maximum number of clients whose step norm is stored per round. Every checkpoint contains these norms."""


def compute_training_metrics(
    then: ServerSide, sums: RoundSums | SecureSums, aggregate: RoundAggregate
) -> dict[str, float]:
    """Returns the metrics that only a round with an update has."""
    trained = sums.compute_training_metrics() if isinstance(sums, SecureSums) else _compute_client_metrics(sums)
    return {
        **trained,
        "update_norm": float(np.linalg.norm(aggregate.delta)),
        "parameter_norm": float(np.linalg.norm(then.server.parameters)),
        "server_lr": float(np.mean(then.server.server_lr if then.server.server_lr is not None else np.nan)),
    }


def _compute_client_metrics(sums: RoundSums) -> dict[str, float]:
    """Returns the means over the included clients, and the spread of their step norms."""
    weights = sums.compute_example_weights()
    return {
        "train_loss": float(weights @ sums.get_column("losses")),
        "clip_fraction": float(sums.get_column("clipped_steps").sum() / sums.get_column("steps").sum()),
        "effective_weight_decay": float(weights @ sums.get_column("effective_weight_decay")),
        **_compute_step_norm_metrics(sums),
    }


def compute_metrics(
    plan: RoundPlan, now: ServerSide, scalars: RoundScalars, selection: Selection, sums: RoundSums | SecureSums
) -> dict[str, float]:
    """Returns the metrics that every round has."""
    sent, trained = _count_bytes_per_client(plan, now), int(sums.find_included().sum())
    clock = {} if selection.virtual_seconds is None else {"virtual_seconds": selection.virtual_seconds}
    return {
        "local_lr": scalars.local_lr,
        "weight_decay": scalars.weight_decay,
        "clip_bound": scalars.clip_bound,
        "clients_sampled": float(len(selection.sampled)),
        "clients_dropped_out": float(selection.dropped_out),
        "clients_late": float(selection.late),
        "clients_trained": float(trained),
        "clients_failed": float(len(sums.exclusions)),
        "client_seconds": sum(group.train_seconds for group in sums.metrics),
        "bytes_down": float(sent * len(selection.sampled)),
        "bytes_up": float(sent * trained),
        **clock,
        **(sums.compute_metrics() if isinstance(sums, SecureSums) else {}),
    }


def compute_step_norms(sums: RoundSums | SecureSums) -> dict[int, float]:
    """Returns the mean ‖v‖ of each included client; of more than ``MOST_NORMS``, those with the lowest ids."""
    norms = {
        client_id: norm
        for group in sums.metrics
        for client_id, included, norm in zip(
            group.client_ids, group.included.tolist(), group.step_norms.tolist(), strict=True
        )
        if included and math.isfinite(norm)
    }
    return {client_id: norms[client_id] for client_id in sorted(norms)[:MOST_NORMS]}


def compute_norm_quantiles(sums: RoundSums | SecureSums) -> tuple[float, ...]:
    """Returns the quantiles of ‖v‖ over the steps of the included clients."""
    points = [group.norm_points[group.included] for group in sums.metrics]
    return merge_quantiles(points, [group.steps[group.included] for group in sums.metrics])


def _compute_step_norm_metrics(sums: RoundSums) -> dict[str, float]:
    """Returns the mean ‖v‖ over all steps, and the first and ninth decile of the clients' means."""
    steps, norms = sums.get_column("steps"), sums.get_column("step_norms")
    low, high = np.quantile(norms, (0.1, 0.9))
    return {"step_norm": float(steps @ norms / steps.sum()), "step_norm_p10": float(low), "step_norm_p90": float(high)}


def _count_bytes_per_client(plan: RoundPlan, now: ServerSide) -> int:
    """Returns the bytes that a client of a real federation receives, and sends: model, buffers and shared vectors."""
    model = now.server.parameters.nbytes + (4 * len(now.buffers) if plan.tracks_buffers else 0)
    return model + sum(vector.nbytes for vector in now.shared.values())
