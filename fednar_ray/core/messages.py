"""The messages between the driver and the processes that train or evaluate. They are immutable.

C is the number of clients in a group, d the number of trainable parameters, b the number of averaged buffer values,
and n the number of evaluated examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.core.exclusion import Exclusion
from fednar_ray.core.file_rows import FileRow
from fednar_ray.core.flat_params import BufferVector, FloatVector
from fednar_ray.core.schedules import RoundScalars


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """What every sampled client of a round receives. It is sent once per round."""

    round_index: int
    scalars: RoundScalars
    parameters: FloatVector  # [d] x_round
    shared: Mapping[str, FloatVector]  # [d] each: the vectors that the algorithm declares, such as SCAFFOLD's c
    buffers: BufferVector | None  # [b] running statistics; None if the model has none
    norm_bound: float | None = None  # C_t: longer updates are scaled down to it in the sums; None: none are

    @property
    def nbytes(self) -> int:
        """The size of all vectors in bytes."""
        vectors = (self.parameters, *self.shared.values())
        return sum(vector.nbytes for vector in vectors) + (0 if self.buffers is None else self.buffers.nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTask:
    """One call: train these clients together, as one matrix.

    Attributes:
        client_ids: The clients, in the order of the matrix's rows.
        states: Each client's state [d] for client corrections that keep one, or where to read it; None stands for
            zeros. None as a whole if the correction keeps no state.
        places: Where to write each client's new state; None: the update contains them.
        factors: What each client's update is multiplied by in the sums; 0 excludes the client. None stands for 1.
        return_rows: Whether the update must contain each client's own row.
        verify: Whether the traced gradient is compared with an eager one before training.
        term: Which term of the round's sums the group is part of; None: it is one by itself.
    """

    client_ids: tuple[int, ...]
    states: tuple[FloatVector | FileRow | None, ...] | None
    places: tuple[FileRow, ...] | None = None
    factors: tuple[float, ...] | None = None
    return_rows: bool = False
    verify: bool = False
    term: int | None = None

    def halves(self) -> "tuple[GroupTask, GroupTask]":
        """Returns the same clients as two groups."""
        middle = (len(self.client_ids) + 1) // 2
        return self._part(slice(middle)), self._part(slice(middle, None))

    def without_files(self) -> "GroupTask":
        """Returns the task for a process that cannot open the driver's files. Raises OSError if they cannot be read."""
        read = (state.read() if isinstance(state, FileRow) else state for state in self.states or ())
        return replace(self, states=None if self.states is None else tuple(read), places=None)

    def _part(self, part: slice) -> "GroupTask":
        return replace(
            self,
            client_ids=self.client_ids[part],
            states=None if self.states is None else self.states[part],
            places=None if self.places is None else self.places[part],
            factors=None if self.factors is None else self.factors[part],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TermTask:
    """One call: train these client groups of one term one after the other, and return the sum of their updates."""

    groups: tuple[GroupTask, ...]

    @property
    def client_ids(self) -> tuple[int, ...]:
        """The clients of all groups."""
        return tuple(client_id for group in self.groups for client_id in group.client_ids)

    def without_files(self) -> "TermTask":
        """Returns the task for a process that cannot open the driver's files."""
        return TermTask(groups=tuple(group.without_files() for group in self.groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientMetrics:
    """A few numbers for each client of a group: all that is kept of a client once its vectors are added."""

    client_ids: tuple[int, ...]
    included: npt.NDArray[np.bool_]  # [C] loss, update and buffers are finite; in an update: and the factor is not 0
    examples: npt.NDArray[np.int64]  # [C] n_i
    steps: npt.NDArray[np.int64]  # [C] K_i
    clipped_steps: npt.NDArray[np.int64]  # [C]
    effective_weight_decay: npt.NDArray[np.float64]  # [C] mean over steps of s·λ_t
    step_norms: npt.NDArray[np.float64]  # [C] mean over steps of ‖v‖, the norm that is bounded
    norm_points: npt.NDArray[np.float64]  # [C, P] norms that represent all steps, see core.step_norms
    losses: npt.NDArray[np.float64]  # [C] mean over steps of the batch loss
    delta_norms: npt.NDArray[np.float64]  # [C] ‖x_i − x_round‖; in an update: times the client's factor
    train_seconds: float  # of the whole group
    exclusions: Mapping[int, Exclusion] = field(default_factory=dict)  # by client id, if the cause is known

    def copy(self) -> "ClientMetrics":
        """Returns the same metrics in memory of their own.

        Those of an update that Ray returned lie beside its vectors in the object store, and keep all of it there.
        """
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        copies: dict[str, Any] = {name: value.copy() for name, value in values if isinstance(value, np.ndarray)}
        return replace(self, **copies)

    def followed_by(self, other: "ClientMetrics") -> "ClientMetrics":
        """Returns the metrics of these clients, then those of the clients of another group."""
        width = max(self.norm_points.shape[1], other.norm_points.shape[1])
        both = [replace(each, norm_points=_widen(each.norm_points, width)) for each in (self, other)]
        names = [item.name for item in fields(self) if isinstance(getattr(self, item.name), np.ndarray)]
        joined: dict[str, Any] = {name: np.concatenate([getattr(each, name) for each in both]) for name in names}
        return ClientMetrics(
            client_ids=self.client_ids + other.client_ids,
            train_seconds=self.train_seconds + other.train_seconds,
            exclusions={**self.exclusions, **other.exclusions},
            **joined,
        )


def _widen(points: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """Returns [C, P] with more columns, of NaN."""
    return np.pad(points, ((0, 0), (0, width - points.shape[1])), constant_values=np.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupUpdate:
    """What one client group returns, or several of one term. Excluded clients are in no sum, and keep their states.

    weight_i is n_i, or 1 for unweighted algorithms; factor_i is the task's.
    """

    metrics: ClientMetrics
    weighted_delta: FloatVector  # [d] Σ weight_i·factor_i·(x_i − x_round)
    weighted_buffers: BufferVector | None  # [b] Σ weight_i·buffers_i, if the model has running statistics
    states: tuple[FloatVector | FileRow, ...] | None  # [d] each: new states, or where they are; None: clients keep none
    shared_changes: Mapping[str, FloatVector]  # [d] each: Σ n_i·change_i, by the name of the shared vector
    rows: FloatVector | None = None  # [C, d] x_i − x_round, if the task asks for them
    term: int | None = None  # the task's


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientsLost:
    """Clients whose training failed in every attempt."""

    client_ids: tuple[int, ...]
    reason: str  # the error of the last attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalParams:
    """The parameters that a round evaluates. They are sent once per round."""

    round_index: int
    parameters: FloatVector  # [d]
    buffers: BufferVector  # [b]

    @property
    def nbytes(self) -> int:
        """The size of all vectors in bytes."""
        return self.parameters.nbytes + self.buffers.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringTask:
    """One call: evaluate the rows ``start`` to ``stop`` of a split."""

    split: str  # test, validation, or clients: the examples that clients hold out for themselves
    start: int
    stop: int
    client_id: int | None = None  # the client whose rows they are, if only that client's actor has them
    sums_only: bool = False  # return MetricSums instead of Scores
    with_outputs: bool = False  # return the model's outputs as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Predictions and losses of n examples.

    Attributes:
        predictions: The likeliest class, the one logit, or the number in the label's unit, [n].
        correct: Which predictions are correct, [n]; None in regression.
        losses: Cross-entropies in nats, squared errors, or a user's own losses, [n].
        errors: Regression: prediction minus label, in the label's unit, [n].
        confidences: Classification: the probability of the predicted class, [n].
        log_losses: The cross-entropies [n], if they are not the losses.
        outputs: The model's outputs [n, o], if the task asks for them.
    """

    predictions: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    correct: npt.NDArray[np.bool_] | None
    losses: npt.NDArray[np.float32]
    errors: npt.NDArray[np.float32] | None = None
    confidences: npt.NDArray[np.float32] | None = None
    log_losses: npt.NDArray[np.float32] | None = None
    outputs: npt.NDArray[np.float32] | None = None
