"""Client group updates, added in dispatch order, become one round aggregate."""

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fednar_ray.config import AggregationSettings
from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.flat_params import BufferVector, FloatVector
from fednar_ray.core.messages import ClientMetrics, GroupUpdate, RoundAggregate
from fednar_ray.federated.robust import robust_mean

Vector = TypeVar("Vector", FloatVector, BufferVector)


@dataclass(slots=True, kw_only=True)
class RoundSums:
    """The running sums of a round: d numbers, however many clients were sampled.

    Floating-point addition is not associative, so updates must be added in dispatch order.
    """

    round_index: int
    weighted: bool
    robust: AggregationSettings | None = None  # how rows become one; None: the sums suffice
    figures: list[ClientMetrics] = field(default_factory=list)
    delta: FloatVector | None = None  # [d] Σ weight_i·Δ_i
    buffers: BufferVector | None = None  # [b] Σ weight_i·buffers_i
    control_change: FloatVector | None = None  # [d] Σ n_i·(c_i⁺ − c_i)
    rows: list[FloatVector] = field(default_factory=list)  # [C, d] of those that count, where a rule needs them
    exclusions: dict[int, Exclusion] = field(default_factory=dict)  # by client id

    def add(self, update: GroupUpdate) -> None:
        """Add one client group."""
        self.delta = _plus(self.delta, update.weighted_delta)
        self.buffers = _plus(self.buffers, update.weighted_buffers)
        self.control_change = _plus(self.control_change, update.control_change)
        self.figures.append(update.figures)
        if update.rows is not None:
            usable = update.figures.usable
            self.rows.append(update.rows if usable.all() else update.rows[usable])

    def usable(self) -> npt.NDArray[np.bool_]:
        """Which clients count, in dispatch order."""
        return np.concatenate([u.usable for u in self.figures]) if self.figures else np.zeros(0, dtype=np.bool_)

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """One figure of each usable client, in dispatch order."""
        values = np.concatenate([getattr(u, name) for u in self.figures])[self.usable()]
        return values.astype(np.float64)

    def example_weights(self) -> npt.NDArray[np.float64]:
        """n_i / Σ n of the usable clients, whatever the algorithm's own weights."""
        examples = self.column("examples")
        weights: npt.NDArray[np.float64] = examples / examples.sum()
        return weights

    def first_reason(self) -> ExclusionReason | None:
        """Why the first excluded client was excluded; None if there is none."""
        return next((exclusion.reason for exclusion in self.exclusions.values()), None)

    def _weights(self) -> npt.NDArray[np.float64]:
        examples = self.column("examples")
        return examples if self.weighted else np.ones_like(examples)

    def aggregate(self, population: int, epsilon: float) -> RoundAggregate:
        """Δ and its companions. Raises RoundAborted where no client is usable."""
        weights = self._weights()
        if self.delta is None or not len(weights):
            raise RoundAborted(self.round_index, "no client returned a finite loss and update", self.first_reason())
        return RoundAggregate(
            delta=self._mean(weights),
            mean_squared_norm=float(weights @ self.column("delta_norms") ** 2 / weights.sum()),
            clients=len(weights),
            population=population,
            epsilon=epsilon,
        )

    def _mean(self, weights: npt.NDArray[np.float64]) -> FloatVector:
        if self.robust is not None:
            return robust_mean(self.rows, weights, self.robust)
        assert self.delta is not None
        return self.delta / np.float32(weights.sum())

    def mean_buffers(self) -> BufferVector | None:
        """Buffers averaged over the usable clients; None where client groups keep none."""
        return None if self.buffers is None else self.buffers / self._weights().sum()


def _plus(total: Vector | None, term: Vector | None) -> Vector | None:
    """Add in place; the first term is copied, since it may lie in shared memory."""
    if term is None:
        return total
    if total is None:
        return term.copy()
    total += term
    return total
