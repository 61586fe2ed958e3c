"""Which clients train together as one matrix, and how many: from the model, the device and the clients a round.

Never from the number of actors, since the client groups decide the order of every sum (DESIGN: determinism).
"""

import warnings
from collections import Counter
from collections.abc import Sequence
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
from fednar_ray.core.random import global_generators
from fednar_ray.data.examples import Examples
from fednar_ray.data.transforms import Transform
from fednar_ray.federated.forward_trial import changed_parameter, check_repeatable, forward, fresh
from fednar_ray.federated.gradients import GroupGradient
from fednar_ray.models.tasks import CLASSIFICATION, Task

WIDEST = 32
ACTORS = (1, 2, 3, 4)  # numbers of actors for which a width must be right
FORWARDS = 4  # training forwards after which a buffer counts as constant

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
"""How the names of operators begin that draw from torch's generators whenever they are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosts:
    """What parts of a local step cost on a kind of device, in seconds.

    A step of one client costs ``step`` and, a layer, ``matmul[0]`` or ``convolution[0]``; a step of a client group
    ``step`` and ``matmul[1]`` or ``convolution[1]``, however wide it is. Each client adds its arithmetic, and
    the traffic of its vectors, which a client group finds no longer in the cache.
    """

    step: float  # batch, clip and bookkeeping
    matmul: tuple[float, float]  # alone, in a client group
    convolution: tuple[float, float]
    flop: float
    convolution_flop: float  # in a client group, as grouped convolutions
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
    """What a trial batch shows of a model."""

    changed_buffers: tuple[str, ...]  # those that training changes, by name (BatchNorm's running statistics)
    alone_because: str | None  # why clients must train one by one; None where client groups may be wide
    parameters: int  # d
    matmuls: int  # in a forward pass
    convolutions: int
    matmul_flops: float  # of a forward pass for one example
    convolution_flops: float
    activation_bytes: float = 0.0  # all that a forward pass computes for one example

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
    """Try the model on two examples. Raises ModelError where it fails, or its output does not fit the labels."""
    trial, again = fresh(model), fresh(model)
    other = _unlike_the_first(examples)
    x = torch.from_numpy(examples.x[[0, other, 0]])
    if other == 0 and x.is_floating_point():
        x[1] += 1  # inputs are stood in for, or all alike
    x = x if transform is None else transform.normalized(x)
    counter = _Counter()
    first = forward(trial, x[:2], counter)
    _check_outputs(first.outputs, classes, task)
    written = changed_parameter(trial, again)
    second = check_repeatable(first, again, x[:2])
    changed = _changed_buffers(model, x[:2])
    own_draws = counter.own_generator or (counter.draws and not first.moved_torch)
    seeded = "forward seeds random numbers of torch" if own_draws else None
    state = first.python_state or second.python_state or written or seeded
    return ModelTraits(
        changed_buffers=changed,
        alone_because=_alone_because(trial, x, bool(changed), state, task),
        parameters=ParameterLayout.of(model).dimension,
        matmuls=counter.calls[False],
        convolutions=counter.calls[True],
        matmul_flops=counter.flops[False] / 2,
        convolution_flops=counter.flops[True] / 2,
        activation_bytes=counter.bytes / 2,
    )


def _changed_buffers(model: nn.Module, x: Tensor) -> tuple[str, ...]:
    """Which buffers change in training: over several forward passes, and with parameters that move in between."""
    trial = fresh(model)
    before = copy_buffers(trial)
    for _ in range(FORWARDS):
        forward(trial, x)
        with torch.no_grad():
            for parameter in trainable(trial):
                parameter.add_(0.01)
    return find_changed_buffers(before, trial)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts calls and floating-point operations, of convolutions (True) and of everything else (False); what all
    operators return; and whether any draws random numbers.
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


def _unlike_the_first(examples: Examples) -> int:
    """An example that differs from the first, so that neighbors can be told apart; 0 where all are alike."""
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


def _alone_because(trial: nn.Module, x: Tensor, tracks: bool, state: str | None, task: Task) -> str | None:
    """``state``: what forward changes or draws that tracing would freeze."""
    if tracks or state is not None:
        return "; ".join(filter(None, ("it keeps running statistics" if tracks else None, state)))
    if _examples_mix(trial, x):
        return "examples of a batch influence each other"
    try:
        gradient = GroupGradient(trial, ParameterLayout.of(trial), task, torch.device("cpu"), 2)
        with warnings.catch_warnings(), global_generators():
            warnings.filterwarnings("error", message="There is a performance drop")  # it goes row by row, slowly
            gradient.try_out(x[:2])
    except Exception as error:  # noqa: BLE001 - whatever functorch raises, plain autograd remains
        sentence = first_line(error).partition(". ")[0]
        return f"torch.func.vmap cannot batch it ({sentence[:120]})"
    return gradient.given.change()


def _examples_mix(trial: nn.Module, x: Tensor) -> bool:
    """Does an example's output change with its neighbor, the random draws being the same?"""
    first = [forward(trial, pair).outputs[0] for pair in (x[[0, 1]], x[[0, 2]])]
    return not torch.allclose(first[0], first[1], rtol=1e-3, atol=1e-5, equal_nan=True)


def group_size(traits: ModelTraits, clients_per_round: int, batch_size: int, costs: StepCosts) -> int:
    """The width that ``vectorize: auto`` takes.

    1 where the model demands it. Else, with a step's cost predicted from ``costs``, the width whose rounds are
    shortest, in the mean over 1 to 4 actors and relative to width 1, among those that are longer than with
    width 1 for none of them.
    """
    if traits.alone_because is not None:
        return 1
    alone = _round_costs(traits, clients_per_round, batch_size, costs, 1)
    best, least = 1, 1.0
    for width in range(2, min(clients_per_round, WIDEST) + 1):
        ratios = _round_costs(traits, clients_per_round, batch_size, costs, width) / alone
        if ratios.max() <= 1 and ratios.mean() < least:
            best, least = width, float(ratios.mean())
    return best


def _round_costs(
    traits: ModelTraits, clients_per_round: int, batch_size: int, costs: StepCosts, width: int
) -> npt.NDArray[np.float64]:
    """The seconds of one step of every client of a round, for each of ``ACTORS``."""
    groups = ceil(clients_per_round / width)
    group = _step_seconds(traits, batch_size, costs, ceil(clients_per_round / groups))
    return np.array([ceil(groups / actors) * group for actors in ACTORS])


def _step_seconds(traits: ModelTraits, batch_size: int, costs: StepCosts, width: int) -> float:
    wide = width > 1
    dispatch = traits.matmuls * costs.matmul[wide] + traits.convolutions * costs.convolution[wide]
    # forward and backward cost three times the forward
    arithmetic = traits.matmul_flops * costs.flop
    arithmetic += traits.convolution_flops * (costs.convolution_flop if wide else costs.flop)
    client = 3 * batch_size * arithmetic + traits.parameters * costs.parameter[wide]
    return costs.step + dispatch + width * client


def form_groups(client_ids: Sequence[int], steps: npt.NDArray[np.int64], width: int) -> list[tuple[int, ...]]:
    """Client groups of at most ``width``, as equal in size as can be, in dispatch order: most steps first, ties by id.

    Neighbors in that order have like step counts, so little of a client group is masked.
    """
    ids = np.asarray(client_ids)
    ordered = ids[np.lexsort((ids, -steps))]
    parts = np.array_split(ordered, ceil(len(ordered) / width))
    return [tuple(part.tolist()) for part in parts]
