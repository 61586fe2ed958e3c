"""A federation whose examples stay in one file per client. The actor that trains a client reads its file.

The driver keeps only a summary of each file: sizes, moments, counts of labels, and the labels of single examples. Silos
do not give the labels of single examples, only their counts, and later the metrics of their held-out examples.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fednar_ray.config.tables import FolderSettings
from fednar_ray.core.errors import DataError, format_names
from fednar_ray.core.postprocessing import TargetScale
from fednar_ray.core.preprocessing import TablePreprocessing
from fednar_ray.data.columns import ColumnSummary
from fednar_ray.data.division import Division, divide, warn_of_lost_clients
from fednar_ray.data.examples import Array, Examples, Shards
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.data.sources.client_files import ClientFile, Counts, FileSummary, ask_all, count_labels, with_features
from fednar_ray.data.sources.column_summaries import summarize_columns
from fednar_ray.data.sources.folder import compute_preprocessing, compute_target_scale, find_ignored, list_client_files
from fednar_ray.data.sources.tables import FORMATS

log = logging.getLogger("fednar_ray")

Indices = npt.NDArray[np.int64]
Item = TypeVar("Item", "ClientFile", "ShardFile")
Answer = TypeVar("Answer")


class Survey(Protocol):
    """Calls a function on each of several files, in the process or on the node that can read the file."""

    def __call__(self, question: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
        """Returns the function's results, in the order of the items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """The location of a client's examples, and how to load them. Actors get it instead of the examples."""

    file: ClientFile
    preprocessing: TablePreprocessing
    client_id: int
    train: Indices  # the file's training examples that the client trains on, in this order
    validation: Indices  # the file's training examples that are its validation set
    digest: str  # ClientRows.digest at the time when the file was summarized

    @property
    def name(self) -> str:
        """The client's name."""
        return self.file.name

    def load(self) -> tuple[Shards, dict[str, Examples]]:
        """Reads the client's shard, and its own held-out examples by split.

        Raises:
            DataError: The file cannot be read, or its rows changed since it was summarized. The message names the file.
        """
        rows = self.file.read()
        if rows.digest != self.digest:
            raise DataError(f"{self.file.path}: its rows changed since the run was started")
        train, test = self.file.preprocess(rows, self.preprocessing)
        own = Examples(train.x[self.train], train.y[self.train])
        splits = {"test": test, "validation": Examples(train.x[self.validation], train.y[self.validation])}
        return Shards(own, np.array([0, len(own)]), self.client_id), splits

    def count_labels(self) -> Counts:
        """Reads the file, and counts the examples that the client trains on by class; see ``count_labels``."""
        return count_labels(self.load()[0].examples.y, self.file.settings.task)


class FederationOfFiles(FederatedData):
    """A federation whose clients each read their own file.

    The driver holds placeholders instead of inputs, and instead of labels that may not leave their file: zeros of the
    right shape and type. The placeholders of inputs take no memory.

    Args:
        name: The data set's name.
        task: classification, binary or regression.
        shards: Where to load each client's examples.
        summaries: The summary of each client's file.
        counts: The number of each client's training examples by class.
        left_out: The number of training examples that no client holds.
        ignored_files: The names of other files in the clients' directory. They are not read.
        target_scale: See ``FederatedData.target_scale``.
        columns: The summary of each input column; empty if inputs have no named columns.
    """

    def __init__(
        self,
        name: str,
        task: str,
        shards: Sequence[ShardFile],
        summaries: Sequence[FileSummary],
        counts: Sequence[Counts],
        left_out: int,
        ignored_files: Sequence[str] = (),
        target_scale: TargetScale | None = None,
        columns: Sequence[ColumnSummary] = (),
    ) -> None:
        known = [_get_labels(summary, task) for summary in summaries]
        held_out = {
            "test": [test for _, test in known],
            "validation": [train[s.validation] for s, (train, _) in zip(shards, known, strict=True)],
        }
        shape = shards[0].preprocessing.mean.shape
        test, validation = (_build_placeholders(np.concatenate(parts), shape) for parts in held_out.values())
        offsets = np.cumsum([0, *(len(shard.train) for shard in shards)])
        super().__init__(
            name,
            task,
            tuple(shard.name for shard in shards),
            Shards(_build_placeholders(np.zeros(offsets[-1], dtype=test.y.dtype), shape), offsets),
            test,
            validation if len(validation) else None,
            left_out=left_out,
            preprocessing=shards[0].preprocessing,
            target_scale=target_scale,
            columns=tuple(columns),
            ignored_files=tuple(ignored_files),
            metrics_only=any(summary.labels is None for summary in summaries),
        )
        self._files = shards
        self._offsets = {part: np.cumsum([0, *map(len, labels)]) for part, labels in held_out.items()}
        self._classes = max(summary.classes for summary in summaries)
        self._counts = np.stack([np.pad(own, (0, self._classes - len(own))) for own in counts])
        digests = (summary.digest.encode() for summary in summaries)
        self._digest = hashlib.sha256(b"".join((*digests, *(shard.train.tobytes() for shard in shards)))).hexdigest()

    @property
    def classes(self) -> int:
        """One more than the highest label anywhere; 1 in regression."""
        return self._classes

    def label_counts(self) -> Counts:
        """Counts training examples by client and class, [N, classes]; in regression [N, 1]."""
        return self._counts

    def digest(self) -> str:
        """Returns the SHA-256 of the files' rows and of which client holds which, in hexadecimal."""
        return self._digest

    def get_client_data(self, client_id: int) -> ShardFile:
        """Returns the file from which the client loads its examples."""
        return self._files[client_id]

    def load(self) -> tuple[Shards, dict[str, Examples]]:
        """Reads all clients' training examples, and the held-out examples by split, from the files."""
        shards, splits = zip(*(file.load() for file in self._files), strict=True)
        block = Examples.concatenate([shard.examples for shard in shards])
        held_out = {name: Examples.concatenate([part[name] for part in splits]) for name in splits[0]}
        return Shards(block, self.shards.offsets), held_out

    def shared_splits(self) -> dict[str, Examples]:
        """Returns an empty mapping, because each client holds its own part of each split."""
        return {}

    def split_offsets(self) -> Mapping[str, Indices]:
        """Returns where each client's part of a split starts and ends, [N + 1], by split."""
        return self._offsets


def _get_labels(summary: FileSummary, task: str) -> tuple[Array, Array]:
    """Returns the labels of training and test examples, or zeros if the labels may not leave their file."""
    if summary.labels is not None:
        return summary.labels
    kind = np.float32 if task == "regression" else np.int64
    return np.zeros(summary.train, dtype=kind), np.zeros(summary.test, dtype=kind)


def _build_placeholders(labels: Array, shape: tuple[int, ...]) -> Examples:
    """Returns examples with these labels whose inputs, each of this shape, all share one zero."""
    return Examples(np.broadcast_to(np.zeros(shape, dtype=np.float32), (len(labels), *shape)), labels)


def load_file_federation(settings: FolderSettings, seed: int) -> FederationOfFiles:
    """Builds the federation of ``data.directory``, whose files each client reads itself.

    Clients and examples are the same, in the same order, as those that ``load_federation`` loads into memory. Each file
    is read once to summarize it, and its rows are not kept.

    Args:
        settings: The ``data`` section.
        seed: Seeds the random choice of the validation examples, and the partition of the others.

    Raises:
        DataError: A file cannot be read or does not fit the settings, or the examples cannot be divided.
    """
    files = list_client_files(settings)
    summaries = ask_all(files, ClientFile.summarize)
    preprocessing = compute_preprocessing(files, summaries)
    summaries = [summary.encode(preprocessing.schema) for summary in summaries]
    division, shards = _divide(preprocessing, files, summaries, settings, seed)
    own, task = [summaries[shard.file.client_id] for shard in shards], settings.task
    counts = [
        count_labels(_get_labels(summary, task)[0][s.train], task) for s, summary in zip(shards, own, strict=True)
    ]
    name, ignored = Path(str(settings.directory)).name, find_ignored(settings)
    if ignored:
        log.warning("%s: ignored %s; clients' files are %s", settings.directory, format_names(ignored), FORMATS)
    scale = compute_target_scale(files, [summary.label_moments for summary in summaries])
    left_out, columns = len(division.partition.left_out), summarize_columns(preprocessing.schema, summaries)
    return FederationOfFiles(name, task, shards, own, counts, left_out, ignored, scale, columns)


def load_silo_federation(
    files: Sequence[ClientFile], settings: FolderSettings, seed: int, ask: Survey
) -> FederationOfFiles:
    """Builds the federation of silos, whose files only the silos' own nodes read.

    Args:
        files: The files of the silos.
        settings: The ``data`` section.
        seed: Seeds the random choice of the validation examples, and the partition of the others.
        ask: Runs a function on each silo's node and returns the results. It brings back a summary of each file.

    Raises:
        DataError: A file cannot be read or does not fit the settings, or the examples cannot be divided.
    """
    if settings.features is None:
        files = with_features(files, ask(ClientFile.read_features, files[:1])[0])
    summaries = ask(ClientFile.summarize_without_labels, files)
    preprocessing = compute_preprocessing(files, summaries)
    summaries = [summary.encode(preprocessing.schema) for summary in summaries]
    division, shards = _divide(preprocessing, files, summaries, settings, seed)
    own = [summaries[shard.file.client_id] for shard in shards]
    counts = ask(ShardFile.count_labels, shards) if len(division.held_out) else [summary.counts for summary in own]
    scale = compute_target_scale(files, [summary.label_moments for summary in summaries])
    left_out, columns = len(division.partition.left_out), summarize_columns(preprocessing.schema, summaries)
    return FederationOfFiles("silos", settings.task, shards, own, counts, left_out, (), scale, columns)


def _divide(
    preprocessing: TablePreprocessing,
    files: Sequence[ClientFile],
    summaries: Sequence[FileSummary],
    settings: FolderSettings,
    seed: int,
) -> tuple[Division, list[ShardFile]]:
    """Divides the files' examples. Raises DataError if no client has a test example."""
    sizes = np.array([summary.train for summary in summaries])
    owner = np.repeat(np.arange(len(files)), sizes)
    division = divide(settings, seed, owner, owner)
    warn_of_lost_clients(settings, [files[j].name for j in division.lost_groups])
    partition, held_out = division.partition, division.held_out
    clients = owner[partition.order[partition.offsets[:-1]]]  # every natural client has at least one example
    if not any(summaries[j].test for j in clients):
        raise DataError(
            f"data.test_share: {settings.test_share:g}: no client has enough examples to hold out this share"
        )
    starts, train = np.cumsum(sizes) - sizes, np.split(partition.order, partition.offsets[1:-1])
    shards = [
        ShardFile(
            file=files[j],
            preprocessing=preprocessing,
            client_id=i,
            train=train[i] - starts[j],
            validation=held_out[owner[held_out] == j] - starts[j],
            digest=summaries[j].digest,
        )
        for i, j in enumerate(clients)
    ]
    return division, shards
