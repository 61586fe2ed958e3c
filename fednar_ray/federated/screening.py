"""Which updates count, from a few numbers a client: decided before any vector is added."""

from collections.abc import Sequence

import numpy as np

from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.messages import ClientMetrics

NOT_FINITE = Exclusion(ExclusionReason.NOT_FINITE)
FEWEST = 4  # clients; among fewer, nothing can be said of one
NORMAL = 1.4826  # standard deviations of a normal distribution in one median absolute deviation
FLOOR = 0.1  # of the median: where every step is clipped, honest norms lie closer together than their spread tells


def screen(figures: Sequence[ClientMetrics], max_deviation: float | None) -> dict[int, Exclusion]:
    """Client id → why its update does not count, in dispatch order.

    Updates that are not ``usable`` never count. Of the others, with m the median of their norms and MAD its
    median absolute deviation, those do not count that are longer than

        m + max_deviation · max(1.4826·MAD, m/10).

    Short updates do no harm, and count. Fewer than four clients, or no ``max_deviation``: every usable update counts.
    """
    clients = [
        (client_id, usable, norm)
        for group in figures
        for client_id, usable, norm in zip(
            group.client_ids, group.usable.tolist(), group.delta_norms.tolist(), strict=True
        )
    ]
    median, limit = _median_and_limit([norm for _, usable, norm in clients if usable], max_deviation)
    exclusions = {}
    known = {client_id: why for group in figures for client_id, why in group.exclusions.items()}
    for client_id, usable, norm in clients:
        if not usable:
            exclusions[client_id] = known.get(client_id, NOT_FINITE)
        elif norm > limit:
            numbers = f"norm {norm:.4g}, median {median:.4g}, limit {limit:.4g}"
            exclusions[client_id] = Exclusion(ExclusionReason.NORM_TOO_LARGE, numbers)
    return exclusions


def _median_and_limit(norms: list[float], max_deviation: float | None) -> tuple[float, float]:
    """The median of the norms, and the longest that still counts."""
    if max_deviation is None or len(norms) < FEWEST:
        return np.nan, np.inf
    median = float(np.median(norms))
    spread = NORMAL * float(np.median(np.abs(np.array(norms) - median)))
    return median, median + max_deviation * max(spread, FLOOR * median)
