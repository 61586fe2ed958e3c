"""A federation: each client's examples, a test set, and perhaps a validation set."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fednar_ray.config import DataSettings
from fednar_ray.data import partition as partitions
from fednar_ray.data.sources import SOURCES
from fednar_ray.errors import DataError
from fednar_ray.seeding import Purpose, generator

log = logging.getLogger("fednar_ray")

Array = npt.NDArray[Any]
ArrayLike = Array | torch.Tensor | Sequence[Any]
Pair = tuple[ArrayLike, ArrayLike]


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs x [N, …] (float32, or integers for embeddings) and labels y [N] int64."""

    x: Array
    y: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def of(cls, pair: Pair, place: str) -> "Examples":
        """Checked arrays. Raises DataError for lengths that differ, labels that are no integers, NaN or infinity."""
        x, y = (_as_array(part, place) for part in pair)
        if x.ndim == 0 or y.ndim != 1 or len(x) != len(y):
            raise DataError(f"{place}: x {x.shape} and y {y.shape} are not N examples and N labels")
        if not len(y):
            raise DataError(f"{place}: has no examples")
        if not _whole_numbers(y):
            raise DataError(f"{place}: labels are {y.dtype}; whole numbers from 0 are needed")
        if np.issubdtype(x.dtype, np.floating):
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
                x = np.ascontiguousarray(x, dtype=np.float32)
            bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
            if len(bad):
                raise DataError(f"{place}: {len(bad)} examples hold NaN or infinity, the first at index {bad[0]}")
        elif not np.issubdtype(x.dtype, np.integer):
            raise DataError(f"{place}: inputs are {x.dtype}; numbers are needed")
        if y.min() < 0:
            raise DataError(f"{place}: label {y.min()} at index {y.argmin()}; labels run from 0 to classes-1")
        return cls(x, y.astype(np.int64))


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
        return Shards(rows, np.array([0, stop - start]), client_id)


class Federation:
    """Clients' examples with a test set and, where it is wanted, a validation set.

    ``clients``: a pair (x, y) of arrays or tensors a client, x [n_i, …], y [n_i] labels 0..classes-1.
    ``test``, ``validation``: such pairs too.  Raises DataError: no clients, a client without examples,
    inputs of different shapes, labels below 0, NaN or infinity.
    """

    task: str = "classification"

    def __init__(self, clients: Sequence[Pair], test: Pair, validation: Pair | None = None) -> None:
        if not len(clients):
            raise DataError("clients: a federation needs at least one client")
        parts = [Examples.of(pair, f"client {i}") for i, pair in enumerate(clients)]
        _same_shape(parts)
        sizes = [len(part) for part in parts]
        block = Examples(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))
        self.shards = Shards(block, np.concatenate([[0], np.cumsum(sizes)]))
        self.test = Examples.of(test, "test")
        self.validation = None if validation is None else Examples.of(validation, "validation")
        self.left_out = 0
        self.name = "federation"
        _evaluable(self)

    @classmethod
    def from_shards(
        cls, name: str, shards: Shards, test: Examples, validation: Examples | None, left_out: int
    ) -> "Federation":
        """A federation over examples that are already checked and in one block."""
        federation = cls.__new__(cls)
        federation.name, federation.shards, federation.left_out = name, shards, left_out
        federation.test, federation.validation = test, validation
        _evaluable(federation)
        return federation

    @property
    def clients(self) -> int:
        """N."""
        return len(self.shards.sizes)

    @property
    def classes(self) -> int:
        """One more than the highest label anywhere."""
        parts = [self.shards.examples, *self.splits().values()]
        return 1 + max(int(part.y.max()) for part in parts)

    def digest(self) -> str:
        """SHA-256 of the clients' examples, and of who holds which, as hexadecimal digits."""
        found = hashlib.sha256()
        for array in (self.shards.examples.x, self.shards.examples.y, self.shards.offsets):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def splits(self) -> dict[str, Examples]:
        """The held-out examples by name: test and, where there is one, validation."""
        return {"test": self.test} | ({} if self.validation is None else {"validation": self.validation})

    def label_counts(self) -> npt.NDArray[np.int64]:
        """Examples by client and class, [N, classes]."""
        owner = np.repeat(np.arange(self.clients), self.shards.sizes)
        flat = np.bincount(owner * self.classes + self.shards.examples.y, minlength=self.clients * self.classes)
        return flat.reshape(self.clients, self.classes)


def _same_shape(parts: Sequence[Examples]) -> None:
    for i, part in enumerate(parts):
        if part.x.shape[1:] != parts[0].x.shape[1:] or part.x.dtype != parts[0].x.dtype:
            here, there = (f"{p.x.shape[1:]} {p.x.dtype}" for p in (part, parts[0]))
            raise DataError(f"client {i}: inputs are {here}, those of client 0 are {there}")


def _evaluable(federation: Federation) -> None:
    parts = {"test": federation.test, "validation": federation.validation}
    block = federation.shards.examples.x
    for name, part in parts.items():
        if part is not None and (part.x.shape[1:] != block.shape[1:] or part.x.dtype != block.dtype):
            theirs = f"those of the clients {block.shape[1:]} {block.dtype}"
            raise DataError(f"{name}: inputs are {part.x.shape[1:]} {part.x.dtype}, {theirs}")


def load_federation(settings: DataSettings, seed: int) -> Federation:
    """The federation that a ``data`` section describes. The validation share is held out before partitioning."""
    source = SOURCES[settings.source]()
    order = generator(seed, Purpose.HOLDOUT).permutation(len(source.train_y))
    held = round(settings.validation * len(order))
    kept = np.sort(order[held:])
    groups = None if source.groups is None else source.groups[kept]
    split = _partition(settings, source.train_y[kept], groups, generator(seed, Purpose.PARTITION))
    rows = kept[split.order]
    shards = Shards(Examples(source.train_x[rows], source.train_y[rows]), split.offsets)
    validation = Examples(source.train_x[order[:held]], source.train_y[order[:held]]) if held else None
    _report(split)
    test = Examples(source.test_x, source.test_y)
    return Federation.from_shards(source.name, shards, test, validation, len(split.left_out))


def _partition(
    settings: DataSettings,
    labels: npt.NDArray[np.int64],
    groups: Array | None,
    rng: np.random.Generator,
) -> partitions.Partition:
    wanted = settings.partition
    if wanted.kind == "natural":
        if groups is None:
            raise DataError(f"data.partition.kind: natural needs groups, and {settings.source} names none")
        return partitions.with_minimum(partitions.natural(groups, rng), 0)
    assert wanted.clients is not None  # checked with the experiment
    kind = partitions.KINDS[wanted.kind]
    split = kind(labels, wanted.clients, rng, wanted.alpha, wanted.shards_per_client)
    return partitions.with_minimum(split, wanted.min_examples)


def _report(split: partitions.Partition) -> None:
    if len(split.left_out):
        log.info("the partition leaves out %d examples, its remainder", len(split.left_out))
    empty = np.flatnonzero(split.sizes == 0)
    if len(empty):
        log.warning("%d clients have no examples and are never sampled: %s", len(empty), empty[:20].tolist())
