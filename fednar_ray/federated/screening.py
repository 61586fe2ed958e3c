"""Screens updates by a few numbers per client, before any vector is added."""

from collections.abc import Sequence

import numpy as np

from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.messages import ClientMetrics

NOT_FINITE = Exclusion(ExclusionReason.NOT_FINITE)
MIN_CLIENTS = 4  # with fewer clients, no norm stands out
STANDARD_DEVIATIONS = 1.4826  # of a normal distribution, per median absolute deviation
MIN_SPREAD = 0.1  # of the median: where every step is clipped, honest norms are closer together than their spread says


def screen(metrics: Sequence[ClientMetrics], max_deviation: float | None) -> dict[int, Exclusion]:
    """Finds the clients to exclude from a round.

    Clients whose loss, update or buffers are not finite are always excluded. Let m be the median norm of all other
    updates, and MAD the median absolute deviation of these norms. An update is excluded if its norm exceeds

        m + max_deviation · max(1.4826·MAD, m/10).

    Short updates do no harm and stay included.

    Args:
        metrics: The metrics of every client group, in dispatch order.
        max_deviation: How far above the median a norm may be. None excludes no finite update; neither does a round
            with fewer than four finite updates.

    Returns:
        The excluded clients in dispatch order, with the reason.
    """
    clients = [
        (client_id, included, norm)
        for group in metrics
        for client_id, included, norm in zip(
            group.client_ids, group.included.tolist(), group.delta_norms.tolist(), strict=True
        )
    ]
    median, limit = _compute_limit([norm for _, included, norm in clients if included], max_deviation)
    known = {client_id: exclusion for group in metrics for client_id, exclusion in group.exclusions.items()}
    exclusions = {}
    for client_id, included, norm in clients:
        if not included:
            exclusions[client_id] = known.get(client_id, NOT_FINITE)
        elif norm > limit:
            numbers = f"norm {norm:.4g}, median {median:.4g}, limit {limit:.4g}"
            exclusions[client_id] = Exclusion(ExclusionReason.NORM_TOO_LARGE, numbers)
    return exclusions


def _compute_limit(norms: list[float], max_deviation: float | None) -> tuple[float, float]:
    """Returns the median of the norms, and the largest norm that is still included."""
    if max_deviation is None or len(norms) < MIN_CLIENTS:
        return np.nan, np.inf
    median = float(np.median(norms))
    spread = STANDARD_DEVIATIONS * float(np.median(np.abs(np.array(norms) - median)))
    return median, median + max_deviation * max(spread, MIN_SPREAD * median)
