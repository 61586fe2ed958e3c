"""Robust aggregation, in which no single client decides the result: median, trimmed mean, Multi-Krum, norm bounds.

Rows Δ_i arrive as blocks [C_k, d], one block per group, in dispatch order. There are S rows in all. They are finite,
and may lie in read-only shared memory. A few columns are processed at a time, so the extra memory is bounded. The
result depends on the rows and their order alone, not on how they are split into blocks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import floor
from typing import cast

import numpy as np
import numpy.typing as npt

from fednar_ray.config.robustness import AggregationSettings
from fednar_ray.core.flat_params import FloatVector

Rows = Sequence[FloatVector]
Weights = npt.NDArray[np.float64]

NUMBERS_AT_ONCE = 2**17  # rows × columns that fit into a core's cache


def coordinate_median(rows: Rows) -> FloatVector:
    """Computes the unweighted median of each coordinate, [d]. For an even S it is the mean of the middle two values.

    Source: Yin et al., ICML 2018.
    """
    return _compute_mean_between(rows, cut=(_count(rows) - 1) // 2)


def trimmed_mean(rows: Rows, trim: float) -> FloatVector:
    """Computes the unweighted mean of each coordinate, [d], without its smallest and largest values.

    Args:
        rows: Blocks of updates, S rows in all.
        trim: In [0, ½). ⌊trim·S⌋ values are left out at each end.

    Source: Yin et al., ICML 2018.
    """
    return _compute_mean_between(rows, cut=_count_share(trim, _count(rows)))


def krum_selection(rows: Rows, byzantine: float) -> npt.NDArray[np.bool_]:
    """Selects the clients that Multi-Krum keeps.

    With f = ⌊byzantine·S⌋, a client's score is the sum of its squared distances to its S − f − 2 nearest neighbors. The
    S − f clients with the lowest scores are kept; of equal scores, the first. The paper's guarantee needs S ≥ 2f + 3.
    If f is 0, or S − f − 2 < 1, all clients are kept.

    Args:
        rows: Blocks of updates, S rows in all.
        byzantine: The share of clients that may be attackers.

    Returns:
        Which clients are kept, [S].

    Source: Blanchard et al., NeurIPS 2017.
    """
    count = _count(rows)
    bad = _count_share(byzantine, count)
    neighbors = count - bad - 2
    if bad == 0 or neighbors < 1:
        return np.ones(count, dtype=np.bool_)
    nearest = np.sort(_compute_squared_distances(rows), axis=1)[:, 1 : 1 + neighbors]  # first of all, itself
    kept = np.zeros(count, dtype=np.bool_)
    kept[np.argsort(nearest.sum(axis=1), kind="stable")[: count - bad]] = True
    return kept


def norm_clip_factors(norms: npt.NDArray[np.float64], bound: float | None) -> npt.NDArray[np.float64]:
    """Computes the factor min(1, bound/‖Δ_i‖) of each update.

    Args:
        norms: ‖Δ_i‖ of the included clients, [S].
        bound: The largest norm. None takes the median of ``norms``.

    Source: Sun et al., *Can You Really Backdoor Federated Learning?*, 2019.
    """
    longest = np.median(norms) if bound is None else bound
    return np.divide(longest, norms, out=np.ones_like(norms), where=norms > longest)


RULES: Mapping[str, Callable[[Rows, Weights, AggregationSettings], FloatVector]] = {
    "median": lambda rows, weights, settings: coordinate_median(rows),
    "trimmed_mean": lambda rows, weights, settings: trimmed_mean(rows, settings.trim),
    "krum": lambda rows, weights, settings: _compute_weighted_mean(
        rows, weights * krum_selection(rows, settings.byzantine)
    ),
}
"""The aggregations that need every row, by name. All others need only sums."""


def robust_mean(rows: Rows, weights: Weights, settings: AggregationSettings) -> FloatVector:
    """Computes Δ [d] by the rule that ``settings`` names.

    Args:
        rows: Blocks of updates, S rows in all.
        weights: The clients' weights [S], of any sum. Only ``krum`` uses them: median and trimmed mean are unweighted.
        settings: Names a rule of ``RULES``, with its parameter.
    """
    return RULES[settings.name](rows, weights, settings)


def _count(rows: Rows) -> int:
    """Returns the number of rows, S: one per included client."""
    return sum(len(block) for block in rows)


def _count_share(share: float, count: int) -> int:
    """Returns ⌊share·count⌋, less than half. 0.29 of 100 is 29, although floating point falls just short of it."""
    return min(floor(share * count + 1e-9), (count - 1) // 2)


def _iter_columns(rows: Rows) -> Iterator[tuple[slice, FloatVector]]:
    """Yields some columns of all rows at a time, [S, w]. The width w follows from S alone."""
    width = max(1, NUMBERS_AT_ONCE // _count(rows))
    for start in range(0, rows[0].shape[1], width):
        part = slice(start, start + width)
        yield part, np.concatenate([block[:, part] for block in rows])


def _compute_mean_between(rows: Rows, cut: int) -> FloatVector:
    """Computes the mean of each coordinate, [d], without ``cut`` values at each end, in any order of the clients."""
    result = np.empty(rows[0].shape[1], dtype=np.float32)
    kept = slice(cut, _count(rows) - cut)
    for part, columns in _iter_columns(rows):
        columns.sort(axis=0)  # the whole column, so that the sum does not depend on the clients' order
        result[part] = columns[kept].mean(axis=0, dtype=np.float64)
    return result


def _compute_weighted_mean(rows: Rows, weights: Weights) -> FloatVector:
    """Computes Σ weight_i·Δ_i / Σ weight_i, [d]."""
    result = np.empty(rows[0].shape[1], dtype=np.float32)
    for part, columns in _iter_columns(rows):
        result[part] = np.einsum("i,ij->j", weights, columns) / weights.sum()  # in order, unlike a BLAS with threads
    return result


def _compute_squared_distances(rows: Rows) -> npt.NDArray[np.float64]:
    """Computes ‖Δ_i − Δ_j‖², [S, S].

    A Gram matrix is faster, but its rounding errors make equal rows differ, and ties would be decided by noise.
    """
    from scipy.spatial.distance import pdist, squareform  # takes a third of a second to import

    distances = sum(pdist(columns.astype(np.float64), "sqeuclidean") for _, columns in _iter_columns(rows))
    return cast(npt.NDArray[np.float64], squareform(distances))
