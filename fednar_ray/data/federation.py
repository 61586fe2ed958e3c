"""Federations: each client's examples, a test set, and perhaps a validation set."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.config.data import TASK_NAMES, AnyData, ImageSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.preprocessing import ImagePreprocessing, Preprocessing, TablePreprocessing
from fednar_ray.data.conversion import CODES, named_clients, numbered
from fednar_ray.data.division import divide, report_lost
from fednar_ray.data.examples import Array, Examples, Pair, Shards
from fednar_ray.data.partition import Partition
from fednar_ray.data.sources import SOURCES, Source
from fednar_ray.data.transforms import Augmentation, Transform

MANY_CLASSES = 1000
"""Up to this number, unused outputs cost nothing, and some classes of a known data set may well be absent."""

log = logging.getLogger("fednar_ray")


class FederatedData(ABC):
    """What a run knows of its clients' examples, wherever the examples are.

    ``Federation`` holds them in memory, ``FederationOfFiles`` knows which file each client reads.

    Attributes:
        name: The data set's name.
        task: classification (labels are classes from 0), binary (0 and 1) or regression (numbers).
        client_names: The clients' names by id; "0", "1", … where none are given.
        shards: Each client's training examples in one block. Where the clients read their own files, the inputs are
            zeros of the right shape and type, which take no memory.
        test: The test examples.
        validation: The validation examples, or None.
        left_out: The number of training examples that no client holds.
        ignored_files: The names of files beside the clients' files that are not read.
        metrics_only: Whether nothing about a single example may leave the client that holds it, its scores included.
    """

    def __init__(
        self,
        name: str,
        task: str,
        client_names: tuple[str, ...],
        shards: Shards,
        test: Examples,
        validation: Examples | None,
        *,
        left_out: int = 0,
        preprocessing: Preprocessing | None = None,
        ignored_files: tuple[str, ...] = (),
        metrics_only: bool = False,
    ) -> None:
        self.name, self.task, self.client_names = name, task, client_names
        self.shards, self.test, self.validation = shards, test, validation
        self.left_out, self.ignored_files, self.metrics_only = left_out, ignored_files, metrics_only
        self._preprocessing = preprocessing

    @property
    def num_clients(self) -> int:
        """The number of clients, N."""
        return len(self.shards.sizes)

    @property
    def transform(self) -> Transform | None:
        """From stored inputs to a model's; None where they are the same."""
        return self.shards.transform

    @property
    def preprocessing(self) -> Preprocessing | None:
        """From raw inputs to the network's, as the first step of the saved model; None where they are the same."""
        if self.transform is None:
            return self._preprocessing
        return ImagePreprocessing(mean=self.transform.mean, std=self.transform.std)

    def build_example(self) -> Array:
        """Builds two raw inputs, [2, …], for the record of the saved model. For tables they are made up."""
        if isinstance(self.preprocessing, TablePreprocessing):
            return self.preprocessing.build_example()
        return np.concatenate([self.test.x[:2], self.test.x[:1]])[:2]

    def splits(self) -> dict[str, Examples]:
        """The held-out examples by name: test and, where there is one, validation."""
        return {"test": self.test} | ({} if self.validation is None else {"validation": self.validation})

    @property
    @abstractmethod
    def classes(self) -> int:
        """One more than the highest label anywhere; 1 in regression."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the clients' examples, and of which client holds which, as hexadecimal digits."""

    @abstractmethod
    def label_counts(self) -> npt.NDArray[np.int64]:
        """Counts training examples by client and class, [N, classes]; in regression [N, 1]."""

    @abstractmethod
    def held_by(self, client_id: int) -> Any:
        """What a client's own actor gets: its shard, or where it reads it."""

    @abstractmethod
    def loaded(self) -> tuple[Shards, dict[str, Examples]]:
        """All clients' examples, and the held-out ones by name, for one trainer."""

    @abstractmethod
    def shared_splits(self) -> dict[str, Examples]:
        """The held-out examples that every actor gets to score."""

    @abstractmethod
    def split_offsets(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """For splits of which each client holds its own part, where the parts begin and end, [N + 1]."""


class Federation(FederatedData):
    """Clients' examples in memory, with a test set and perhaps a validation set.

    Args:
        clients: One pair (x, y) of arrays or tensors per client, x [n_i, …] and y [n_i]: a list or any other iterable
            of pairs, or a mapping from the clients' names to their pairs. A TensorDataset of both may stand for a pair.
        test: Such a pair.
        validation: Such a pair, or None.
        task: classification (labels are classes from 0), binary (0 and 1) or regression (numbers).

    Raises:
        DataError: There is no client, one has no examples, inputs differ in shape, labels do not fit the task, or
            values are missing or infinite. The message names the client.

    Example:
        >>> x, y = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])
        >>> Federation({"north": (x, y), "south": (x, y)}, test=(x, y)).num_clients
        2
    """

    def __init__(
        self,
        clients: Mapping[str, Pair] | Iterable[Pair],
        test: Pair,
        validation: Pair | None = None,
        *,
        task: str = "classification",
    ) -> None:
        if task not in TASK_NAMES:
            raise DataError(f"task: {task!r} should be one of {', '.join(TASK_NAMES)}")
        client_names, pairs = named_clients(clients)
        places = [f"client {name}" for name in client_names]
        parts = [Examples.of(pair, place, task) for pair, place in zip(pairs, places, strict=True)]
        _check_same_shape(parts, places)
        block = Examples(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))
        shards = Shards(block, np.cumsum([0, *map(len, parts)]))
        held_out = None if validation is None else Examples.of(validation, "validation", task)
        super().__init__("federation", task, client_names, shards, Examples.of(test, "test", task), held_out)
        self._check()

    @classmethod
    def from_shards(
        cls,
        name: str,
        shards: Shards,
        test: Examples,
        validation: Examples | None,
        left_out: int,
        task: str = "classification",
        client_names: tuple[str, ...] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> "Federation":
        """Builds a federation of examples that are checked and in one block. Clients without names are numbered."""
        names = numbered(len(shards.sizes)) if client_names is None else client_names
        federation = cls.__new__(cls)
        FederatedData.__init__(
            federation, name, task, names, shards, test, validation, left_out=left_out, preprocessing=preprocessing
        )
        federation._check()
        return federation

    def _check(self) -> None:
        """Checks that the held-out examples fit the clients', and warns where labels look like codes."""
        _check_shape_of_splits(self)
        _warn_of_codes(self)

    @property
    def classes(self) -> int:
        """One more than the highest label anywhere; 1 in regression."""
        if self.task == "regression":
            return 1
        parts = [self.shards.examples, *self.splits().values()]
        return 1 + max(int(part.y.max()) for part in parts)

    def digest(self) -> str:
        """SHA-256 of the clients' examples, and of which client holds which, as hexadecimal digits."""
        found = hashlib.sha256()
        for array in (self.shards.examples.x, self.shards.examples.y, self.shards.offsets):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def held_by(self, client_id: int) -> Shards:
        """The client's shard."""
        return self.shards.only(client_id)

    def loaded(self) -> tuple[Shards, dict[str, Examples]]:
        """All clients' examples, and the held-out ones by name."""
        return self.shards, self.splits()

    def shared_splits(self) -> dict[str, Examples]:
        """All splits: every actor scores its part of each."""
        return self.splits()

    def split_offsets(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """Empty: no client holds a part of a split."""
        return {}

    def label_counts(self) -> npt.NDArray[np.int64]:
        """Counts training examples by client and class, [N, classes]; in regression [N, 1]."""
        if self.task == "regression":
            return self.shards.sizes[:, None]
        owner = np.repeat(np.arange(self.num_clients), self.shards.sizes)
        length = self.num_clients * self.classes
        flat = np.bincount(owner * self.classes + self.shards.examples.y, minlength=length)
        return flat.reshape(self.num_clients, self.classes)


def _check_same_shape(parts: Sequence[Examples], places: Sequence[str]) -> None:
    for part, place in zip(parts, places, strict=True):
        if part.x.shape[1:] != parts[0].x.shape[1:] or part.x.dtype != parts[0].x.dtype:
            here, there = (f"{p.x.shape[1:]} {p.x.dtype}" for p in (part, parts[0]))
            raise DataError(f"{place}: inputs are {here}, those of {places[0]} are {there}")


def _check_shape_of_splits(federation: Federation) -> None:
    parts = {"test": federation.test, "validation": federation.validation}
    block = federation.shards.examples.x
    for name, part in parts.items():
        if part is not None and (part.x.shape[1:] != block.shape[1:] or part.x.dtype != block.dtype):
            theirs = f"those of the clients {block.shape[1:]} {block.dtype}"
            raise DataError(f"{name}: inputs are {part.x.shape[1:]} {part.x.dtype}, {theirs}")


def _warn_of_codes(federation: Federation) -> None:
    """Warns where most classes up to the highest label never occur: such labels are usually codes."""
    classes = federation.classes
    if classes <= MANY_CLASSES:
        return
    labels = [federation.shards.examples.y, *(part.y for part in federation.splits().values())]
    found = len(np.unique(np.concatenate([np.unique(part) for part in labels])))
    if found * 10 < classes:
        text = (
            "the highest label is %d, but only %d classes occur, and a model gets %d outputs; if labels are codes, %s"
        )
        log.warning(text, classes - 1, found, classes, CODES)


def load_federation(settings: AnyData, seed: int) -> Federation:
    """Loads the federation that a ``data`` section describes.

    Args:
        settings: The section.
        seed: Decides which examples are held out for validation, and which client holds which of the others.

    Raises:
        DataError: The data cannot be read, or cannot be divided as the section says.
    """
    source = SOURCES[settings.source](settings)
    transform = _build_transform(settings, source)
    division = divide(settings, seed, source.train_y, source.groups)
    report_lost(settings, [str(group) for group in division.lost])
    rows, held = division.partition.order, division.held_out
    examples = Examples(source.train_x[rows], source.train_y[rows])
    return Federation.from_shards(
        source.name,
        Shards(examples, division.partition.offsets, transform=transform),
        _select_test(settings, source, rows),
        Examples(source.train_x[held], source.train_y[held]) if len(held) else None,
        len(division.partition.left_out),
        source.task,
        _group_names(settings, source, division.partition),
        source.preprocessing,
    )


def _group_names(settings: AnyData, source: Source, partition: Partition) -> tuple[str, ...] | None:
    """The names of natural clients are those of their groups: that of the first example, since each has one."""
    if settings.partition.kind != "natural" or source.groups is None:
        return None
    return tuple(map(str, source.groups[partition.order[partition.offsets[:-1]]]))


def _select_test(settings: AnyData, source: Source, rows: Array) -> Examples:
    """The test set. Where the clients are only some of the groups, it is the part of these groups."""
    if settings.partition.kind != "natural" or source.groups is None or source.test_groups is None:
        return Examples(source.test_x, source.test_y)
    theirs = np.isin(source.test_groups, np.unique(source.groups[rows]))
    if not theirs.any():
        raise DataError(f"data.partition.clients: {settings.partition.clients}: these groups have no test examples")
    return Examples(source.test_x[theirs], source.test_y[theirs])


def _build_transform(settings: AnyData, source: Source) -> Transform | None:
    """The source's transform, with the normalization and the augmentation that the settings name."""
    if not isinstance(settings, ImageSettings):
        return source.transform
    transform, given, changes = source.transform, settings.normalization, settings.augmentation
    if transform is None:
        if given is not None or changes is not None:
            raise DataError(f"data: normalization and augmentation are of uint8 images, and {source.name} has none")
        return None
    channels = source.train_x.shape[1]
    if given is not None:
        if {len(given.mean), len(given.std)} != {channels}:
            raise DataError(f"data.normalization: the images have {channels} channels; give as many of mean and std")
        transform = replace(transform, mean=given.mean, std=given.std)
    if changes is None:
        return transform
    per_example = changes.kind == "per_example"
    augmentation = Augmentation(per_example=per_example, padding=changes.padding, flip=changes.flip)
    return replace(transform, augmentation=augmentation)
