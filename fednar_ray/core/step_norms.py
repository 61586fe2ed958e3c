"""The distribution of ‖v‖ over local steps: what a client sends of it, and how the clients of a round are merged.

The clip bound applies to single steps, so means over a client's steps do not show where it would clip.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

LEVELS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
"""The levels of the quantiles that a round's record holds, from the smallest to the largest norm."""
MOST_POINTS = 32
"""Maximum number of norms that represent one client's steps in a round."""


def summarize_norms(norms: FloatArray, steps: npt.NDArray[np.int64]) -> FloatArray:
    """Returns at most ``MOST_POINTS`` norms per client that represent all its steps.

    Args:
        norms: ‖v‖ by client and step, [C, K]. A client's values beyond its own steps are ignored.
        steps: K_i, [C].

    Returns:
        The sorted norms of each client, [C, P], padded with NaN. They are exact up to ``MOST_POINTS`` steps. Of more
        steps they are evenly spaced quantiles, from the smallest to the largest norm.
    """
    most = int(steps.max(initial=0))
    ordered = np.sort(np.where(np.arange(most) < steps[:, None], norms[:, :most], np.nan), axis=1)  # NaN comes last
    if most <= MOST_POINTS:
        return ordered
    points = ordered[:, :MOST_POINTS].copy()
    for row in np.flatnonzero(steps > MOST_POINTS):
        count = int(steps[row])
        points[row] = np.interp(np.linspace(0, count - 1, MOST_POINTS), np.arange(count), ordered[row, :count])
    return points


def merge_quantiles(points: Sequence[FloatArray], steps: Sequence[npt.NDArray[np.int64]]) -> tuple[float, ...]:
    """Computes the quantiles of ‖v‖ over the steps of all clients of a round, at ``LEVELS``.

    They are the same as over the single steps if no client took more than ``MOST_POINTS``. Otherwise a level is off by
    at most 1 / ``MOST_POINTS``; the smallest and the largest norm are exact.

    Args:
        points: What ``summarize_norms`` returned, one array per client group.
        steps: K_i of the same clients.

    Returns:
        One quantile per level; empty if there is no finite norm. Every step counts the same.
    """
    values, weights = [np.zeros(0)], [np.zeros(0)]
    for group, counts in zip(points, steps, strict=True):
        known = np.isfinite(group)
        each = counts / np.maximum(known.sum(axis=1), 1)
        values.append(group[known])
        weights.append(np.broadcast_to(each[:, None], group.shape)[known])
    return _compute_weighted_quantiles(np.concatenate(values), np.concatenate(weights))


def _compute_weighted_quantiles(values: FloatArray, weights: FloatArray) -> tuple[float, ...]:
    """Computes quantiles as ``np.quantile`` does, by linear interpolation, where a value of weight w counts w times."""
    if not len(values):
        return ()
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(weights[order])
    starts = ends - weights[order]
    # a value that counts w times has the ranks from its start to its end - 1
    ranks = np.stack([starts, np.maximum(ends - 1, starts)], axis=1).ravel()
    found = np.interp(np.array(LEVELS) * (ends[-1] - 1), ranks, np.repeat(values[order], 2))
    return tuple(found.tolist())
