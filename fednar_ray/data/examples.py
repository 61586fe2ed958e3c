"""Inputs with their labels, and clients' examples in one block."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fednar_ray.data.transforms import Transform
from fednar_ray.errors import DataError

Array = npt.NDArray[Any]
ArrayLike = Array | torch.Tensor | Sequence[Any]
Pair = tuple[ArrayLike, ArrayLike]


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs x [N, …] (float32, uint8 images, or integers for embeddings) and labels y [N].

    Labels are int64 classes, 0 or 1 in the task ``binary``, and float32 in the task ``regression``.
    """

    x: Array
    y: Array

    def __len__(self) -> int:
        return len(self.y)

    @property
    def bytes(self) -> int:
        """What they take in memory."""
        return self.x.nbytes + self.y.nbytes

    @classmethod
    def of(cls, pair: Pair, place: str, task: str = "classification") -> "Examples":
        """Checked arrays. Raises DataError for lengths that differ, labels that the task has not, NaN or infinity."""
        x, y = (_as_array(part, place) for part in pair)
        if x.ndim == 0 or y.ndim != 1 or len(x) != len(y):
            raise DataError(f"{place}: x {x.shape} and y {y.shape} are not N examples and N labels")
        if not len(y):
            raise DataError(f"{place}: has no examples")
        y = _targets(y, place) if task == "regression" else _classes(y, place, task)
        return cls(_inputs(x, place), y)


def _inputs(x: Array, place: str) -> Array:
    if not np.issubdtype(x.dtype, np.floating):
        if not np.issubdtype(x.dtype, np.integer):
            raise DataError(f"{place}: inputs are {x.dtype}; numbers are needed")
        return x
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        x = np.ascontiguousarray(x, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
    if len(bad):
        raise DataError(f"{place}: {len(bad)} examples hold NaN or infinity, the first at index {bad[0]}")
    return x


def _classes(y: Array, place: str, task: str) -> npt.NDArray[np.int64]:
    if not _whole_numbers(y):
        raise DataError(f"{place}: labels are {y.dtype}; whole numbers from 0 are needed")
    if y.min() < 0:
        raise DataError(f"{place}: label {y.min()} at index {y.argmin()}; labels run from 0 to classes-1")
    if task == "binary" and y.max() > 1:
        raise DataError(f"{place}: label {y.max()} at index {y.argmax()}; the labels of task binary are 0 and 1")
    return y.astype(np.int64)


def _targets(y: Array, place: str) -> npt.NDArray[np.float32]:
    if not np.issubdtype(y.dtype, np.number) or np.issubdtype(y.dtype, np.complexfloating):
        raise DataError(f"{place}: labels are {y.dtype}; numbers are needed")
    with np.errstate(over="ignore"):
        targets = y.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(targets))
    if len(bad):
        raise DataError(f"{place}: {len(bad)} labels are NaN or infinite, the first at index {bad[0]}")
    return targets


def _as_array(part: ArrayLike, place: str) -> Array:
    try:
        return np.asarray(part.detach().cpu() if isinstance(part, torch.Tensor) else part)
    except ValueError as error:
        raise DataError(f"{place}: not an array: {error}") from None


def _whole_numbers(labels: Array) -> bool:
    if np.issubdtype(labels.dtype, np.floating):
        return bool((np.isfinite(labels) & (labels == np.round(labels))).all())
    return bool(np.issubdtype(labels.dtype, np.integer))


@dataclass(frozen=True, slots=True)
class Shards:
    """Clients' examples in one block: client ``first + i`` holds the rows ``offsets[i]`` to ``offsets[i + 1]``."""

    examples: Examples
    offsets: npt.NDArray[np.int64]  # [n + 1]
    first: int = 0
    transform: Transform | None = None  # from x to a model's inputs; None: x is what the model takes

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """n_i, [n]."""
        return np.diff(self.offsets)

    def rows(self, client_ids: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where the named clients' rows start, and how many they are: [C], [C]."""
        at = np.asarray(client_ids) - self.first
        return self.offsets[at], self.offsets[at + 1] - self.offsets[at]

    def only(self, client_id: int) -> "Shards":
        """One client's rows, as a block of their own."""
        start, stop = self.offsets[client_id - self.first : client_id - self.first + 2]
        rows = Examples(self.examples.x[start:stop].copy(), self.examples.y[start:stop].copy())
        return Shards(rows, np.array([0, stop - start]), client_id, self.transform)
