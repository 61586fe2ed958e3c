"""Means and standard deviations of inputs over all clients, from one count, mean and sum of squares per client."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ROUNDING = 4 * np.finfo(np.float64).eps
"""A standard deviation of at most this share of the mean is a rounding error; the column is constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Count, mean and sum of squares of each input, each of shape [f…], over the rows of one or several clients."""

    count: Floats  # of values that are not missing
    mean: Floats
    rest: Floats  # to be added to ``mean``, whose float64 is too coarse to tell apart the means of some clients
    squares: Floats  # Σ (x − mean)²

    @classmethod
    def of(cls, x: Floats) -> "Moments":
        """Computes the moments of rows x [n, f…], in which NaN is a missing value.

        A second pass corrects the rounding errors of the first, so the mean of a constant column is exactly its value.

        Source: Chan, Golub and LeVeque, 1983, section 3.
        """
        there = ~np.isnan(x)
        count = there.sum(axis=0).astype(np.float64)
        rough = np.where(there, x, 0.0).sum(axis=0) / np.maximum(count, 1)
        apart = np.where(there, x - rough, 0.0)
        correction = apart.sum(axis=0) / np.maximum(count, 1)
        squares = (np.where(there, apart - correction, 0.0) ** 2).sum(axis=0)
        mean, rest = _add_exactly(rough, correction)
        return cls(count=count, mean=mean, rest=rest, squares=squares)

    def __add__(self, other: "Moments") -> "Moments":
        """Returns the moments of the rows of both (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        apart = (other.mean - self.mean) + (other.rest - self.rest)
        share = other.count / np.maximum(count, 1)
        squares = self.squares + other.squares + apart**2 * self.count * share
        mean, rest = _add_exactly(self.mean, apart * share + self.rest)
        return Moments(count=count, mean=mean, rest=rest, squares=squares)

    @property
    def deviation(self) -> Floats:
        """The standard deviation, [f…]; 1 for a column that is constant apart from rounding errors."""
        deviation = np.sqrt(self.squares / np.maximum(self.count, 1))
        return np.where(deviation > ROUNDING * np.abs(self.mean), deviation, 1.0)


def _add_exactly(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Returns the float64 sum and its rounding error, which add up to a + b exactly (Knuth's TwoSum)."""
    total: Floats = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)
