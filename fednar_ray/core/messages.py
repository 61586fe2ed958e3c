"""The frozen values that travel between the driver, its pools, and its callers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fednar_ray.core.exclusion import Exclusion
from fednar_ray.core.flat_params import BufferVector, FloatVector
from fednar_ray.core.schedules import RoundScalars


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """What every sampled client of a round receives; sent once a round."""

    round_index: int
    scalars: RoundScalars
    parameters: FloatVector  # [d] x_round
    control: FloatVector | None  # [d] SCAFFOLD's c
    buffers: BufferVector | None  # [b] running statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTask:
    """One call: the clients that train together as one matrix."""

    client_ids: tuple[int, ...]
    states: (
        tuple[FloatVector | None, ...] | None
    )  # a row [d] a client (None: still zero), for stateful client corrections
    factors: tuple[float, ...] | None = None  # of each client's update in the sums; 0: it does not count. None: all 1
    rows: bool = False  # the update is to bring the clients' own rows
    verify: bool = False  # compare the traced gradient with an eager one before training

    def halves(self) -> "tuple[GroupTask, GroupTask]":
        """The same clients as two client groups."""
        middle = (len(self.client_ids) + 1) // 2
        return self._part(slice(middle)), self._part(slice(middle, None))

    def _part(self, part: slice) -> "GroupTask":
        return replace(
            self,
            client_ids=self.client_ids[part],
            states=None if self.states is None else self.states[part],
            factors=None if self.factors is None else self.factors[part],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """The parameters that a round evaluates; sent once a round."""

    round_index: int
    parameters: FloatVector  # [d]
    buffers: BufferVector  # [b]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringTask:
    """One call: rows ``start`` to ``stop`` of a split; ``clients`` is the block of every client's own examples."""

    split: str  # test, validation or clients
    start: int
    stop: int
    client_id: int | None = None  # whose rows they are, where only that client's actor holds them
    figures: bool = False  # a Tally of them is asked for, and no scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a eval_params makes of each example."""

    predictions: npt.NDArray[np.int32] | npt.NDArray[np.float32]  # [n] the likeliest class; the one logit; the number
    right: npt.NDArray[np.bool_] | None  # [n]; None in regression
    losses: npt.NDArray[np.float32]  # [n] cross-entropy in nats, or squared error


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSums:
    """Sums over scored examples, from which metrics follow: all that leaves a silo of its held-out examples."""

    examples: int
    losses: float  # Σ
    right: int
    classes: npt.NDArray[np.int64]  # [3, classes] of each class the labels, the answers, and the right answers
    pairs: int = 0  # binary: of a yes and a no
    ordered: float = 0.0  # those of them in which the yes has the higher logit, ties counting half

    def __add__(self, other: "MetricSums") -> "MetricSums":
        """Of both together; pairs are within either."""
        classes = max(self.classes.shape[1], other.classes.shape[1])
        own, others = (np.pad(t.classes, ((0, 0), (0, classes - t.classes.shape[1]))) for t in (self, other))
        return MetricSums(
            examples=self.examples + other.examples,
            losses=self.losses + other.losses,
            right=self.right + other.right,
            classes=own + others,
            pairs=self.pairs + other.pairs,
            ordered=self.ordered + other.ordered,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientMetrics:
    """A few numbers for each client of a client group: all that is kept of it once its vectors are added."""

    client_ids: tuple[int, ...]
    usable: npt.NDArray[np.bool_]  # [C] loss, update and buffers all finite; of an update: and it counts
    examples: npt.NDArray[np.int64]  # [C] n_i
    steps: npt.NDArray[np.int64]  # [C] K_i
    clipped_steps: npt.NDArray[np.int64]  # [C]
    effective_weight_decay: npt.NDArray[np.float64]  # [C] mean over steps of s·λ_t
    step_norms: npt.NDArray[np.float64]  # [C] mean over steps of ‖v‖, what is bounded: the gradient with the decay
    losses: npt.NDArray[np.float64]  # [C] mean over steps of the batch loss
    delta_norms: npt.NDArray[np.float64]  # [C] ‖x_i − x_round‖; of an update: times the client's factor
    train_seconds: float  # of the whole client group
    exclusions: Mapping[int, Exclusion] = field(default_factory=dict)  # by client id, where the cause is known


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupUpdate:
    """What one client group returns. Clients that are not ``usable`` are in none of the sums, and keep their states.

    weight_i is n_i, or 1 for unweighted algorithms; factor_i is the task's.
    """

    figures: ClientMetrics
    weighted_delta: FloatVector  # [d] Σ weight_i·factor_i·(x_i − x_round)
    weighted_buffers: BufferVector | None  # [b] Σ weight_i·buffers_i, where the model keeps running statistics
    states: FloatVector | None  # [C, d] the clients' new states, for stateful client corrections
    control_change: FloatVector | None  # [d] Σ n_i·(c_i⁺ − c_i), SCAFFOLD only
    rows: FloatVector | None = None  # [C, d] x_i − x_round of each client, where the task asks for them


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientsLost:
    """Clients that failed, however often they were tried."""

    client_ids: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAggregate:
    """The sums of one round over its usable clients S, as a server optimizer sees them."""

    delta: FloatVector  # [d] Δ = Σ w_i·Δ_i, Σ w_i = 1
    mean_squared_norm: float  # Σ w_i·‖Δ_i‖²
    clients: int  # |S|
    population: int  # N
    epsilon: float  # ε_t


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """What is kept of a round once it is over."""

    round_index: int
    metrics: Mapping[str, float]  # names as in DESIGN, section 6
    client_ids: tuple[int, ...]  # the sampled clients that were there
    exclusions: Mapping[int, Exclusion]  # client id → why its update was left out
    step_norms: Mapping[int, float] = field(default_factory=dict)  # client id → mean ‖v‖; of at most 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport(RoundRecord):
    """A round as it ends, with the model it led to."""

    parameters: FloatVector  # [d] the iterate after the server step, read-only
    eval_params: FloatVector  # [d] the parameters that were evaluated (FedExP: an average), read-only
    buffers: BufferVector  # [b] read-only

    def record(self) -> RoundRecord:
        """The report without its vectors."""
        return RoundRecord(
            round_index=self.round_index,
            metrics=self.metrics,
            client_ids=self.client_ids,
            exclusions=self.exclusions,
            step_norms=self.step_norms,
        )
