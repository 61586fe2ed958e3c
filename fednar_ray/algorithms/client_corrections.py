"""Client corrections: the client's half of a federated optimizer.

A correction changes the gradients of local steps. It may keep a state for each client, and share vectors with them.


Every function works over the last axis, so it serves one client or a client group [C, d].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from fednar_ray.algorithms.regularizers import Scalar
from fednar_ray.core.flat_params import FloatVector


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRound:
    """The round, as a client correction sees it.

    Attributes:
        global_params: x_round, the parameters at the start of the round, [d].
        shared: The shared vectors that the correction declares, by name, [d] each.
        state: Each client's state c_i or h_i, [C, d]. Without ``next_state`` there is none, and this is empty, [C, 0].
        local_lr: η_t.
    """

    global_params: Tensor
    shared: Mapping[str, Tensor]
    state: Tensor
    local_lr: Scalar

    def cut(self, block: slice) -> "LocalRound":
        """Returns the round with only these coordinates of its vectors, which are not copied."""
        return LocalRound(
            global_params=self.global_params[block],
            shared={name: vector[block] for name, vector in self.shared.items()},
            state=self.state[:, block],
            local_lr=self.local_lr,
        )


Correction = Callable[[Tensor, Tensor], Tensor]
"""(gradient [C, d], parameters [C, d]) → corrected gradient [C, d]."""

NextState = Callable[[LocalRound, Tensor, Tensor], Tensor]
"""(round, Δ_i [C, d], steps taken K_i [C, 1]) → the clients' new states [C, d]."""


class SharedVector(NamedTuple):
    """A vector [d] that the server keeps across rounds and sends to every client of a round.

    Attributes:
        init: (initial parameters [d]) → the vector before round 0.
        change: (round, the clients' new states [C, d]) → what each client adds to the vector's change, [C, d]. The
            clients' changes are weighted by their examples n_i and summed over the round's included clients.
        update: (vector [d], Σ n_i·change_i [d], Σ n over **all** clients) → the vector for the next round, [d].
    """

    init: Callable[[FloatVector], FloatVector]
    change: Callable[[LocalRound, Tensor], Tensor]
    update: Callable[[FloatVector, FloatVector, int], FloatVector]


class ClientCorrection(NamedTuple):
    """The client's half of a federated optimizer.

    Attributes:
        correction: Given the round, returns the function that corrects each step's gradient.
        next_state: Computes the clients' states after the round. None if clients keep no state.
        shared: The vectors that the server keeps for this correction, by name. A checkpoint stores each under its
            name. A correction with shared vectors needs ``next_state``.
        is_pure: Whether no function writes to the tensors that it is given. They may then lie in memory that must not
            be written to, such as Ray's object store; otherwise they are copied first.
        is_elementwise: Whether each coordinate of a result depends only on the same coordinate of the vectors. The
            functions are then called with a few coordinates of large vectors at a time, which stay in the cache.
    """

    correction: Callable[[LocalRound], Correction]
    next_state: NextState | None = None
    shared: Mapping[str, SharedVector] = {}
    is_pure: bool = False
    is_elementwise: bool = False


def keep_gradient(grad: Tensor, params: Tensor) -> Tensor:
    """Returns the gradient itself: the ``Correction`` that corrects nothing."""
    return grad


def plain() -> ClientCorrection:
    """Leaves the gradient unchanged (FedAvg).

    Source: McMahan et al., AISTATS 2017.
    """
    return ClientCorrection(lambda _: keep_gradient, is_pure=True, is_elementwise=True)


def proximal(mu: float) -> ClientCorrection:
    """Pulls each client towards the round's start: g + μ·(x − x_round) (FedProx).

    Source: Li et al., MLSys 2020, equation 2.
    """
    return ClientCorrection(
        lambda r: lambda grad, params: grad + mu * (params - r.global_params), is_pure=True, is_elementwise=True
    )


def control_variate() -> ClientCorrection:
    """Replaces each client's drift by the average drift: g + c − c_i (SCAFFOLD).

    After training c_i ← c_i − c − Δ_i / (K_i·η_t). The server control c is the example-weighted mean of c_i over all
    clients. It is kept up to date from the changes of c_i, and stays fixed during a round.

    Source: Karimireddy et al., ICML 2020, Algorithm 1, option II.
    """

    def correction(r: LocalRound) -> Correction:
        offset = r.shared["control"] - r.state
        return lambda grad, params: grad + offset

    def next_state(r: LocalRound, delta: Tensor, steps: Tensor) -> Tensor:
        return (r.state - r.shared["control"]).sub_(delta / (steps * r.local_lr))

    control = SharedVector(
        init=np.zeros_like,
        change=lambda r, states: states - r.state,
        update=lambda c, change, examples: c + change / np.float32(examples),
    )
    return ClientCorrection(correction, next_state, {"control": control}, is_pure=True, is_elementwise=True)


def dynamic(alpha: float) -> ClientCorrection:
    """Regularizes each client dynamically: g + α·(x − x_round) − h_i (FedDyn).

    After training h_i ← h_i − α·Δ_i.

    Source: Acar et al., ICLR 2021, Algorithm 1.
    """

    def correction(r: LocalRound) -> Correction:
        return lambda grad, params: grad + alpha * (params - r.global_params) - r.state

    def next_state(r: LocalRound, delta: Tensor, steps: Tensor) -> Tensor:
        return r.state - alpha * delta

    return ClientCorrection(correction, next_state, is_pure=True, is_elementwise=True)
