"""What a federated optimizer adds to a client's gradient, and what the client remembers of a round.

A rule is a pair of functions over the last axis, so it serves one client or a client group [C, d].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from fednar_ray.algorithms.regularizers import Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRound:
    """What a client correction may see of its round."""

    global_params: Tensor  # [d] x_round
    control: Tensor | None  # [d] c, where the rule uses one
    state: Tensor | None  # [C, d] c_i or h_i, where the rule keeps one
    local_lr: Scalar  # η_t


Correction = Callable[[Tensor, Tensor], Tensor]
"""(gradient [C, d], parameters [C, d]) → corrected gradient [C, d]."""

NextState = Callable[[LocalRound, Tensor, Tensor], Tensor]
"""(round, Δ_i [C, d], steps taken K_i [C, 1]) → the clients' new states [C, d]."""


class ClientCorrection(NamedTuple):
    """One row's worth of a federated optimizer on the client."""

    correction: Callable[[LocalRound], Correction]
    next_state: NextState | None = None  # None: clients keep nothing
    uses_control: bool = False  # the server broadcasts c, the weighted mean of all states


def plain() -> ClientCorrection:
    """FedAvg (McMahan et al. 2017): the gradient as it is."""
    return ClientCorrection(lambda _: lambda grad, params: grad)


def proximal(mu: float) -> ClientCorrection:
    """FedProx (Li et al. 2020, eq. 2): g + μ(x − x_round)."""
    return ClientCorrection(lambda r: lambda grad, params: grad + mu * (params - r.global_params))


def control_variate() -> ClientCorrection:
    """SCAFFOLD (Karimireddy et al. 2020, Algorithm 1, option II): g + c − c_i;  c_i ← c_i − c − Δ_i/(K_i·η_t)."""

    def correction(r: LocalRound) -> Correction:
        assert r.control is not None
        assert r.state is not None
        offset = r.control - r.state
        return lambda grad, params: grad + offset

    def next_state(r: LocalRound, delta: Tensor, steps: Tensor) -> Tensor:
        assert r.control is not None
        assert r.state is not None
        return r.state - r.control - delta / (steps * r.local_lr)

    return ClientCorrection(correction, next_state, uses_control=True)


def dynamic(alpha: float) -> ClientCorrection:
    """FedDyn (Acar et al. 2021, Algorithm 1): g + α(x − x_round) − h_i;  h_i ← h_i − α·Δ_i."""

    def correction(r: LocalRound) -> Correction:
        assert r.state is not None
        state, global_params = r.state, r.global_params
        return lambda grad, params: grad + alpha * (params - global_params) - state

    def next_state(r: LocalRound, delta: Tensor, steps: Tensor) -> Tensor:
        assert r.state is not None
        return r.state - alpha * delta

    return ClientCorrection(correction, next_state)
