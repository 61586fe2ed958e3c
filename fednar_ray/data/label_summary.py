"""Summarizes the labels of a regression by client, and how much the clients' labels differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fednar_ray.data.federated_data import FederatedData

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSummary:
    """The labels of one client of a regression, in their own unit."""

    count: int  # training examples
    mean: float  # NaN if there is no example, as the other numbers
    deviation: float  # standard deviation
    quantiles: tuple[float, ...]  # least, lower quartile, median, upper quartile, most


def summarize_labels(federation: FederatedData) -> tuple[LabelSummary, ...] | None:
    """Summarizes the training labels of each client, by client id; None unless they are numbers that may be seen."""
    if federation.task != "regression" or federation.metrics_only:
        return None
    shards, _ = federation.load()
    labels, offsets = shards.examples.y.astype(np.float64), shards.offsets
    return tuple(_summarize(labels[a:b]) for a, b in pairwise(offsets))


def _summarize(labels: npt.NDArray[np.float64]) -> LabelSummary:
    if not len(labels):
        return LabelSummary(count=0, mean=np.nan, deviation=np.nan, quantiles=(np.nan,) * len(QUANTILES))
    return LabelSummary(
        count=len(labels),
        mean=float(labels.mean()),
        deviation=float(labels.std()),
        quantiles=tuple(np.quantile(labels, QUANTILES).tolist()),
    )


def compute_share_between(labels: Sequence[LabelSummary]) -> float:
    """Computes which share of the variance of all labels lies between the clients' means (η²).

    Returns:
        A number from 0, if all clients have the same mean, to 1, if each client has one value of its own. 0 if all
        labels are equal.
    """
    held = [each for each in labels if each.count]
    counts, means, within = (np.array([getattr(e, name) for e in held]) for name in ("count", "mean", "deviation"))
    between = np.average((means - np.average(means, weights=counts)) ** 2, weights=counts)
    total = between + np.average(within**2, weights=counts)
    return float(between / total) if total > 0 else 0.0
