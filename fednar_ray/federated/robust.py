"""What one round's updates become where no single client may decide it: median, trimmed mean, Multi-Krum, short norms.

Rows arrive as blocks [C_k, d], one a group, in dispatch order: S rows in all, finite, perhaps read-only in shared
memory. They are worked on a few columns at a time, so the extra memory is bounded, and a result depends on the rows
and their order alone, never on how they are cut into blocks.
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

NUMBERS_AT_ONCE = 2**17  # rows × columns: what a core's cache holds


def coordinate_median(rows: Rows) -> FloatVector:
    """The median of each coordinate [d], unweighted; of an even number, the mean of the middle two.

    Yin et al., ICML 2018.
    """
    return _mean_between(rows, cut=(_count(rows) - 1) // 2)


def trimmed_mean(rows: Rows, trim: float) -> FloatVector:
    """The unweighted mean of each coordinate [d] without its ⌊trim·S⌋ smallest and its ⌊trim·S⌋ largest values.

    ``trim`` lies in [0, ½). Yin et al., ICML 2018.
    """
    return _mean_between(rows, cut=_share(trim, _count(rows)))


def krum_selection(rows: Rows, byzantine: float) -> npt.NDArray[np.bool_]:
    """Which clients Multi-Krum keeps [S]. Blanchard et al., NeurIPS 2017.

    With f = ⌊byzantine·S⌋, a client's score is the sum of its squared distances to the S − f − 2 others nearest to
    it; the S − f of lowest score are kept, of equals the first. The guarantee of the paper needs S ≥ 2f + 3. Where
    f is 0, or a score would have no distance to add (S − f − 2 < 1, so S ≤ 3), everyone is kept.
    """
    count = _count(rows)
    bad = _share(byzantine, count)
    neighbors = count - bad - 2
    if bad == 0 or neighbors < 1:
        return np.ones(count, dtype=np.bool_)
    nearest = np.sort(_squared_distances(rows), axis=1)[:, 1 : 1 + neighbors]  # first of all, itself
    kept = np.zeros(count, dtype=np.bool_)
    kept[np.argsort(nearest.sum(axis=1), kind="stable")[: count - bad]] = True
    return kept


def norm_clip_factors(norms: npt.NDArray[np.float64], bound: float | None) -> npt.NDArray[np.float64]:
    """The factor of each update [S], min(1, bound/‖Δ_i‖), from the norms [S] of those that count.

    Without a bound, their median. Sun et al., *Can You Really Backdoor Federated Learning?*, 2019.
    """
    longest = np.median(norms) if bound is None else bound
    return np.divide(longest, norms, out=np.ones_like(norms), where=norms > longest)


RULES: Mapping[str, Callable[[Rows, Weights, AggregationSettings], FloatVector]] = {
    "median": lambda rows, weights, settings: coordinate_median(rows),
    "trimmed_mean": lambda rows, weights, settings: trimmed_mean(rows, settings.trim),
    "krum": lambda rows, weights, settings: _mean(rows, weights * krum_selection(rows, settings.byzantine)),
}
"""The aggregations that need every row, by name; the others need no more than sums."""


def robust_mean(rows: Rows, weights: Weights, settings: AggregationSettings) -> FloatVector:
    """Δ [d] by the rule of ``RULES`` that ``settings`` names.

    ``weights`` [S], of any sum, count for ``krum`` alone; median and trimmed mean are unweighted by definition.
    """
    return RULES[settings.name](rows, weights, settings)


def _count(rows: Rows) -> int:
    """S."""
    return sum(len(block) for block in rows)


def _share(share: float, count: int) -> int:
    """⌊share·count⌋, less than half; 0.29 of 100 is 29, though floating point falls just short of it."""
    return min(floor(share * count + 1e-9), (count - 1) // 2)


def _columns(rows: Rows) -> Iterator[tuple[slice, FloatVector]]:
    """All rows, some columns [S, w] at a time, with w from S alone."""
    width = max(1, NUMBERS_AT_ONCE // _count(rows))
    for start in range(0, rows[0].shape[1], width):
        part = slice(start, start + width)
        yield part, np.concatenate([block[:, part] for block in rows])


def _mean_between(rows: Rows, cut: int) -> FloatVector:
    """The mean of each coordinate [d] without ``cut`` values at either end; the clients' order does not matter."""
    result = np.empty(rows[0].shape[1], dtype=np.float32)
    kept = slice(cut, _count(rows) - cut)
    for part, columns in _columns(rows):
        columns.sort(axis=0)  # whole: the middle, too, is added in an order of its own
        result[part] = columns[kept].mean(axis=0, dtype=np.float64)
    return result


def _mean(rows: Rows, weights: Weights) -> FloatVector:
    """Σ weight_i·Δ_i / Σ weight_i [d]."""
    result = np.empty(rows[0].shape[1], dtype=np.float32)
    for part, columns in _columns(rows):
        result[part] = np.einsum("i,ij->j", weights, columns) / weights.sum()  # in order, unlike a BLAS with threads
    return result


def _squared_distances(rows: Rows) -> npt.NDArray[np.float64]:
    """‖Δ_i − Δ_j‖² [S, S].

    From differences: a Gram matrix is faster, but leaves rounding errors where rows are equal, and ties would be noise.
    """
    from scipy.spatial.distance import pdist, squareform  # a third of a second, for each process

    distances = sum(pdist(columns.astype(np.float64), "sqeuclidean") for _, columns in _columns(rows))
    return cast(npt.NDArray[np.float64], squareform(distances))
