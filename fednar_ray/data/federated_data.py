"""The interface of a federation: what a run knows of its clients' examples, wherever the examples are."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.core.postprocessing import TargetScale
from fednar_ray.core.preprocessing import ImagePreprocessing, Preprocessing, TablePreprocessing
from fednar_ray.data.columns import ColumnSummary
from fednar_ray.data.examples import Array, Examples, Shards
from fednar_ray.data.transforms import Transform


class FederatedData(ABC):
    """What a run knows of its clients' examples.

    ``Federation`` holds the examples in memory. ``FederationOfFiles`` knows which file each client reads.

    Attributes:
        name: The data set's name.
        task: classification (labels are classes from 0), binary (0 and 1) or regression (numbers).
        client_names: The clients' names, by client id. Clients without names are called "0", "1", ….
        shards: Each client's training examples in one block. If the clients read their own files, the inputs are
            placeholders: zeros of the right shape and type, which take no memory.
        test: The test examples.
        validation: The validation examples, or None.
        left_out: The number of training examples that no client holds.
        ignored_files: The names of other files in the clients' directory. They are not read.
        target_scale: Mean and scale of a regression's labels, by which training scales them; None: it does not. The
            labels of all examples are in their own unit.
        metrics_only: Whether nothing about a single example, not even its scores, may leave the client that holds it.
        columns: Of tables, the summary of each input column over all training examples; otherwise empty.
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
        target_scale: TargetScale | None = None,
        columns: tuple[ColumnSummary, ...] = (),
        ignored_files: tuple[str, ...] = (),
        metrics_only: bool = False,
    ) -> None:
        self.name, self.task, self.client_names = name, task, client_names
        self.shards, self.test, self.validation = shards, test, validation
        self.left_out, self.ignored_files, self.metrics_only = left_out, ignored_files, metrics_only
        self._preprocessing, self.target_scale, self.columns = preprocessing, target_scale, columns

    @property
    def num_clients(self) -> int:
        """The number of clients, N."""
        return len(self.shards.sizes)

    @property
    def transform(self) -> Transform | None:
        """Converts stored inputs to a model's inputs; None if they are the same."""
        return self.shards.transform

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The saved model's first step, from raw inputs to the network's inputs; None if they are the same."""
        if self.transform is None:
            return self._preprocessing
        return ImagePreprocessing(mean=self.transform.mean, std=self.transform.std)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The texts of the labels by class; None if labels are numbers."""
        table = self.preprocessing
        return table.schema.class_names if isinstance(table, TablePreprocessing) and table.schema is not None else None

    def build_example(self) -> Array:
        """Builds two raw inputs, [2, …], as the saved model's input example. For tables they are artificial."""
        if isinstance(self.preprocessing, TablePreprocessing):
            return self.preprocessing.build_example()
        return np.concatenate([self.test.x[:2], self.test.x[:1]])[:2]

    def splits(self) -> dict[str, Examples]:
        """Returns the held-out examples by split: ``test`` and, if there is a validation set, ``validation``."""
        return {"test": self.test} | ({} if self.validation is None else {"validation": self.validation})

    @property
    @abstractmethod
    def classes(self) -> int:
        """One more than the highest label anywhere; 1 in regression."""

    @abstractmethod
    def digest(self) -> str:
        """Returns the SHA-256 of the clients' examples and of which client holds which, in hexadecimal."""

    @abstractmethod
    def label_counts(self) -> npt.NDArray[np.int64]:
        """Counts training examples by client and class, [N, classes]; in regression [N, 1]."""

    @abstractmethod
    def get_client_data(self, client_id: int) -> Any:
        """Returns what the client's own actor gets: its shard, or the file that it reads its shard from."""

    @abstractmethod
    def load(self) -> tuple[Shards, dict[str, Examples]]:
        """Returns all clients' training examples, and the held-out examples by split, for a single trainer."""

    @abstractmethod
    def shared_splits(self) -> dict[str, Examples]:
        """Returns the held-out examples, by split, that every actor gets, in order to score a part of them."""

    @abstractmethod
    def split_offsets(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """Returns where each client's part of a split starts and ends, [N + 1], by split.

        Only splits of which each client holds its own part are included.
        """
