"""Adds the updates of client groups in dispatch order, and turns the sums into one round aggregate."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fednar_ray.algorithms.server_optimizers import RoundAggregate
from fednar_ray.config import AggregationSettings
from fednar_ray.core.blocks import LARGE_BYTES
from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.flat_params import BufferVector, FloatVector
from fednar_ray.core.messages import ClientMetrics, GroupUpdate
from fednar_ray.federated.exclusion_record import ExclusionRecord
from fednar_ray.federated.robust import robust_mean

Vector = TypeVar("Vector", FloatVector, BufferVector)

Vectors = tuple[FloatVector, BufferVector | None, Mapping[str, FloatVector]]
"""What ``VectorSums`` adds: an update's weighted Δ, its buffers, and its changes of shared vectors."""

TERMS = 4  # few are quick to send and to add; many divide more evenly among actors


def number_terms(groups: int, vector_bytes: int) -> list[int | None]:
    """Returns the term of each client group of a round; None if each is a term by itself.

    A term is the sum of consecutive groups. An actor that trains all of them sends one vector instead of one for each.
    Where terms begin must not depend on actors: it decides the last bits of the sum.

    Args:
        groups: The number of client groups.
        vector_bytes: The size of the parameters.
    """
    if vector_bytes < LARGE_BYTES:
        return [None] * groups
    return [group * TERMS // groups for group in range(groups)] if groups > TERMS else [None] * groups


@dataclass(slots=True)
class VectorSums:
    """Sums of the vectors of updates.

    Attributes:
        delta: Σ weight_i·Δ_i, [d]; None before the first update.
        buffers: Σ weight_i·buffers_i, [b]; None if the model has no running statistics.
        shared_changes: Σ n_i·change_i by the name of the shared vector, [d] each.
    """

    delta: FloatVector | None = None
    buffers: BufferVector | None = None
    shared_changes: dict[str, FloatVector] = field(default_factory=dict)

    def add(self, delta: FloatVector, buffers: BufferVector | None, shared_changes: Mapping[str, FloatVector]) -> None:
        """Adds in place. The first vectors are copied, since they may lie in shared memory."""
        self.delta = _add(self.delta, delta)
        if buffers is not None:
            self.buffers = _add(self.buffers, buffers)
        for name, change in shared_changes.items():
            self.shared_changes[name] = _add(self.shared_changes.get(name), change)


@dataclass(slots=True, kw_only=True)
class RoundSums(ExclusionRecord):
    """The running sums of a round, whose size does not depend on the number of sampled clients.

    Floating-point addition is not associative, so updates must be added in dispatch order: first those of a term, then
    the terms.

    Attributes:
        weighted: Whether clients are weighted by their examples, or all alike.
        robust: The settings of an aggregation that needs every client's row; None if the sums suffice.
        metrics: The client metrics of each update.
        rows: The rows Δ_i of included clients, [C, d] per group, where ``robust`` needs them.
    """

    weighted: bool
    robust: AggregationSettings | None = None
    metrics: list[ClientMetrics] = field(default_factory=list)
    rows: list[FloatVector] = field(default_factory=list)
    _total: VectorSums = field(default_factory=VectorSums)  # of the terms that have ended
    _term: int | None = None  # the term of the last update
    _first: Vectors | None = None  # the vectors of that term's first update, where they lie
    _open: VectorSums | None = None  # the sums of that term, if it has more than one update

    def add(self, update: GroupUpdate) -> None:
        """Adds an update to the sums of its term. Updates of one term must follow each other."""
        vectors = update.weighted_delta, update.weighted_buffers, update.shared_changes
        if update.term is None or update.term != self._term:
            self._end_term()
            self._term, self._first = update.term, vectors
        else:
            if self._open is None and self._first is not None:
                self._open = VectorSums()
                self._open.add(*self._first)
                self._first = None  # it may keep memory of the object store
            assert self._open is not None
            self._open.add(*vectors)
        self.metrics.append(update.metrics.copy())
        if update.rows is not None:
            included = update.metrics.included
            self.rows.append(update.rows if included.all() else update.rows[included])

    @property
    def vectors(self) -> VectorSums:
        """The sums of the vectors of all updates so far. No more of the last term's updates may follow."""
        self._end_term()
        return self._total

    @property
    def shared_changes(self) -> Mapping[str, FloatVector]:
        """Σ n_i·change_i by the name of the shared vector, [d] each."""
        return self.vectors.shared_changes

    def _end_term(self) -> None:
        """Adds the last term to the total."""
        if self._open is not None:
            assert self._open.delta is not None
            self._total.add(self._open.delta, self._open.buffers, self._open.shared_changes)
        elif self._first is not None:
            self._total.add(*self._first)
        self._term = self._first = self._open = None

    def find_included(self) -> npt.NDArray[np.bool_]:
        """Returns which of the clients that were added are included, in dispatch order."""
        return np.concatenate([m.included for m in self.metrics]) if self.metrics else np.zeros(0, dtype=np.bool_)

    def get_column(self, name: str) -> npt.NDArray[np.float64]:
        """Returns one client metric of every included client, in dispatch order."""
        values = np.concatenate([getattr(m, name) for m in self.metrics])[self.find_included()]
        return values.astype(np.float64)

    def compute_example_weights(self) -> npt.NDArray[np.float64]:
        """Returns n_i / Σ n of the included clients, whether or not the algorithm weights by examples."""
        examples = self.get_column("examples")
        weights: npt.NDArray[np.float64] = examples / examples.sum()
        return weights

    def _compute_weights(self) -> npt.NDArray[np.float64]:
        examples = self.get_column("examples")
        return examples if self.weighted else np.ones_like(examples)

    def aggregate(self, population: int, epsilon: float) -> RoundAggregate:
        """Returns the round's aggregate.

        Args:
            population: N, the number of all clients.
            epsilon: ε_t.

        Raises:
            RoundAborted: No client is included.
        """
        weights = self._compute_weights()
        delta = self.vectors.delta
        if delta is None or not len(weights):
            cause = next((exclusion.reason for exclusion in self.exclusions.values()), None)
            raise RoundAborted(self.round_index, "no client returned a finite loss and update", cause)
        return RoundAggregate(
            delta=self._compute_mean_delta(delta, weights),
            mean_squared_norm=float(weights @ self.get_column("delta_norms") ** 2 / weights.sum()),
            clients=len(weights),
            population=population,
            epsilon=epsilon,
        )

    def _compute_mean_delta(self, delta: FloatVector, weights: npt.NDArray[np.float64]) -> FloatVector:
        return (
            delta / np.float32(weights.sum()) if self.robust is None else robust_mean(self.rows, weights, self.robust)
        )

    def compute_mean_buffers(self) -> BufferVector | None:
        """Returns the buffers averaged over the included clients; None if the model has no running statistics."""
        buffers = self.vectors.buffers
        return None if buffers is None else buffers / self._compute_weights().sum()


def _add(total: Vector | None, term: Vector) -> Vector:
    """Adds in place. The first term is copied, since it may lie in shared memory."""
    if total is None:
        return term.copy()
    total += term
    return total
