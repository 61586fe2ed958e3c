"""The end of a round whose clients are protected: the server step from the noised sum, and what may be reported of it.

Nothing else of a private round leaves the round loop: no metric of clients, no count, and not who took part.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fednar_ray.algorithms.server_optimizers import RoundAggregate
from fednar_ray.core.flat_params import FloatVector
from fednar_ray.core.messages import Broadcast
from fednar_ray.federated.aggregation import RoundSums
from fednar_ray.federated.round_plan import RoundPlan
from fednar_ray.federated.secure_round import SecureSums
from fednar_ray.federated.server_state import ServerSide
from fednar_ray.privacy.keys import compute_context
from fednar_ray.privacy.mechanism import ClientPrivacy


def step_privately(
    plan: RoundPlan, privacy: ClientPrivacy, now: ServerSide, broadcast: Broadcast, sums: RoundSums | SecureSums
) -> tuple[ServerSide, dict[str, float]]:
    """Takes the server step of a round, whoever came, and returns the metrics that may be reported.

    They follow from the noised sum, from a noised count and from public settings alone.

    Args:
        plan: The settings of the rounds.
        privacy: The bound and the noise.
        now: The server's side before the step.
        broadcast: The round, with the bound of its updates.
        sums: The sum of the updates, each at most as long as the bound, up to rounding of masked ones; empty if nobody
            came.
    """
    index, bound, scalars = broadcast.round_index, broadcast.norm_bound, broadcast.scalars
    assert bound is not None
    total, most_added = _get_sum(sums)
    total = np.zeros_like(now.server.parameters) if total is None else total
    summed = b"" if isinstance(sums, RoundSums) else total.tobytes()
    context = compute_context(now.server.parameters, _list_included(sums), summed)
    aggregate = RoundAggregate(
        delta=privacy.build_mean(index, bound + most_added, total, context),
        mean_squared_norm=np.nan,  # not released
        clients=privacy.expected_clients,
        population=privacy.clients,
        epsilon=scalars.epsilon,
    )
    within = None
    if now.norm_bound is not None:
        assert isinstance(sums, RoundSums), "masked sums show no count"
        norms = sums.get_column("delta_norms") if sums.metrics else np.zeros(0)
        within = privacy.count_within(index, bound, norms, context)
    then = replace(
        now,
        next_round=index + 1,
        server=plan.algorithm.server.step(now.server, aggregate),
        norm_bound=None if within is None else privacy.adapt(bound, within),
    )
    sent = float(now.server.parameters.nbytes * privacy.expected_clients)
    return then, {
        **privacy.compute_metrics(index + 1, bound, within),
        "update_norm": float(np.linalg.norm(aggregate.delta)),
        "parameter_norm": float(np.linalg.norm(then.server.parameters)),
        "server_lr": float(np.mean(then.server.server_lr if then.server.server_lr is not None else np.nan)),
        "local_lr": scalars.local_lr,
        "weight_decay": scalars.weight_decay,
        "clip_bound": scalars.clip_bound,
        "bytes_down": sent,  # of as many clients as a round has on average
        "bytes_up": sent,
    }


def _get_sum(sums: RoundSums | SecureSums) -> tuple[FloatVector | npt.NDArray[np.float64] | None, float]:
    """Returns the sum of the updates, and by how much one of them can be longer in it than the bound."""
    if isinstance(sums, RoundSums):
        return sums.vectors.delta, 0.0
    assert sums.decoded is not None
    return sums.decoded.compute_sum(), sums.decoded.most_added


def _list_included(sums: RoundSums | SecureSums) -> list[int]:
    """Lists the clients whose updates are in the sum, by id."""
    if isinstance(sums, SecureSums):
        return sorted(sums.arrived)
    return sorted(
        client_id
        for metrics in sums.metrics
        for client_id, included in zip(metrics.client_ids, metrics.included, strict=True)
        if included
    )
