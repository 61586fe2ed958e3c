"""Decides which clients train together as one matrix, and how many.

The group size follows from the model, the kind of device and the clients per round, never from the number of actors:
client groups decide the order of every sum, and results must not depend on actors.
"""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fednar_ray.core.buffers import copy_buffers, find_changed_buffers
from fednar_ray.core.errors import ModelError, first_line
from fednar_ray.core.flat_params import ParameterLayout, trainable
from fednar_ray.core.random import seed_global_generators
from fednar_ray.data.examples import Examples
from fednar_ray.data.transforms import Transform
from fednar_ray.federated.forward_trial import check_repeatable, copy_for_trial, describe_changed_parameter, forward
from fednar_ray.federated.gradients import GroupGradient
from fednar_ray.models.tasks import CLASSIFICATION, Task

MAX_GROUP_SIZE = 32
ACTORS = (1, 2, 3, 4)  # numbers of actors for which a group size must pay
FORWARDS = 4  # forward passes in training mode after which an unchanged buffer is taken for constant

RANDOM = (
    "rand",
    "normal",
    "uniform",
    "bernoulli",
    "native_dropout",
    "exponential",
    "multinomial",
    "log_normal",
    "poisson",
)
"""Prefixes of the operators that draw from torch's generators in every call."""


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
    """

    step: float
    matmul: tuple[float, float]
    convolution: tuple[float, float]
    flop: float
    convolution_flop: float
    parameter: tuple[float, float]


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
"""CPU: fitted to one core of a small server, see docs/performance.md. GPU: assumed, never measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTraits:
    """What a trial on two examples shows about a model.

    Attributes:
        changed_buffers: The names of the buffers that training changes, such as BatchNorm's running statistics.
        alone_because: Why clients must train one by one; None if they may train in groups.
        parameters: d, the number of trainable parameters.
        matmuls: Matrix multiplications in a forward pass.
        convolutions: Convolutions in a forward pass.
        matmul_flops: Floating-point operations of a forward pass for one example, convolutions aside.
        convolution_flops: Those of convolutions.
        activation_bytes: Bytes of all that a forward pass computes for one example.
    """

    changed_buffers: tuple[str, ...]
    alone_because: str | None
    parameters: int
    matmuls: int
    convolutions: int
    matmul_flops: float
    convolution_flops: float
    activation_bytes: float = 0.0

    @property
    def tracks_buffers(self) -> bool:
        """Whether training changes any buffer."""
        return bool(self.changed_buffers)


def probe(
    model: nn.Module,
    examples: Examples,
    classes: int,
    task: Task = CLASSIFICATION,
    transform: Transform | None = None,
) -> ModelTraits:
    """Tries the model on two examples.

    Args:
        model: The model, which is copied.
        examples: Any client's examples.
        classes: How many classes the labels have.
        task: What the outputs mean.
        transform: Normalizes inputs, if the data source has a transform.

    Raises:
        ModelError: The model fails, cannot be trained reproducibly, or its output does not fit the labels.
    """
    trial, again = copy_for_trial(model), copy_for_trial(model)
    given_buffers = copy_buffers(again)
    other = _find_different_example(examples)
    x = torch.from_numpy(examples.x[[0, other, 0]])
    if other == 0 and x.is_floating_point():
        x[1] += 1  # all inputs are alike, such as the placeholders of inputs that stay in a silo
    x = x if transform is None else transform.normalize(x)
    counter = _Counter()
    first = forward(trial, x[:2], counter)
    _check_outputs(first.outputs, classes, task)
    written = describe_changed_parameter(trial, again)
    second = check_repeatable(first, again, x[:2])
    changed = _find_changed_buffers(given_buffers, again, x[:2])
    own_draws = counter.own_generator or (counter.draws and not first.moved_torch)
    seeded = "forward seeds random numbers of torch" if own_draws else None
    state = first.python_state or second.python_state or written or seeded
    return ModelTraits(
        changed_buffers=changed,
        alone_because=_find_reason_to_train_alone(trial, x, bool(changed), state, task),
        parameters=ParameterLayout.of(model).dimension,
        matmuls=counter.calls[False],
        convolutions=counter.calls[True],
        matmul_flops=counter.flops[False] / 2,
        convolution_flops=counter.flops[True] / 2,
        activation_bytes=counter.bytes / 2,
    )


def _find_changed_buffers(given: Mapping[str, Tensor], trial: nn.Module, x: Tensor) -> tuple[str, ...]:
    """Returns the buffers that change over several forward passes, with parameters that move in between.

    Args:
        given: The buffers before any pass.
        trial: A copy of the model that has run one pass on ``x``.
        x: A batch.
    """
    for _ in range(FORWARDS - 1):
        with torch.no_grad():
            for parameter in trainable(trial):
                parameter.add_(0.01)
        forward(trial, x)
    return find_changed_buffers(given, trial)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts calls and floating-point operations, by whether they are convolutions, and the bytes of all results.

    It also notes whether any operator draws random numbers, and whether one does so from a generator of the model.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[bool] = Counter()
        self.flops: Counter[bool] = Counter()
        self.bytes = 0
        self.draws = self.own_generator = False  # random numbers; with a generator of the model's own

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.layout == torch.strided:
            self.bytes += out.nbytes
        self.draws |= func.overloadpacket.__name__.startswith(RANDOM)
        self.own_generator |= (kwargs or {}).get("generator") is not None
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            convolution = func.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten._convolution)
            self.calls[convolution] += 1
            self.flops[convolution] += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _find_different_example(examples: Examples) -> int:
    """Returns the index of the first example that differs from example 0; 0 if all are alike."""
    flat = examples.x.reshape(len(examples), -1)
    return next((i for i in range(1, len(flat)) if (flat[i] != flat[0]).any()), 0)


def _check_outputs(outputs: object, classes: int, task: Task) -> None:
    shape = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != 2:
        wanted = "logits [2, classes]" if task.outputs is None else f"outputs [2, {task.outputs}]"
        raise ModelError(f"the model gives {shape} for 2 examples; {wanted} are needed")
    if task.outputs is not None and outputs.shape[1] != task.outputs:
        raise ModelError(f"the model has {outputs.shape[1]} outputs; these labels need {task.outputs}")
    if task.outputs is None and outputs.shape[1] < classes:
        raise ModelError(f"the model has {outputs.shape[1]} outputs, and the labels run to {classes - 1}")


def _find_reason_to_train_alone(trial: nn.Module, x: Tensor, tracks: bool, state: str | None, task: Task) -> str | None:
    """Returns why clients must train one by one. ``state`` is what forward changes or draws, which tracing freezes."""
    if tracks or state is not None:
        return "; ".join(filter(None, ("it keeps running statistics" if tracks else None, state)))
    if _mixes_examples(trial, x):
        return "examples of a batch influence each other"
    try:
        gradient = GroupGradient(trial, ParameterLayout.of(trial), task, torch.device("cpu"), 2)
        with warnings.catch_warnings(), seed_global_generators():
            warnings.filterwarnings("error", message="There is a performance drop")  # it goes row by row, slowly
            gradient.check_vmap(x[:2])
    except Exception as error:  # noqa: BLE001 - functorch may raise anything; plain autograd remains
        sentence = first_line(error).partition(". ")[0]
        return f"torch.func.vmap cannot batch it ({sentence[:120]})"
    return gradient.given.find_change()


def _mixes_examples(trial: nn.Module, x: Tensor) -> bool:
    """Returns whether an example's output depends on the other example of its batch, with equal random draws."""
    first = [forward(trial, pair).outputs[0] for pair in (x[[0, 1]], x[[0, 2]])]
    return not torch.allclose(first[0], first[1], rtol=1e-3, atol=1e-5, equal_nan=True)


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
