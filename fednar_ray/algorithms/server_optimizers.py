"""Server optimizers: pure functions from a state and a round's aggregate to the next state.

Δ = Σ w_i·Δ_i over the round's included clients S, and ε_t is annealed. Everything works over the last axis: vectors are
[d], or [R, d] for R federations at once, with scalars of shape [R, 1].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fednar_ray.core.flat_params import FloatVector

ServerScalar = float | npt.NDArray[np.floating]
"""A float, or one value per federation, [R, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAggregate:
    """The sums of one round over its included clients S, as a server optimizer sees them.

    Attributes:
        delta: Δ = Σ w_i·Δ_i with Σ w_i = 1, [d].
        mean_squared_norm: Σ w_i·‖Δ_i‖².
        clients: |S|, the number of included clients.
        population: N, the number of all clients.
        epsilon: ε_t.
    """

    delta: FloatVector
    mean_squared_norm: float
    clients: int
    population: int
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """Everything that a server optimizer carries from round to round. Checkpoints store all of it.

    Attributes:
        parameters: The iterate x, [d].
        vectors: The optimizer's own vectors by name, such as m, v or h, [d] each.
        scalars: Its own scalars by name, such as r of ``fedavgm+exp``.
        server_lr: η_g of the last step; None before the first step.
    """

    parameters: FloatVector
    vectors: Mapping[str, FloatVector] = field(default_factory=dict)
    scalars: Mapping[str, ServerScalar] = field(default_factory=dict)
    server_lr: ServerScalar | None = None


class ServerOptimizer(NamedTuple):
    """The server's half of a federated optimizer.

    Attributes:
        init: (initial parameters [d]) → the state before round 0.
        step: (state, the round's aggregate) → the next state.
        eval_params: (state) → the parameters to evaluate, [d].
    """

    init: Callable[[FloatVector], ServerState]
    step: Callable[[ServerState, RoundAggregate], ServerState]
    eval_params: Callable[[ServerState], FloatVector]


def _start(parameters: FloatVector) -> ServerState:
    return ServerState(parameters=parameters)


def _iterate(state: ServerState) -> FloatVector:
    return state.parameters


def _move(state: ServerState, server_lr: ServerScalar, direction: FloatVector) -> FloatVector:
    return state.parameters + _f32(server_lr) * direction


def _f32(scalar: ServerScalar) -> FloatVector:
    """Returns a scalar, or a column of scalars, as float32, so that products with vectors stay in float32."""
    return np.asarray(scalar, dtype=np.float32)


def mean(server_lr: float) -> ServerOptimizer:
    """Adds the mean update: x ← x + η_g·Δ (FedAvg)."""

    def step(state: ServerState, agg: RoundAggregate) -> ServerState:
        return ServerState(parameters=_move(state, server_lr, agg.delta), server_lr=server_lr)

    return ServerOptimizer(_start, step, _iterate)


def momentum(server_lr: float, beta: float) -> ServerOptimizer:
    """Adds momentum: m ← Δ + β·m, x ← x + η_g·m (FedAvgM).

    Source: Hsu et al., 2019.
    """

    def init(parameters: FloatVector) -> ServerState:
        return ServerState(parameters=parameters, vectors={"m": np.zeros_like(parameters)})

    def step(state: ServerState, agg: RoundAggregate) -> ServerState:
        m = agg.delta + _f32(beta) * state.vectors["m"]
        return ServerState(parameters=_move(state, server_lr, m), vectors={"m": m}, server_lr=server_lr)

    return ServerOptimizer(init, step, _iterate)


SecondMoment = Callable[[FloatVector, FloatVector, FloatVector], FloatVector]
"""(v, Δ², 1 − β₂) → the new v."""


def adam_moment(v: FloatVector, squared: FloatVector, rate: FloatVector) -> FloatVector:
    """Updates the second moment as Adam does: v ← β₂·v + (1 − β₂)·Δ²."""
    return v + rate * (squared - v)


def yogi_moment(v: FloatVector, squared: FloatVector, rate: FloatVector) -> FloatVector:
    """Updates the second moment as Yogi does: v ← v − (1 − β₂)·Δ²·sign(v − Δ²)."""
    moved: FloatVector = v - rate * squared * np.sign(v - squared)
    return moved


def adagrad_moment(v: FloatVector, squared: FloatVector, rate: FloatVector) -> FloatVector:
    """Updates the second moment as Adagrad does: v ← v + Δ²."""
    return v + squared


def adaptive(server_lr: float, beta1: float, beta2: float, epsilon: float, moment: SecondMoment) -> ServerOptimizer:
    """Scales coordinates by their second moment: x ← x + η_g·m/(√v + ε_t) (FedAdam, FedYogi, FedAdagrad).

    The first moment is m ← β₁·m + (1 − β₁)·Δ. The second moment v starts at ε_0². There is no bias correction.

    Args:
        server_lr: η_g.
        beta1: β₁.
        beta2: β₂.
        epsilon: ε_0. The steps use the round's ε_t.
        moment: Updates v: ``adam_moment``, ``yogi_moment`` or ``adagrad_moment``.

    Source: Reddi et al., ICLR 2021, Algorithm 2.
    """

    def init(parameters: FloatVector) -> ServerState:
        start = {"m": np.zeros_like(parameters), "v": np.full_like(parameters, epsilon**2)}
        return ServerState(parameters=parameters, vectors=start)

    def step(state: ServerState, agg: RoundAggregate) -> ServerState:
        m = _f32(beta1) * state.vectors["m"] + _f32(1 - beta1) * agg.delta
        v = moment(state.vectors["v"], agg.delta**2, _f32(1 - beta2))
        direction: FloatVector = np.divide(m, np.sqrt(v) + _f32(agg.epsilon))
        moved = _move(state, server_lr, direction)
        return ServerState(parameters=moved, vectors={"m": m, "v": v}, server_lr=server_lr)

    return ServerOptimizer(init, step, _iterate)


def adam_li2023(server_lr: float) -> ServerOptimizer:
    """Runs Adam as FedNAR's authors did: m ← 0.1Δ + 0.9m, v ← 0.99v + 0.01m², x ← x + η_g·(m/0.1)/√(v/0.01 + ε_t).

    Source: the program of Li et al., NeurIPS 2023.
    """

    def init(parameters: FloatVector) -> ServerState:
        return ServerState(parameters=parameters, vectors={k: np.zeros_like(parameters) for k in ("m", "v")})

    def step(state: ServerState, agg: RoundAggregate) -> ServerState:
        m = _f32(0.1) * agg.delta + _f32(0.9) * state.vectors["m"]
        v = _f32(0.99) * state.vectors["v"] + _f32(0.01) * m**2
        direction: FloatVector = (m / _f32(0.1)) / np.sqrt(v / _f32(0.01) + _f32(agg.epsilon))
        moved = _move(state, server_lr, direction)
        return ServerState(parameters=moved, vectors={"m": m, "v": v}, server_lr=server_lr)

    return ServerOptimizer(init, step, _iterate)


def _average_of_last_two(state: ServerState) -> FloatVector:
    previous = state.vectors.get("previous")
    return state.parameters if previous is None else (state.parameters + previous) / _f32(2)


def _compute_extrapolation(
    mean_squared_norm: ServerScalar, direction: FloatVector, agg: RoundAggregate
) -> ServerScalar:
    """Computes max(1, ½·mean_squared_norm / (‖direction‖² + |S|·ε_t)); 1 if nothing moved."""
    denominator = np.sum(np.square(direction, dtype=np.float64), axis=-1, keepdims=True) + agg.clients * agg.epsilon
    ratio = np.divide(0.5 * mean_squared_norm, denominator, out=np.ones_like(denominator), where=denominator > 0)
    factor: npt.NDArray[np.float64] = np.maximum(1.0, ratio)
    return factor


def _keep_previous(state: ServerState) -> dict[str, FloatVector]:
    """Returns the iterate before this step. In round 0 there is no earlier iterate to average with."""
    return {} if state.server_lr is None else {"previous": state.parameters}


def extrapolated() -> ServerOptimizer:
    """Extrapolates the mean update: η_g = max(1, ½·Σ w_i‖Δ_i‖² / (‖Δ‖² + |S|·ε_t)) (FedExP).

    The mean of the last two iterates is evaluated; in round 0, the new iterate alone.

    Source: Jhunjhunwala et al., ICLR 2023, Algorithm 1.
    """

    def step(state: ServerState, agg: RoundAggregate) -> ServerState:
        server_lr = _compute_extrapolation(agg.mean_squared_norm, agg.delta, agg)
        moved = _move(state, server_lr, agg.delta)
        return ServerState(parameters=moved, vectors=_keep_previous(state), server_lr=server_lr)

    return ServerOptimizer(_start, step, _average_of_last_two)


def extrapolated_momentum(beta: float) -> ServerOptimizer:
    """Extrapolates with momentum: m ← Δ + β·m, r ← Σ w_i‖Δ_i‖² + ½β·r, η_g = max(1, ½·r / (‖m‖² + |S|·ε_t)).

    The mean of the last two iterates is evaluated, as in ``extrapolated``.
    """

    def init(parameters: FloatVector) -> ServerState:
        return ServerState(parameters=parameters, vectors={"m": np.zeros_like(parameters)}, scalars={"r": 0.0})

    def step(state: ServerState, agg: RoundAggregate) -> ServerState:
        r = agg.mean_squared_norm + 0.5 * beta * state.scalars["r"]
        m = agg.delta + _f32(beta) * state.vectors["m"]
        server_lr = _compute_extrapolation(r, m, agg)
        vectors = {"m": m, **_keep_previous(state)}
        moved = _move(state, server_lr, m)
        return ServerState(parameters=moved, vectors=vectors, scalars={"r": r}, server_lr=server_lr)

    return ServerOptimizer(init, step, _average_of_last_two)


def dynamic_server(alpha: float) -> ServerOptimizer:
    """Corrects the mean by the dynamic regularizers' sum: h ← h − (α/N)·Σ_S Δ_i, x ← x + mean_S Δ_i − h/α (FedDyn).

    Clients are unweighted.

    Source: Acar et al., ICLR 2021, Algorithm 1.
    """

    def init(parameters: FloatVector) -> ServerState:
        return ServerState(parameters=parameters, vectors={"h": np.zeros_like(parameters)})

    def step(state: ServerState, agg: RoundAggregate) -> ServerState:
        h = state.vectors["h"] - _f32(alpha * agg.clients / agg.population) * agg.delta
        moved: FloatVector = state.parameters + agg.delta - np.divide(h, _f32(alpha))
        return ServerState(parameters=moved, vectors={"h": h}, server_lr=1.0)

    return ServerOptimizer(init, step, _iterate)
