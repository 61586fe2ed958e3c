"""A federation whose examples stay in one file a client: whoever trains reads its own.

The driver keeps what a survey of each file says: sizes, moments, counts of labels, and the labels of what is held out.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fednar_ray.config import DataSettings
from fednar_ray.data.examples import Array, Examples, Shards
from fednar_ray.data.federation import Division, Federation, divided
from fednar_ray.data.sources.client_files import ClientFile, Scale, Survey, client_files, common_scale

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """Where a client's examples are; it travels instead of them."""

    file: ClientFile
    scale: Scale
    client_id: int
    train: Indices  # which of the file's training examples it trains on, in that order
    validation: Indices

    def load(self) -> tuple[Shards, dict[str, Examples]]:
        """The client's shard, and its own examples of each split. Raises DataError, which names the file."""
        train, test = self.scale.examples(self.file.read(), self.file)
        own = Examples(train.x[self.train], train.y[self.train])
        held_out = Examples(train.x[self.validation], train.y[self.validation])
        splits = {"test": test, "validation": held_out}
        return Shards(own, np.array([0, len(own)]), self.client_id), splits


class FederationOfFiles(Federation):
    """As a federation in memory, but ``x`` of its examples is a stand-in of zeros, which takes no memory."""

    def __init__(self, name: str, task: str, shards: list[ShardFile], surveys: list[Survey], left_out: int) -> None:
        self.name, self.task, self.left_out = name, task, left_out
        self._files = shards
        trained = [survey.train_y[shard.train] for shard, survey in zip(shards, surveys, strict=True)]
        held_out = {
            "test": [survey.test_y for survey in surveys],
            "validation": [survey.train_y[s.validation] for s, survey in zip(shards, surveys, strict=True)],
        }
        shape = surveys[0].moments.mean.shape
        self._offsets = {part: _offsets(labels) for part, labels in held_out.items()}
        self._labels = {part: np.concatenate(labels) for part, labels in held_out.items()}
        self._classes = 1
        if task != "regression":
            self._classes = 1 + max(int(y.max(initial=0)) for y in (*trained, *self._labels.values()))
            self._counts = np.stack([np.bincount(y, minlength=self._classes) for y in trained])
        offsets = _offsets(trained)
        self.shards = Shards(_stand_in(np.zeros(offsets[-1], dtype=trained[0].dtype), shape), offsets)
        self.test = _stand_in(self._labels["test"], shape)
        validation = self._labels["validation"]
        self.validation = _stand_in(validation, shape) if len(validation) else None
        digests = (survey.digest.encode() for survey in surveys)
        self._digest = hashlib.sha256(b"".join((*digests, *(shard.train.tobytes() for shard in shards)))).hexdigest()

    @property
    def classes(self) -> int:
        """One more than the highest label anywhere; 1 where labels are numbers."""
        return self._classes

    def label_counts(self) -> npt.NDArray[np.int64]:
        """Examples by client and class, [N, classes]."""
        return self.shards.sizes[:, None] if self.task == "regression" else self._counts

    def digest(self) -> str:
        """SHA-256 of the rows of the files, and of who holds which, as hexadecimal digits."""
        return self._digest

    def held_by(self, client_id: int) -> ShardFile:
        """What a client's own actor needs to get at its examples."""
        return self._files[client_id]

    def shared_splits(self) -> dict[str, Examples]:
        """None: each client holds its own part of each."""
        return {}

    def split_offsets(self) -> Mapping[str, Indices]:
        """Where each client's part of a split begins and ends, [N + 1]."""
        return self._offsets


def _offsets(parts: list[Array]) -> Indices:
    return np.cumsum([0, *map(len, parts)])


def _stand_in(labels: Array, shape: tuple[int, ...]) -> Examples:
    return Examples(np.broadcast_to(np.zeros(shape, dtype=np.float32), (len(labels), *shape)), labels)


def federation_of_files(settings: DataSettings, seed: int) -> Federation:
    """The same clients, with the same examples in the same order, as in memory; each file is read, and let go of."""
    files = client_files(settings)
    surveys = [file.survey() for file in files]
    scale = common_scale(files, [survey.moments for survey in surveys])
    sizes = np.array([len(survey.train_y) for survey in surveys])
    owner = np.repeat(np.arange(len(files)), sizes)
    division = divided(settings, seed, owner, owner)
    clients = owner[division.rows[division.offsets[:-1]]]  # a natural client has examples
    starts = np.cumsum(sizes) - sizes
    shards = [_shard(files[j], scale, i, division, owner, int(starts[j])) for i, j in enumerate(clients)]
    name, task = Path(str(settings.directory)).name, str(settings.task)
    return FederationOfFiles(name, task, shards, [surveys[j] for j in clients], division.left_out)


def _shard(file: ClientFile, scale: Scale, client_id: int, division: Division, owner: Indices, start: int) -> ShardFile:
    train = division.rows[division.offsets[client_id] : division.offsets[client_id + 1]]
    held = division.held[owner[division.held] == file.client_id]
    return ShardFile(file=file, scale=scale, client_id=client_id, train=train - start, validation=held - start)
