"""How the server moves, given a round's aggregate.  Pure: a state and an aggregate in, a new state out.

Δ = Σ w_i·Δ_i over the round's clients S;  ε_t is annealed for the round.  Everything works over the last
axis: vectors may be [d], or [R, d] for R federations at once with scalars of shape [R, 1].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fednar_ray.core.flat_params import FloatVector

ServerScalar = float | npt.NDArray[np.floating]
"""A float, or one value a row: [R, 1]."""


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
    """Everything that a server optimizer carries from round to round."""

    parameters: FloatVector  # [d] x
    vectors: Mapping[str, FloatVector] = field(default_factory=dict)  # [d] each: m, v, h, …
    scalars: Mapping[str, ServerScalar] = field(default_factory=dict)  # r of fedavgm+exp
    server_lr: ServerScalar | None = None  # η_g of the last step; None before the first


class ServerOptimizer(NamedTuple):
    """A server optimizer."""

    init: Callable[[FloatVector], ServerState]
    step: Callable[[ServerState, RoundAggregate], ServerState]
    eval_params: Callable[[ServerState], FloatVector]  # the parameters to evaluate


def _start(parameters: FloatVector) -> ServerState:
    return ServerState(parameters=parameters)


def _iterate(state: ServerState) -> FloatVector:
    return state.parameters


def _moved(state: ServerState, server_lr: ServerScalar, direction: FloatVector) -> FloatVector:
    return state.parameters + _f32(server_lr) * direction


def _f32(scalar: ServerScalar) -> FloatVector:
    """A scalar, or a column of them, that keeps vectors in float32."""
    return np.asarray(scalar, dtype=np.float32)


def mean(server_lr: float) -> ServerOptimizer:
    """x ← x + η_g·Δ."""

    def step(state: ServerState, agg: RoundAggregate) -> ServerState:
        return ServerState(parameters=_moved(state, server_lr, agg.delta), server_lr=server_lr)

    return ServerOptimizer(_start, step, _iterate)


def momentum(server_lr: float, beta: float) -> ServerOptimizer:
    """FedAvgM (Hsu et al. 2019): m ← Δ + β·m;  x ← x + η_g·m."""

    def init(parameters: FloatVector) -> ServerState:
        return ServerState(parameters=parameters, vectors={"m": np.zeros_like(parameters)})

    def step(state: ServerState, agg: RoundAggregate) -> ServerState:
        m = agg.delta + _f32(beta) * state.vectors["m"]
        return ServerState(parameters=_moved(state, server_lr, m), vectors={"m": m}, server_lr=server_lr)

    return ServerOptimizer(init, step, _iterate)


SecondMoment = Callable[[FloatVector, FloatVector, FloatVector], FloatVector]
"""(v, Δ², 1 − β₂) → the new v."""


def adam_moment(v: FloatVector, squared: FloatVector, rate: FloatVector) -> FloatVector:
    """v ← β₂·v + (1 − β₂)·Δ²."""
    return v + rate * (squared - v)


def yogi_moment(v: FloatVector, squared: FloatVector, rate: FloatVector) -> FloatVector:
    """v ← v − (1 − β₂)·Δ²·sign(v − Δ²)."""
    moved: FloatVector = v - rate * squared * np.sign(v - squared)
    return moved


def adagrad_moment(v: FloatVector, squared: FloatVector, rate: FloatVector) -> FloatVector:
    """v ← v + Δ²."""
    return v + squared


def adaptive(server_lr: float, beta1: float, beta2: float, epsilon: float, moment: SecondMoment) -> ServerOptimizer:
    """FedAdam, FedYogi, FedAdagrad (Reddi et al. 2021, Algorithm 2), no bias correction.

    m ← β₁·m + (1 − β₁)·Δ;  v by ``moment``, from ε_0²;  x ← x + η_g·m/(√v + ε_t).
    """

    def init(parameters: FloatVector) -> ServerState:
        start = {"m": np.zeros_like(parameters), "v": np.full_like(parameters, epsilon**2)}
        return ServerState(parameters=parameters, vectors=start)

    def step(state: ServerState, agg: RoundAggregate) -> ServerState:
        m = _f32(beta1) * state.vectors["m"] + _f32(1 - beta1) * agg.delta
        v = moment(state.vectors["v"], agg.delta**2, _f32(1 - beta2))
        direction: FloatVector = np.divide(m, np.sqrt(v) + _f32(agg.epsilon))
        moved = _moved(state, server_lr, direction)
        return ServerState(parameters=moved, vectors={"m": m, "v": v}, server_lr=server_lr)

    return ServerOptimizer(init, step, _iterate)


def adam_li2023(server_lr: float) -> ServerOptimizer:
    """Adam as FedNAR's authors ran it: m ← 0.1Δ + 0.9m;  v ← 0.99v + 0.01m²;  x ← x + η_g·(m/0.1)/√(v/0.01 + ε_t)."""

    def init(parameters: FloatVector) -> ServerState:
        return ServerState(parameters=parameters, vectors={k: np.zeros_like(parameters) for k in ("m", "v")})

    def step(state: ServerState, agg: RoundAggregate) -> ServerState:
        m = _f32(0.1) * agg.delta + _f32(0.9) * state.vectors["m"]
        v = _f32(0.99) * state.vectors["v"] + _f32(0.01) * m**2
        direction: FloatVector = (m / _f32(0.1)) / np.sqrt(v / _f32(0.01) + _f32(agg.epsilon))
        moved = _moved(state, server_lr, direction)
        return ServerState(parameters=moved, vectors={"m": m, "v": v}, server_lr=server_lr)

    return ServerOptimizer(init, step, _iterate)


def _average_of_last_two(state: ServerState) -> FloatVector:
    previous = state.vectors.get("previous")
    return state.parameters if previous is None else (state.parameters + previous) / _f32(2)


def _extrapolation(mean_squared_norm: ServerScalar, direction: FloatVector, agg: RoundAggregate) -> ServerScalar:
    """max(1, ½·mean_squared_norm / (‖direction‖² + |S|·ε_t)); 1 where nothing moved."""
    denominator = np.sum(np.square(direction, dtype=np.float64), axis=-1, keepdims=True) + agg.clients * agg.epsilon
    ratio = np.divide(0.5 * mean_squared_norm, denominator, out=np.ones_like(denominator), where=denominator > 0)
    factor: npt.NDArray[np.float64] = np.maximum(1.0, ratio)
    return factor


def _remembered(state: ServerState) -> dict[str, FloatVector]:
    """The iterate before this step; in round 0 there is none to average with."""
    return {} if state.server_lr is None else {"previous": state.parameters}


def extrapolated() -> ServerOptimizer:
    """FedExP (Jhunjhunwala et al. 2023, Algorithm 1): η_g = max(1, ½·Σ w_i‖Δ_i‖² / (‖Δ‖² + |S|·ε_t)).

    Evaluates the mean of the last two iterates; in round 0 the new iterate alone.
    """

    def step(state: ServerState, agg: RoundAggregate) -> ServerState:
        server_lr = _extrapolation(agg.mean_squared_norm, agg.delta, agg)
        moved = _moved(state, server_lr, agg.delta)
        return ServerState(parameters=moved, vectors=_remembered(state), server_lr=server_lr)

    return ServerOptimizer(_start, step, _average_of_last_two)


def extrapolated_momentum(beta: float) -> ServerOptimizer:
    """FedExP with server momentum: r ← Σ w_i‖Δ_i‖² + ½β·r;  m ← Δ + β·m;  η_g = max(1, ½·r / (‖m‖² + |S|·ε_t))."""

    def init(parameters: FloatVector) -> ServerState:
        return ServerState(parameters=parameters, vectors={"m": np.zeros_like(parameters)}, scalars={"r": 0.0})

    def step(state: ServerState, agg: RoundAggregate) -> ServerState:
        r = agg.mean_squared_norm + 0.5 * beta * state.scalars["r"]
        m = agg.delta + _f32(beta) * state.vectors["m"]
        server_lr = _extrapolation(r, m, agg)
        vectors = {"m": m, **_remembered(state)}
        moved = _moved(state, server_lr, m)
        return ServerState(parameters=moved, vectors=vectors, scalars={"r": r}, server_lr=server_lr)

    return ServerOptimizer(init, step, _average_of_last_two)


def dynamic_server(alpha: float) -> ServerOptimizer:
    """FedDyn (Acar et al. 2021, Algorithm 1; unweighted): h ← h − (α/N)·Σ_S Δ_i;  x ← x + mean_S Δ_i − h/α."""

    def init(parameters: FloatVector) -> ServerState:
        return ServerState(parameters=parameters, vectors={"h": np.zeros_like(parameters)})

    def step(state: ServerState, agg: RoundAggregate) -> ServerState:
        h = state.vectors["h"] - _f32(alpha * agg.clients / agg.population) * agg.delta
        moved: FloatVector = state.parameters + agg.delta - np.divide(h, _f32(alpha))
        return ServerState(parameters=moved, vectors={"h": h}, server_lr=1.0)

    return ServerOptimizer(init, step, _iterate)
