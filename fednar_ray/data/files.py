"""A federation whose examples stay in one file per client: the actor that trains a client reads its file.

The driver keeps a summary of each file: sizes, moments, counts of labels, and the labels of the held-out examples. The
files of silos reveal no labels, only the metrics of their held-out examples.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fednar_ray.config.data import FolderSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.preprocessing import TablePreprocessing
from fednar_ray.data.division import Division, divide, report_lost
from fednar_ray.data.examples import Array, Examples, Shards
from fednar_ray.data.federation import FederatedData
from fednar_ray.data.sources.client_files import (
    ClientFile,
    Counts,
    FileSummary,
    client_files,
    common_preprocessing,
    find_ignored,
    label_counts,
    list_names,
    with_columns,
)
from fednar_ray.data.sources.tables import FORMATS

log = logging.getLogger("fednar_ray")

Indices = npt.NDArray[np.int64]
Item = TypeVar("Item", "ClientFile", "ShardFile")
Answer = TypeVar("Answer")


class Survey(Protocol):
    """Asks the holder of each file."""

    def __call__(self, question: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
        """Returns the answers, in the order of the items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """Where a client's examples are. It is sent to actors instead of the examples."""

    file: ClientFile
    preprocessing: TablePreprocessing
    client_id: int
    train: Indices  # which of the file's training examples it trains on, in that order
    validation: Indices
    digest: str  # of the rows that were surveyed

    @property
    def name(self) -> str:
        """The client's name."""
        return self.file.name

    def load(self) -> tuple[Shards, dict[str, Examples]]:
        """Reads the client's shard, and its own examples of each split.

        Raises:
            DataError: The file cannot be read, or its rows changed since they were surveyed. The message names it.
        """
        rows = self.file.read()
        if rows.digest != self.digest:
            raise DataError(f"{self.file.path}: its rows changed since the run was started")
        train, test = self.file.examples_of(rows, self.preprocessing)
        own = Examples(train.x[self.train], train.y[self.train])
        splits = {"test": test, "validation": Examples(train.x[self.validation], train.y[self.validation])}
        return Shards(own, np.array([0, len(own)]), self.client_id), splits

    def label_counts(self) -> Counts:
        """Counts the examples that the client trains on, by class."""
        return label_counts(self.load()[0].examples.y, self.file.settings.task)


class FederationOfFiles(FederatedData):
    """A federation whose clients each read their own file.

    Inputs are stood in for by zeros of the right shape and type, which take no memory; so are labels that may not
    leave their file.

    Args:
        name: The data set's name.
        task: classification, binary or regression.
        shards: Where each client's examples are.
        surveys: The summary of each client's file.
        counts: Each client's training examples by class.
        left_out: The number of training examples that no client holds.
        ignored_files: The names of files beside the clients' files that are not read.
    """

    def __init__(
        self,
        name: str,
        task: str,
        shards: Sequence[ShardFile],
        surveys: Sequence[FileSummary],
        counts: Sequence[Counts],
        left_out: int,
        ignored_files: Sequence[str] = (),
    ) -> None:
        known = [_known_labels(survey, task) for survey in surveys]
        held_out = {
            "test": [test for _, test in known],
            "validation": [train[s.validation] for s, (train, _) in zip(shards, known, strict=True)],
        }
        shape = shards[0].preprocessing.mean.shape
        test, validation = (_stand_in(np.concatenate(parts), shape) for parts in held_out.values())
        offsets = np.cumsum([0, *(len(shard.train) for shard in shards)])
        super().__init__(
            name,
            task,
            tuple(shard.name for shard in shards),
            Shards(_stand_in(np.zeros(offsets[-1], dtype=test.y.dtype), shape), offsets),
            test,
            validation if len(validation) else None,
            left_out=left_out,
            preprocessing=shards[0].preprocessing,
            ignored_files=tuple(ignored_files),
            metrics_only=any(survey.labels is None for survey in surveys),
        )
        self._files = shards
        self._offsets = {part: np.cumsum([0, *map(len, labels)]) for part, labels in held_out.items()}
        self._classes = max(survey.classes for survey in surveys)
        self._counts = np.stack([np.pad(own, (0, self._classes - len(own))) for own in counts])
        digests = (survey.digest.encode() for survey in surveys)
        self._digest = hashlib.sha256(b"".join((*digests, *(shard.train.tobytes() for shard in shards)))).hexdigest()

    @property
    def classes(self) -> int:
        """One more than the highest label anywhere; 1 in regression."""
        return self._classes

    def label_counts(self) -> Counts:
        """Counts training examples by client and class, [N, classes]; in regression [N, 1]."""
        return self._counts

    def digest(self) -> str:
        """SHA-256 of the files' rows, and of which client holds which, as hexadecimal digits."""
        return self._digest

    def held_by(self, client_id: int) -> ShardFile:
        """Where the client reads its examples."""
        return self._files[client_id]

    def loaded(self) -> tuple[Shards, dict[str, Examples]]:
        """All clients' examples, and the held-out ones by name, read from the files."""
        shards, splits = zip(*(file.load() for file in self._files), strict=True)
        own = _join([shard.examples for shard in shards])
        return Shards(own, self.shards.offsets), {name: _join([part[name] for part in splits]) for name in splits[0]}

    def shared_splits(self) -> dict[str, Examples]:
        """Empty: each client holds its own part of each split."""
        return {}

    def split_offsets(self) -> Mapping[str, Indices]:
        """Where each client's part of a split begins and ends, [N + 1]."""
        return self._offsets


def _known_labels(survey: FileSummary, task: str) -> tuple[Array, Array]:
    """The labels of training and test examples; zeros for labels that may not leave their file."""
    if survey.labels is not None:
        return survey.labels
    kind = np.float32 if task == "regression" else np.int64
    return np.zeros(survey.train, dtype=kind), np.zeros(survey.test, dtype=kind)


def _join(parts: Sequence[Examples]) -> Examples:
    return Examples(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


def _stand_in(labels: Array, shape: tuple[int, ...]) -> Examples:
    return Examples(np.broadcast_to(np.zeros(shape, dtype=np.float32), (len(labels), *shape)), labels)


def load_file_federation(settings: FolderSettings, seed: int) -> FederationOfFiles:
    """Builds the federation of a directory: the same clients and examples, in the same order, as in memory.

    Each file is read once, to summarize it, and its rows are not kept.
    """
    files = client_files(settings)
    surveys = [file.survey() for file in files]
    division, shards = _divide(files, surveys, settings, seed)
    own, task = [surveys[shard.file.client_id] for shard in shards], settings.task
    counts = [
        label_counts(_known_labels(survey, task)[0][s.train], task) for s, survey in zip(shards, own, strict=True)
    ]
    name, ignored = Path(str(settings.directory)).name, find_ignored(settings)
    if ignored:
        log.warning("%s: ignored %s; clients' files are %s", settings.directory, list_names(ignored), FORMATS)
    return FederationOfFiles(name, task, shards, own, counts, len(division.partition.left_out), ignored)


def load_silo_federation(
    files: Sequence[ClientFile], settings: FolderSettings, seed: int, ask: Survey
) -> FederationOfFiles:
    """Builds the federation of files that only their holders read: ``ask`` brings back a summary of each."""
    if settings.features is None:
        files = with_columns(files, ask(ClientFile.columns, files[:1])[0])
    surveys = ask(ClientFile.figures, files)
    division, shards = _divide(files, surveys, settings, seed)
    own = [surveys[shard.file.client_id] for shard in shards]
    counts = ask(ShardFile.label_counts, shards) if len(division.held_out) else [survey.counts for survey in own]
    return FederationOfFiles("silos", settings.task, shards, own, counts, len(division.partition.left_out))


def _divide(
    files: Sequence[ClientFile], surveys: Sequence[FileSummary], settings: FolderSettings, seed: int
) -> tuple[Division, list[ShardFile]]:
    """Divides the files' examples. Raises DataError where inputs differ in shape, or no example is held out to test."""
    preprocessing = common_preprocessing(files, [survey.moments for survey in surveys])
    sizes = np.array([survey.train for survey in surveys])
    owner = np.repeat(np.arange(len(files)), sizes)
    division = divide(settings, seed, owner, owner)
    report_lost(settings, [files[j].name for j in division.lost])
    partition, held_out = division.partition, division.held_out
    clients = owner[partition.order[partition.offsets[:-1]]]  # a natural client has examples
    if not any(surveys[j].test for j in clients):
        raise DataError(f"data.test_share: {settings.test_share:g}: no client is large enough to hold out that much")
    starts, train = np.cumsum(sizes) - sizes, np.split(partition.order, partition.offsets[1:-1])
    shards = [
        ShardFile(
            file=files[j],
            preprocessing=preprocessing,
            client_id=i,
            train=train[i] - starts[j],
            validation=held_out[owner[held_out] == j] - starts[j],
            digest=surveys[j].digest,
        )
        for i, j in enumerate(clients)
    ]
    return division, shards
