"""Inputs with their labels, and clients' examples in one block."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fednar_ray.core.errors import DataError
from fednar_ray.data.conversion import CODES, as_pair, to_array
from fednar_ray.data.conversion import Array as Array
from fednar_ray.data.transforms import Transform

ArrayLike = Array | torch.Tensor | Sequence[Any]
Pair = tuple[ArrayLike, ArrayLike]

MAX_CLASSES = 2**20
"""A label beyond is a code (a postcode, an ICD number), not a class: every class has an output of the model and counts
of its own, which such labels would fill memory with. Four times the largest vocabulary of a language model."""


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
    def of(cls, pair: Any, place: str, task: str = "classification") -> "Examples":
        """Checks and converts inputs and labels.

        Args:
            pair: (x, y), or a TensorDataset of both; see ``conversion.to_array`` for what x and y may be. x is
                [N, …]; y is [N], or [N, 1].
            place: Whose they are, for messages: "client 3".
            task: classification, binary or regression.

        Raises:
            DataError: Lengths differ, labels do not fit the task, or something is missing, infinite or no number.
        """
        inputs, labels = as_pair(pair, place)
        x, y = to_array(inputs, place, "inputs"), to_array(labels, place, "labels")
        y = _one_label_each(y, place)
        if x.ndim == 0 or y.ndim != 1 or len(x) != len(y):
            raise DataError(f"{place}: x {x.shape} and y {y.shape} are not N examples and N labels")
        if not len(y):
            raise DataError(f"{place}: has no examples")
        if not prod(x.shape[1:]):
            raise DataError(f"{place}: x {x.shape}: an input holds no numbers")
        y = _targets(y, place) if task == "regression" else _classes(y, place, task)
        return cls(_inputs(x, place), y)


def _one_label_each(y: Array, place: str) -> Array:
    """[N] as it is, or from [N, 1]. Raises DataError for one-hot labels."""
    if y.ndim != 2:
        return y
    if y.shape[1] == 1:
        return y[:, 0]
    if len(y) and ((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all():
        raise DataError(f"{place}: labels {y.shape} are one-hot; N labels [N] are needed: y.argmax(axis=1)")
    return y


def _inputs(x: Array, place: str) -> Array:
    if x.dtype == np.bool_:
        raise DataError(f"{place}: inputs are bool; numbers are needed: x.astype(np.float32)")
    if np.issubdtype(x.dtype, np.integer):
        return np.ascontiguousarray(x)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        x = np.ascontiguousarray(x, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
    if len(bad):
        raise DataError(f"{place}: {len(bad)} examples hold NaN or infinity, the first at index {bad[0]}")
    return x


def _classes(y: Array, place: str, task: str) -> npt.NDArray[np.int64]:
    """Class labels as int64; checked in the type that they come in, so that none is changed on the way."""
    if np.issubdtype(y.dtype, np.floating) and len(broken := np.flatnonzero(~(y == np.round(y)) | ~np.isfinite(y))):
        found = f"label {y[broken[0]]} at index {broken[0]} ({y.dtype})"
        raise DataError(f"{place}: {found}; labels are whole numbers from 0, or numbers in task regression")
    if y.min() < 0:
        raise DataError(f"{place}: label {y.min()} at index {y.argmin()}; labels run from 0 to classes-1")
    if task == "binary" and y.max() > 1:
        raise DataError(f"{place}: label {y.max()} at index {y.argmax()}; the labels of task binary are 0 and 1")
    if int(y.max()) >= MAX_CLASSES:
        found = f"label {y.max()} at index {y.argmax()}; labels are classes from 0, at most {MAX_CLASSES - 1}"
        raise DataError(f"{place}: {found}; if they are codes, {CODES}")
    return y.astype(np.int64, order="C")


def _targets(y: Array, place: str) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        targets = y.astype(np.float32, order="C")
    bad = np.flatnonzero(~np.isfinite(targets))
    if len(bad):
        raise DataError(f"{place}: {len(bad)} labels are NaN or infinite, the first at index {bad[0]}")
    return targets


def one_group_each(groups: Any, examples: Examples, place: str) -> Array:
    """Checks groups, the natural clients of examples: one name or number for each.

    Returns:
        The groups as an array [N].

    Raises:
        DataError: There are more or fewer than examples, one is missing, or they cannot be sorted (texts and numbers).
    """
    if isinstance(groups, np.ma.MaskedArray) and np.ma.getmaskarray(groups).any():
        raise DataError(f"{place}: {int(groups.mask.sum())} are masked (missing); every example needs one")
    found = np.asarray(groups)
    if found.shape != examples.y.shape:
        raise DataError(f"{place} {found.shape}: one for each of {len(examples)} examples is needed")
    lacking = np.flatnonzero(_missing(found))
    if len(lacking):
        text = f"{len(lacking)} are missing, the first at index {lacking[0]}"
        raise DataError(f"{place}: {text}; every example needs one")
    try:
        np.unique(found)
    except TypeError:
        raise DataError(f"{place}: hold texts and numbers; one type is needed") from None
    return found


def _missing(groups: Array) -> npt.NDArray[np.bool_]:
    if groups.dtype.kind == "O":
        return np.array([repr(group) in ("None", "nan", "<NA>", "NaT") for group in groups])
    return np.isnan(groups) if groups.dtype.kind in "fmM" else np.zeros(len(groups), dtype=bool)


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
