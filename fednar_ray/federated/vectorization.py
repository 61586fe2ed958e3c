"""Decides which clients train together as one matrix, and how many.

The group size follows from the model, the kind of device and the clients per round, never from the number of actors:
client groups decide the order of every sum, and results must not depend on actors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from fednar_ray.federated.model_traits import ModelTraits

MAX_GROUP_SIZE = 32
ACTORS = (1, 2, 3, 4)  # numbers of actors for which a group size must pay


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosts:
    """What the parts of a local step cost on a kind of device, in seconds.

    Pairs hold the cost for a client alone and for a client group. A step costs ``step``, plus ``matmul`` or
    ``convolution`` per layer whatever the group size, plus for each client its arithmetic and the memory traffic of its
    vectors, which are too large for the cache in a group.

    Attributes:
        step: Batch, clipping and bookkeeping.
        matmul: Per matrix multiplication.
        convolution: Per convolution.
        flop: Per floating-point operation.
        convolution_flop: Per floating-point operation of a grouped convolution, as groups use it.
        parameter: Per trainable parameter and client.
        compiling: To compile the step of a model.
        compiling_saves: The share of a step's time that compiling saves.
    """

    step: float
    matmul: tuple[float, float]
    convolution: tuple[float, float]
    flop: float
    convolution_flop: float
    parameter: tuple[float, float]
    compiling: float = 60.0
    compiling_saves: float = 0.5


CPU = StepCosts(
    step=1e-4,
    matmul=(3e-5, 3e-5),
    convolution=(2e-4, 2.5e-4),
    flop=8.5e-12,
    convolution_flop=1.3e-11,
    parameter=(4e-10, 7e-10),
)
GPU = StepCosts(
    step=2e-4,
    matmul=(1e-4, 2e-4),
    convolution=(1.5e-4, 3e-4),
    flop=2e-13,
    convolution_flop=6e-13,
    parameter=(4e-11, 4e-11),
)
"""CPU: fitted to one core of a small server, see docs/performance.md. GPU: assumed, never measured.
``scripts/gpu_check`` measures a GPU; its part ``costs`` prints the costs that fit, to replace these."""


def choose_group_size(traits: ModelTraits, clients_per_round: int, batch_size: int, costs: StepCosts) -> int:
    """Chooses the group size for ``vectorize: auto``.

    Among the sizes whose predicted rounds are no longer than those of size 1, for any of 1 to 4 actors, it is the size
    with the shortest rounds relative to size 1, averaged over these numbers of actors.

    Args:
        traits: What is known about the model. Its demand that clients train alone gives 1.
        clients_per_round: How many clients train in a round.
        batch_size: Examples per step.
        costs: What a step costs on the device.
    """
    if traits.alone_because is not None:
        return 1
    alone = _estimate_round_seconds(traits, clients_per_round, batch_size, costs, 1)
    best, least = 1, 1.0
    for group_size in range(2, min(clients_per_round, MAX_GROUP_SIZE) + 1):
        ratios = _estimate_round_seconds(traits, clients_per_round, batch_size, costs, group_size) / alone
        if ratios.max() <= 1 and ratios.mean() < least:
            best, least = group_size, float(ratios.mean())
    return best


def _estimate_round_seconds(
    traits: ModelTraits, clients_per_round: int, batch_size: int, costs: StepCosts, group_size: int
) -> npt.NDArray[np.float64]:
    """Returns the seconds that one step of every client of a round takes, for each number of ``ACTORS``."""
    groups = ceil(clients_per_round / group_size)
    group = _estimate_step_seconds(traits, batch_size, costs, ceil(clients_per_round / groups))
    return np.array([ceil(groups / actors) * group for actors in ACTORS])


def _estimate_step_seconds(traits: ModelTraits, batch_size: int, costs: StepCosts, group_size: int) -> float:
    wide = group_size > 1
    dispatch = traits.matmuls * costs.matmul[wide] + traits.convolutions * costs.convolution[wide]
    # forward and backward cost three times the forward
    arithmetic = traits.matmul_flops * costs.flop
    arithmetic += traits.convolution_flops * (costs.convolution_flop if wide else costs.flop)
    client = 3 * batch_size * arithmetic + traits.parameters * costs.parameter[wide]
    return costs.step + dispatch + group_size * client


def even_out(clients_per_round: int, group_size: int) -> int:
    """Returns the size of the largest of as few equally large groups as possible, of at most ``group_size`` clients."""
    return ceil(clients_per_round / ceil(clients_per_round / group_size))


def is_compiling_worthwhile(
    traits: ModelTraits, group_size: int, batch_size: int, planned: float, costs: StepCosts
) -> bool:
    """Returns whether compiling the local step is shorter than what it saves, for ``compile: auto``.

    Models with convolutions are left out until what they gain is measured; ``compile: on`` compiles them, too.

    Args:
        traits: What is known about the model.
        group_size: C.
        batch_size: Examples per step.
        planned: The local steps of all clients in all planned rounds.
        costs: What a step costs on the device.
    """
    if traits.convolutions:
        return False
    step = _estimate_step_seconds(traits, batch_size, costs, group_size)
    return planned / group_size * step * costs.compiling_saves > costs.compiling


def form_groups(client_ids: Sequence[int], steps: npt.NDArray[np.int64], group_size: int) -> list[tuple[int, ...]]:
    """Forms client groups of at most ``group_size`` clients, as equal in size as possible.

    Clients are in dispatch order: most steps first, ties by id. Neighbors in this order take similar numbers of steps,
    so few steps of a group are masked.

    Args:
        client_ids: The clients of the round.
        steps: K_i of each of them, in the same order.
        group_size: C.
    """
    ids = np.asarray(client_ids)
    ordered = ids[np.lexsort((ids, -steps))]
    parts = np.array_split(ordered, ceil(len(ordered) / group_size))
    return [tuple(part.tolist()) for part in parts]
