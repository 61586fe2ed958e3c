"""Functional ANOVA: how much of a metric's variance each searched key explains by itself.

It computes what ``optuna.importance.FanovaImportanceEvaluator`` computes, but for all points of a key at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
TREES, DEPTH = 64, 64  # Optuna's defaults


@dataclass(frozen=True, slots=True)
class _Leaves:
    """The leaves of a tree: boxes that fill the search space."""

    low: Floats  # [leaves, columns]
    high: Floats  # [leaves, columns]
    values: Floats  # [leaves]: the predictions


def compute_shares(factors: Mapping[str, Floats], values: Sequence[float], seed: int) -> dict[str, float]:
    """Computes the share of the variance of a random forest's predictions that each factor explains.

    Args:
        factors: Key → its values, [trials, columns]. A category is a one-hot row. Each column has two values or more.
        values: The metric of each trial, [trials].
        seed: Of the forest.

    Returns:
        Key → share, the largest first. The shares sum to 1, though factors also act together.

    Source: Hutter et al., "An efficient approach for assessing hyperparameter importance", ICML 2014, Algorithm 2.
    """
    from sklearn.ensemble import RandomForestRegressor  # type: ignore[import-untyped]  # takes a second to import

    names = sorted(factors)
    points = np.concatenate([factors[name] for name in names], axis=1)
    ends = np.cumsum([0, *(factors[name].shape[1] for name in names)])
    forest = RandomForestRegressor(n_estimators=TREES, max_depth=DEPTH, random_state=seed).fit(points, values)
    space = points.min(axis=0), points.max(axis=0)
    trees = [_find_leaves(each.tree_, *space) for each in forest.estimators_]
    means = {name: _average_fractions(trees, range(ends[place], ends[place + 1])) for place, name in enumerate(names)}
    total = sum(means.values())
    order = sorted(names, key=lambda name: means[name], reverse=True)
    return {name: means[name] / total if total else 0.0 for name in order}


def _find_leaves(tree: Any, low: Floats, high: Floats) -> _Leaves:
    """Returns the boxes of the leaves of scikit-learn's tree, in a space with these ends, [columns] each."""
    lows, highs = np.tile(low, (tree.node_count, 1)), np.tile(high, (tree.node_count, 1))
    for node in range(tree.node_count):  # parents come before their children
        left, right, column = tree.children_left[node], tree.children_right[node], tree.feature[node]
        if column >= 0:
            lows[left], highs[left] = lows[node], highs[node]
            lows[right], highs[right] = lows[node], highs[node]
            highs[left, column] = lows[right, column] = tree.threshold[node]
    is_leaf = tree.feature < 0
    return _Leaves(lows[is_leaf], highs[is_leaf], tree.value[is_leaf].reshape(-1))


def _average_fractions(trees: Sequence[_Leaves], columns: range) -> float:
    """Averages over trees what the columns together explain of a tree's variance."""
    fractions = []
    for tree in trees:
        whole = _compute_variance(tree.values, np.prod(tree.high - tree.low, axis=1))
        if whole > 0:
            fractions.append(_compute_marginal_variance(tree, columns) / whole)
    return float(np.mean(fractions)) if fractions else 0.0


def _compute_marginal_variance(tree: _Leaves, columns: range) -> float:
    """Computes the variance, over these columns, of the prediction that is averaged over all other columns."""
    rest = np.delete(tree.high - tree.low, columns, axis=1).prod(axis=1)  # [leaves]
    inside, sizes = zip(*(_cut(tree, column) for column in columns), strict=True)
    weights = reduce(lambda a, b: (a[:, None] * b[None]).reshape(-1, len(rest)), inside) * rest  # [cells, leaves]
    cells = reduce(lambda a, b: np.outer(a, b).reshape(-1), sizes)  # [cells]
    masses = weights.sum(axis=1)
    return _compute_variance(weights @ tree.values / masses, masses * cells)


def _cut(tree: _Leaves, column: int) -> tuple[Floats, Floats]:
    """Cuts a column wherever the tree does: which leaves hold each piece, [pieces, leaves], and the pieces' sizes."""
    cuts = np.unique(np.concatenate([tree.low[:, column], tree.high[:, column]]))
    middles = (cuts[1:] + cuts[:-1])[:, None] / 2
    inside = (tree.low[:, column] < middles) & (middles <= tree.high[:, column])
    return inside.astype(np.float64), np.diff(cuts)


def _compute_variance(values: Floats, weights: Floats) -> float:
    mean = np.average(values, weights=weights)
    return float(np.average((values - mean) ** 2, weights=weights))
