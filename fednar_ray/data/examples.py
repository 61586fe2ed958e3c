"""Examples, which are inputs with their labels, and shards, which are all clients' examples in one block."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fednar_ray.core.errors import DataError
from fednar_ray.data.conversion import MAP_CODES, to_array, to_pair
from fednar_ray.data.conversion import Array as Array
from fednar_ray.data.transforms import Transform

ArrayLike = Array | torch.Tensor | Sequence[Any]
Pair = tuple[ArrayLike, ArrayLike]

MAX_CLASSES = 2**20
"""Labels from this number on are refused. They are codes (postcodes, ICD numbers) rather than classes, and the model
would get one output for each class up to them. The limit is four times the largest vocabulary of a language model."""


@dataclass(frozen=True, slots=True)
class Examples:
    """N inputs x [N, …] (float32, uint8 images, or integers for embeddings) and their labels y [N].

    Labels are int64 classes from 0 (0 or 1 in the task ``binary``), or float32 numbers in the task ``regression``.
    """

    x: Array
    y: Array

    def __len__(self) -> int:
        return len(self.y)

    @property
    def bytes(self) -> int:
        """The memory of inputs and labels, in bytes."""
        return self.x.nbytes + self.y.nbytes

    @classmethod
    def of(cls, pair: Any, place: str, task: str = "classification") -> "Examples":
        """Checks inputs and labels, and converts them to the types that training uses.

        Args:
            pair: (x, y), or a TensorDataset of both. x is [N, …], y is [N] or [N, 1]; ``conversion.to_array`` lists the
                containers that they may be.
            place: The client or set that they belong to, for messages: "client 3".
            task: classification, binary or regression.

        Raises:
            DataError: There are no examples, lengths differ, labels do not fit the task, or a value is missing,
                infinite or not a number.
        """
        inputs, labels = to_pair(pair, place)
        x, y = to_array(inputs, place, "inputs"), to_array(labels, place, "labels")
        y = _flatten_labels(y, place)
        if x.ndim == 0 or y.ndim != 1 or len(x) != len(y):
            raise DataError(f"{place}: x {x.shape} and y {y.shape} are not N inputs and N labels")
        if not len(y):
            raise DataError(f"{place}: has no examples")
        if not prod(x.shape[1:]):
            raise DataError(f"{place}: x {x.shape}: the inputs hold no numbers")
        y = _to_targets(y, place) if task == "regression" else _to_classes(y, place, task)
        return cls(_to_inputs(x, place), y)

    @classmethod
    def concatenate(cls, parts: Sequence["Examples"]) -> "Examples":
        """Joins several sets of examples in their order."""
        return cls(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


def _flatten_labels(y: Array, place: str) -> Array:
    """Returns labels [N, 1] as [N], and others unchanged. Raises DataError for one-hot labels."""
    if y.ndim != 2:
        return y
    if y.shape[1] == 1:
        return y[:, 0]
    if len(y) and ((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all():
        raise DataError(f"{place}: labels {y.shape} are one-hot; one class per example is needed: y.argmax(axis=1)")
    return y


def _to_inputs(x: Array, place: str) -> Array:
    if x.dtype == np.bool_:
        raise DataError(f"{place}: inputs are bool; numbers are needed: x.astype(np.float32)")
    if np.issubdtype(x.dtype, np.integer):
        return np.ascontiguousarray(x)
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite, and are refused below
        x = np.ascontiguousarray(x, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
    if len(bad):
        raise DataError(f"{place}: {len(bad)} examples hold NaN or infinity, the first at index {bad[0]}")
    return x


def _to_classes(y: Array, place: str, task: str) -> npt.NDArray[np.int64]:
    """Converts class labels to int64. Checks them in their original type, because a conversion could change them."""
    if np.issubdtype(y.dtype, np.floating) and len(broken := np.flatnonzero(~(y == np.round(y)) | ~np.isfinite(y))):
        found = f"label {y[broken[0]]} at index {broken[0]} ({y.dtype})"
        raise DataError(f"{place}: {found}; labels are whole numbers from 0, or any numbers in task regression")
    if y.min() < 0:
        raise DataError(f"{place}: label {y.min()} at index {y.argmin()}; labels are whole numbers from 0 to classes-1")
    if task == "binary" and y.max() > 1:
        raise DataError(f"{place}: label {y.max()} at index {y.argmax()}; the labels of task binary are 0 and 1")
    if int(y.max()) >= MAX_CLASSES:
        found = f"label {y.max()} at index {y.argmax()}; labels are classes from 0, at most {MAX_CLASSES - 1}"
        raise DataError(f"{place}: {found}; if they are codes, {MAP_CODES}")
    return y.astype(np.int64, order="C")


def _to_targets(y: Array, place: str) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        targets = y.astype(np.float32, order="C")
    bad = np.flatnonzero(~np.isfinite(targets))
    if len(bad):
        raise DataError(f"{place}: {len(bad)} labels are NaN or infinite, the first at index {bad[0]}")
    return targets


def check_groups(groups: Any, examples: Examples, place: str) -> Array:
    """Checks groups: for each example, the name or number of the natural client that it belongs to.

    Args:
        groups: A list or array of texts or numbers, [N].
        examples: The N examples.
        place: Where the groups come from, for messages: "data.groups: ward".

    Returns:
        The groups as an array, [N].

    Raises:
        DataError: The number of groups is not N, a group is missing, or texts and numbers are mixed.
    """
    if isinstance(groups, np.ma.MaskedArray) and np.ma.getmaskarray(groups).any():
        raise DataError(f"{place}: {int(groups.mask.sum())} are masked (missing); every example needs a group")
    found = np.asarray(groups)
    if found.shape != examples.y.shape:
        raise DataError(f"{place} {found.shape}: one group for each of {len(examples)} examples is needed")
    missing = np.flatnonzero(_find_missing(found))
    if len(missing):
        text = f"{len(missing)} are missing, the first at index {missing[0]}"
        raise DataError(f"{place}: {text}; every example needs a group")
    try:
        np.unique(found)
    except TypeError:
        raise DataError(f"{place}: hold texts and numbers; one type is needed") from None
    return found


def _find_missing(groups: Array) -> npt.NDArray[np.bool_]:
    if groups.dtype.kind == "O":
        return np.array([repr(group) in ("None", "nan", "<NA>", "NaT") for group in groups])
    return np.isnan(groups) if groups.dtype.kind in "fmM" else np.zeros(len(groups), dtype=bool)


@dataclass(frozen=True, slots=True)
class Shards:
    """The examples of n clients in one block: client ``first + i`` holds the rows ``offsets[i]:offsets[i + 1]``."""

    examples: Examples
    offsets: npt.NDArray[np.int64]  # [n + 1]
    first: int = 0
    transform: Transform | None = None  # converts x to a model's inputs; None: x is used unchanged

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """The number of examples of each client, [n]."""
        return np.diff(self.offsets)

    def rows(self, client_ids: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Returns the first row and the number of rows of each of C clients: [C], [C]."""
        at = np.asarray(client_ids) - self.first
        return self.offsets[at], self.offsets[at + 1] - self.offsets[at]

    def only(self, client_id: int) -> "Shards":
        """Copies one client's examples into a new block, in which the client keeps its id."""
        start, stop = self.offsets[client_id - self.first : client_id - self.first + 2]
        rows = Examples(self.examples.x[start:stop].copy(), self.examples.y[start:stop].copy())
        return Shards(rows, np.array([0, stop - start]), client_id, self.transform)
