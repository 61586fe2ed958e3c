"""A federation: each client's examples, a test set, and perhaps a validation set."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.config.data import TASK_NAMES, AnyData, ImageSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.preprocessing import ImagePreprocessing, Preprocessing, TablePreprocessing
from fednar_ray.core.random import Purpose, generator
from fednar_ray.data import partition as partitions
from fednar_ray.data.conversion import CODES, named_clients, numbered
from fednar_ray.data.examples import Array, Examples, Pair, Shards
from fednar_ray.data.sources import SOURCES, Source
from fednar_ray.data.transforms import Augmentation, Transform

MANY_CLASSES = 1000
"""Up to here an output too many costs nothing, and some classes of a known data set may well be absent."""

log = logging.getLogger("fednar_ray")


class Federation:
    """Clients' examples with a test set and, where it is wanted, a validation set.

    Args:
        clients: One pair (x, y) of arrays or tensors per client, x [n_i, …] and y [n_i]: a list or any other iterable
            of pairs, or a mapping from the clients' names to their pairs. A TensorDataset of both may stand for a pair.
        test: Such a pair.
        validation: Such a pair, or None.
        task: classification (labels are classes from 0), binary (0 and 1) or regression (numbers).

    Attributes:
        client_names: The clients' names by id; "0", "1", … where none are given.

    Raises:
        DataError: There is no client, one has no examples, inputs differ in shape, labels do not fit the task, or
            values are missing or infinite. The message names the client.
    """

    client_names: tuple[str, ...]
    ignored_files: tuple[str, ...] = ()  # what lies beside the clients' files
    _preprocessing: Preprocessing | None = None
    task: str
    metrics_only = False  # may nothing of an example leave who holds it, its scores included?

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
        self.client_names, pairs = named_clients(clients)
        places = [f"client {name}" for name in self.client_names]
        parts = [Examples.of(pair, place, task) for pair, place in zip(pairs, places, strict=True)]
        _same_shape(parts, places)
        sizes = [len(part) for part in parts]
        block = Examples(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))
        self.shards = Shards(block, np.concatenate([[0], np.cumsum(sizes)]))
        self.test = Examples.of(test, "test", task)
        self.validation = None if validation is None else Examples.of(validation, "validation", task)
        self.left_out = 0
        self.name, self.task = "federation", task
        _evaluable(self)
        _warn_of_codes(self)

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
    ) -> "Federation":
        """A federation over examples that are already checked and in one block; clients without names are numbered."""
        federation = cls.__new__(cls)
        federation.name, federation.task = name, task
        federation.client_names = numbered(len(shards.sizes)) if client_names is None else client_names
        federation.shards, federation.left_out = shards, left_out
        federation.test, federation.validation = test, validation
        _evaluable(federation)
        _warn_of_codes(federation)
        return federation

    @property
    def clients(self) -> int:
        """N."""
        return len(self.shards.sizes)

    @property
    def transform(self) -> Transform | None:
        """From stored inputs to a model's; None: they are the same."""
        return self.shards.transform

    @property
    def preprocessing(self) -> Preprocessing | None:
        """From raw inputs to the network's, as the saved model begins with it; None: they are the same."""
        if self.transform is None:
            return self._preprocessing
        return ImagePreprocessing(mean=self.transform.mean, std=self.transform.std)

    def build_example(self) -> Array:
        """Two raw inputs, [2, …], for the record of the saved model; of tables they are nobody's."""
        if isinstance(self.preprocessing, TablePreprocessing):
            return self.preprocessing.build_example()
        return np.concatenate([self.test.x[:2], self.test.x[:1]])[:2]

    @property
    def classes(self) -> int:
        """One more than the highest label anywhere; 1 where labels are numbers."""
        if self.task == "regression":
            return 1
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

    def held_by(self, client_id: int) -> Any:
        """What a client's own actor gets: its shard, or where it reads it."""
        return self.shards.only(client_id)

    def loaded(self) -> tuple[Shards, dict[str, Examples]]:
        """All clients' examples, and the held-out ones by name, for one trainer."""
        return self.shards, self.splits()

    def shared_splits(self) -> dict[str, Examples]:
        """What every actor gets to score."""
        return self.splits()

    def split_offsets(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """Of splits of which each client holds its part: where these begin and end, [N + 1]."""
        return {}

    def label_counts(self) -> npt.NDArray[np.int64]:
        """Examples by client and class, [N, classes]."""
        if self.task == "regression":
            return self.shards.sizes[:, None]
        owner = np.repeat(np.arange(self.clients), self.shards.sizes)
        flat = np.bincount(owner * self.classes + self.shards.examples.y, minlength=self.clients * self.classes)
        return flat.reshape(self.clients, self.classes)


def _same_shape(parts: Sequence[Examples], places: Sequence[str]) -> None:
    for part, place in zip(parts, places, strict=True):
        if part.x.shape[1:] != parts[0].x.shape[1:] or part.x.dtype != parts[0].x.dtype:
            here, there = (f"{p.x.shape[1:]} {p.x.dtype}" for p in (part, parts[0]))
            raise DataError(f"{place}: inputs are {here}, those of {places[0]} are {there}")


def _evaluable(federation: Federation) -> None:
    parts = {"test": federation.test, "validation": federation.validation}
    block = federation.shards.examples.x
    for name, part in parts.items():
        if part is not None and (part.x.shape[1:] != block.shape[1:] or part.x.dtype != block.dtype):
            theirs = f"those of the clients {block.shape[1:]} {block.dtype}"
            raise DataError(f"{name}: inputs are {part.x.shape[1:]} {part.x.dtype}, {theirs}")


def _warn_of_codes(federation: Federation) -> None:
    """Says so where most classes up to the highest label never occur: labels are then codes, as a rule."""
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
    """The federation that a ``data`` section describes. The validation share is held out before partitioning."""
    source = SOURCES[settings.source](settings)
    transform = _transform(settings, source)
    division = divided(settings, seed, source.train_y, source.groups)
    report_lost(settings, [str(group) for group in division.lost])
    rows, held = division.rows, division.held
    examples = Examples(source.train_x[rows], source.train_y[rows])
    federation = Federation.from_shards(
        source.name,
        Shards(examples, division.offsets, transform=transform),
        _test(settings, source, rows),
        Examples(source.train_x[held], source.train_y[held]) if len(held) else None,
        division.left_out,
        source.task,
        _group_names(settings, source, division),
    )
    federation._preprocessing = source.preprocessing
    return federation


def _group_names(settings: AnyData, source: Source, division: "Division") -> tuple[str, ...] | None:
    """The names of natural clients: their groups'. A natural client has an example, so its first one tells."""
    if settings.partition.kind != "natural" or source.groups is None:
        return None
    return tuple(map(str, source.groups[division.rows[division.offsets[:-1]]]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """Who holds which training examples: client i the ``rows[offsets[i]:offsets[i + 1]]``."""

    rows: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]  # [N + 1]
    held: npt.NDArray[np.int64]  # the rows held out for validation
    left_out: int
    lost: Array  # the groups, natural clients, all of whose examples are held out


def divided(settings: AnyData, seed: int, labels: Array, groups: Array | None) -> Division:
    """The validation share first, then the partition of what is left."""
    order = generator(seed, Purpose.HOLDOUT).permutation(len(labels))
    held = partitions.held_out(settings.validation, len(order), "data.validation")
    kept = np.sort(order[held:])
    own = None if groups is None else groups[kept]
    split = _partition(settings, labels[kept], own, generator(seed, Purpose.PARTITION))
    _report(split)
    return Division(
        rows=kept[split.order],
        offsets=split.offsets,
        held=order[:held],
        left_out=len(split.left_out),
        lost=np.empty(0) if groups is None or own is None else np.setdiff1d(groups, own),
    )


def report_lost(settings: AnyData, names: Sequence[str]) -> None:
    """Warns of natural clients that the validation share leaves no training example."""
    if names and settings.partition.kind == "natural":
        text = "data.validation: %g holds out every example of %d clients, which take no part: %s"
        log.warning(text, settings.validation, len(names), ", ".join(names[:20]))


def _partition(
    settings: AnyData, labels: Array, groups: Array | None, rng: np.random.Generator
) -> partitions.Partition:
    wanted = settings.partition
    if wanted.kind == "natural":
        if groups is None:
            raise DataError(f"data.partition.kind: natural needs groups, and {settings.source} names none")
        return partitions.with_minimum(partitions.natural(groups, rng, wanted.clients), 0)
    assert wanted.clients is not None  # checked with the experiment
    kind = partitions.KINDS[wanted.kind]
    split = kind(labels, wanted.clients, rng, wanted.alpha, wanted.shards_per_client)
    return partitions.with_minimum(split, wanted.min_examples)


def _test(settings: AnyData, source: Source, rows: Array) -> Examples:
    """The test set; where clients are some of the groups, theirs of it."""
    if settings.partition.kind != "natural" or source.groups is None or source.test_groups is None:
        return Examples(source.test_x, source.test_y)
    theirs = np.isin(source.test_groups, np.unique(source.groups[rows]))
    if not theirs.any():
        raise DataError(f"data.partition.clients: {settings.partition.clients}: these groups have no test examples")
    return Examples(source.test_x[theirs], source.test_y[theirs])


def _transform(settings: AnyData, source: Source) -> Transform | None:
    """The source's, with the normalization and the augmentation that the settings name."""
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


def _report(split: partitions.Partition) -> None:
    if len(split.left_out):
        log.info("the partition leaves out %d examples", len(split.left_out))
    empty = np.flatnonzero(split.sizes == 0)
    if len(empty):
        log.warning("%d clients have no examples and are never sampled: %s", len(empty), empty[:20].tolist())
