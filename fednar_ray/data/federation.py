"""A federation whose examples are all in memory."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fednar_ray.config.source_base import TASK_NAMES
from fednar_ray.core.client_names import number_clients
from fednar_ray.core.errors import DataError
from fednar_ray.core.postprocessing import TargetScale
from fednar_ray.core.preprocessing import Preprocessing
from fednar_ray.data.columns import ColumnSummary
from fednar_ray.data.conversion import MAP_CODES, parse_clients
from fednar_ray.data.examples import Examples, Pair, Shards
from fednar_ray.data.federated_data import FederatedData

MANY_CLASSES = 1000
"""With at most this many classes, there is no warning of classes that never occur: unused outputs cost little."""

log = logging.getLogger("fednar_ray")


class Federation(FederatedData):
    """A federation in memory: each client's examples, a test set, and optionally a validation set.

    Args:
        clients: One pair (x, y) of arrays or tensors per client, x [n_i, …] and y [n_i]. It is an iterable of pairs, or
            a mapping from the clients' names to their pairs. A TensorDataset of two tensors is taken as a pair.
        test: A pair of the same form.
        validation: A pair of the same form, or None.
        task: classification (labels are classes from 0), binary (0 and 1) or regression (numbers).

    Raises:
        DataError: There is no client, one has no examples, inputs differ in shape, labels do not fit the task, or
            values are missing or infinite. The message names the client.

    Examples:
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
        client_names, pairs = parse_clients(clients)
        places = [f"client {name}" for name in client_names]
        parts = [Examples.of(pair, place, task) for pair, place in zip(pairs, places, strict=True)]
        _check_same_shape(parts, places)
        shards = Shards(Examples.concatenate(parts), np.cumsum([0, *map(len, parts)]))
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
        target_scale: TargetScale | None = None,
        columns: tuple[ColumnSummary, ...] = (),
    ) -> "Federation":
        """Builds a federation from examples that are already checked and in one block.

        Args:
            name: The data set's name.
            shards: Each client's training examples.
            test: The test examples.
            validation: The validation examples, or None.
            left_out: The number of training examples that no client holds.
            task: classification, binary or regression.
            client_names: The clients' names, by client id; None: "0", "1", ….
            preprocessing: The preprocessing that the examples went through; see ``FederatedData.preprocessing``.
            target_scale: See ``FederatedData.target_scale``.
            columns: See ``FederatedData.columns``.
        """
        names = number_clients(len(shards.sizes)) if client_names is None else client_names
        federation = cls.__new__(cls)
        FederatedData.__init__(
            federation,
            name,
            task,
            names,
            shards,
            test,
            validation,
            left_out=left_out,
            preprocessing=preprocessing,
            target_scale=target_scale,
            columns=columns,
        )
        federation._check()
        return federation

    def __repr__(self) -> str:
        sizes, held_out = self.shards.sizes, {name: len(part) for name, part in self.splits().items()}
        spread = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
        task = f"{self.classes} classes" if self.task == "classification" else self.task
        splits = "".join(f", {name} {count}" for name, count in held_out.items())
        return f"<Federation: {self.num_clients} clients with {spread} examples, {sizes.sum()} in all{splits}; {task}>"

    def _check(self) -> None:
        """Checks that held-out and clients' inputs have the same shape, and warns if labels look like codes."""
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
        """Returns the SHA-256 of the clients' examples and of which client holds which, in hexadecimal."""
        found = hashlib.sha256()
        for array in (self.shards.examples.x, self.shards.examples.y, self.shards.offsets):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def get_client_data(self, client_id: int) -> Shards:
        """Returns a copy of the client's shard."""
        return self.shards.only(client_id)

    def load(self) -> tuple[Shards, dict[str, Examples]]:
        """Returns all clients' training examples, and the held-out examples by split."""
        return self.shards, self.splits()

    def shared_splits(self) -> dict[str, Examples]:
        """Returns all splits: every actor gets them and scores a part of each."""
        return self.splits()

    def split_offsets(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """Returns an empty mapping, because no client holds its own part of a split."""
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
            raise DataError(f"{place}: inputs are {here}, but those of {places[0]} are {there}")


def _check_shape_of_splits(federation: Federation) -> None:
    parts = {"test": federation.test, "validation": federation.validation}
    block = federation.shards.examples.x
    for name, part in parts.items():
        if part is not None and (part.x.shape[1:] != block.shape[1:] or part.x.dtype != block.dtype):
            here, there = (f"{x.shape[1:]} {x.dtype}" for x in (part.x, block))
            raise DataError(f"{name}: inputs are {here}, but those of the clients are {there}")


def _warn_of_codes(federation: Federation) -> None:
    """Warns if most classes up to the highest label never occur, because such labels are usually codes."""
    classes = federation.classes
    if classes <= MANY_CLASSES:
        return
    labels = [federation.shards.examples.y, *(part.y for part in federation.splits().values())]
    found = len(np.unique(np.concatenate([np.unique(part) for part in labels])))
    if found * 10 < classes:
        text = (
            "the highest label is %d, but only %d classes occur, and a model gets %d outputs; if labels are codes, %s"
        )
        log.warning(text, classes - 1, found, classes, MAP_CODES)
