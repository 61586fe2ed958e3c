"""A federation whose examples stay in one file a client: whoever trains reads its own.

The driver keeps what a survey of each file says: sizes, moments and counts of labels; and the labels of what is held
out, unless the files are those of silos, which show figures alone.
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
from fednar_ray.data.examples import Array, Examples, Shards
from fednar_ray.data.federation import Division, Federation, divided, report_lost
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
    """Puts a question to the holder of each file."""

    def __call__(self, question: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
        """The answers, in the order of the items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """Where a client's examples are; it travels instead of them."""

    file: ClientFile
    preprocessing: TablePreprocessing
    client_id: int
    train: Indices  # which of the file's training examples it trains on, in that order
    validation: Indices
    digest: str  # of the rows that were surveyed

    @property
    def name(self) -> str:
        """The client's."""
        return self.file.name

    def load(self) -> tuple[Shards, dict[str, Examples]]:
        """The client's shard, and its own examples of each split.

        Raises DataError, which names the file; also where its rows are no longer those that were surveyed.
        """
        rows = self.file.read()
        if rows.digest != self.digest:
            raise DataError(f"{self.file.path}: its rows are not those that the run began with")
        train, test = self.file.examples_of(rows, self.preprocessing)
        own = Examples(train.x[self.train], train.y[self.train])
        splits = {"test": test, "validation": Examples(train.x[self.validation], train.y[self.validation])}
        return Shards(own, np.array([0, len(own)]), self.client_id), splits

    def label_counts(self) -> Counts:
        """Of the examples that it trains on, by class."""
        return label_counts(self.load()[0].examples.y, self.file.settings.task)


class FederationOfFiles(Federation):
    """As a federation in memory, but ``x`` of its examples is a stand-in of zeros, which takes no memory.

    ``counts``: of each client's training examples by class; labels that stay with their holder are stood in for too.
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
        self.name, self.task, self.left_out, self.ignored_files = name, task, left_out, tuple(ignored_files)
        self.client_names = tuple(shard.name for shard in shards)
        self._preprocessing = shards[0].preprocessing
        self._files, self.metrics_only = shards, any(survey.labels is None for survey in surveys)
        known = [_labels(survey, task) for survey in surveys]
        held_out = {
            "test": [test for _, test in known],
            "validation": [train[s.validation] for s, (train, _) in zip(shards, known, strict=True)],
        }
        shape = shards[0].preprocessing.mean.shape
        self._offsets = {part: _offsets(labels) for part, labels in held_out.items()}
        labels = {part: np.concatenate(parts) for part, parts in held_out.items()}
        self._classes = max(survey.classes for survey in surveys)
        self._counts = np.stack([np.pad(own, (0, self._classes - len(own))) for own in counts])
        offsets = np.cumsum([0, *(len(shard.train) for shard in shards)])
        self.shards = Shards(_stand_in(np.zeros(offsets[-1], dtype=labels["test"].dtype), shape), offsets)
        self.test = _stand_in(labels["test"], shape)
        self.validation = _stand_in(labels["validation"], shape) if len(labels["validation"]) else None
        digests = (survey.digest.encode() for survey in surveys)
        self._digest = hashlib.sha256(b"".join((*digests, *(shard.train.tobytes() for shard in shards)))).hexdigest()

    @property
    def classes(self) -> int:
        """One more than the highest label anywhere; 1 where labels are numbers."""
        return self._classes

    def label_counts(self) -> Counts:
        """Examples by client and class, [N, classes]."""
        return self._counts

    def digest(self) -> str:
        """SHA-256 of the rows of the files, and of who holds which, as hexadecimal digits."""
        return self._digest

    def held_by(self, client_id: int) -> ShardFile:
        """What a client's own actor needs to get at its examples."""
        return self._files[client_id]

    def loaded(self) -> tuple[Shards, dict[str, Examples]]:
        """All of it, read here."""
        shards, splits = zip(*(file.load() for file in self._files), strict=True)
        own = _joined([shard.examples for shard in shards])
        return Shards(own, self.shards.offsets), {name: _joined([part[name] for part in splits]) for name in splits[0]}

    def shared_splits(self) -> dict[str, Examples]:
        """None: each client holds its own part of each."""
        return {}

    def split_offsets(self) -> Mapping[str, Indices]:
        """Where each client's part of a split begins and ends, [N + 1]."""
        return self._offsets


def _labels(survey: FileSummary, task: str) -> tuple[Array, Array]:
    """Of training and test examples; zeros for those that stay with their holder."""
    if survey.labels is not None:
        return survey.labels
    kind = np.float32 if task == "regression" else np.int64
    return np.zeros(survey.train, dtype=kind), np.zeros(survey.test, dtype=kind)


def _joined(parts: Sequence[Examples]) -> Examples:
    return Examples(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


def _offsets(parts: list[Array]) -> Indices:
    return np.cumsum([0, *map(len, parts)])


def _stand_in(labels: Array, shape: tuple[int, ...]) -> Examples:
    return Examples(np.broadcast_to(np.zeros(shape, dtype=np.float32), (len(labels), *shape)), labels)


def federation_of_files(settings: FolderSettings, seed: int) -> Federation:
    """The same clients, with the same examples in the same order, as in memory; each file is read, and let go of."""
    files = client_files(settings)
    surveys = [file.survey() for file in files]
    division, shards = _divided(files, surveys, settings, seed)
    own, task = [surveys[shard.file.client_id] for shard in shards], settings.task
    counts = [label_counts(_labels(survey, task)[0][s.train], task) for s, survey in zip(shards, own, strict=True)]
    name, ignored = Path(str(settings.directory)).name, find_ignored(settings)
    if ignored:
        log.warning("%s: ignored %s; clients' files are %s", settings.directory, list_names(ignored), FORMATS)
    return FederationOfFiles(name, task, shards, own, counts, division.left_out, ignored)


def federation_of_silos(files: Sequence[ClientFile], settings: FolderSettings, seed: int, ask: Survey) -> Federation:
    """The same of files that only their holders read: ``ask`` brings figures of them."""
    if settings.features is None:
        files = with_columns(files, ask(ClientFile.columns, files[:1])[0])
    surveys = ask(ClientFile.figures, files)
    division, shards = _divided(files, surveys, settings, seed)
    own = [surveys[shard.file.client_id] for shard in shards]
    counts = ask(ShardFile.label_counts, shards) if len(division.held) else [survey.counts for survey in own]
    return FederationOfFiles("silos", settings.task, shards, own, counts, division.left_out)


def _divided(
    files: Sequence[ClientFile], surveys: Sequence[FileSummary], settings: FolderSettings, seed: int
) -> tuple[Division, list[ShardFile]]:
    """Who trains on what. Raises DataError where inputs differ in shape, or nothing is held out to test with."""
    preprocessing = common_preprocessing(files, [survey.moments for survey in surveys])
    sizes = np.array([survey.train for survey in surveys])
    owner = np.repeat(np.arange(len(files)), sizes)
    division = divided(settings, seed, owner, owner)
    report_lost(settings, [files[j].name for j in division.lost])
    clients = owner[division.rows[division.offsets[:-1]]]  # a natural client has examples
    if not any(surveys[j].test for j in clients):
        raise DataError(f"data.test_share: {settings.test_share:g}: no client is large enough to hold out that much")
    starts, train = np.cumsum(sizes) - sizes, np.split(division.rows, division.offsets[1:-1])
    shards = [
        ShardFile(
            file=files[j],
            preprocessing=preprocessing,
            client_id=i,
            train=train[i] - starts[j],
            validation=division.held[owner[division.held] == j] - starts[j],
            digest=surveys[j].digest,
        )
        for i, j in enumerate(clients)
    ]
    return division, shards
