"""Tries a model on two examples: what it computes, what it changes, and whether clients can train as one matrix."""

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fednar_ray.config.execution import Precision
from fednar_ray.core.buffers import copy_buffers, find_changed_buffers
from fednar_ray.core.errors import ModelError, first_line
from fednar_ray.core.flat_params import ParameterLayout, trainable
from fednar_ray.core.random import seed_global_generators
from fednar_ray.data.examples import Examples
from fednar_ray.data.transforms import Transform
from fednar_ray.federated.addressed_draws import UnaddressedDraw, find_draw
from fednar_ray.federated.forward_trial import check_repeatable, copy_for_trial, describe_changed_parameter, forward
from fednar_ray.federated.gradients import GroupGradient
from fednar_ray.federated.recorder import EagerMode
from fednar_ray.models.tasks import CLASSIFICATION, Task

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
        addressed: Whether layers draw random numbers, and all by operators that ``addressed_draws`` knows.
        draws: Whether layers draw random numbers.
    """

    changed_buffers: tuple[str, ...]
    alone_because: str | None
    parameters: int
    matmuls: int
    convolutions: int
    matmul_flops: float
    convolution_flops: float
    activation_bytes: float = 0.0
    addressed: bool = False
    draws: bool = False

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
    precision: Precision = "float32",
) -> ModelTraits:
    """Tries the model on two examples.

    Args:
        model: The model, which is copied.
        examples: Any client's examples.
        classes: How many classes the labels have.
        task: What the outputs mean.
        transform: Normalizes inputs, if the data source has a transform.
        precision: In what gradients will be computed.

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
        alone_because=_find_reason_to_train_alone(trial, x, bool(changed), state, task, precision),
        parameters=ParameterLayout.of(model).dimension,
        matmuls=counter.calls[False],
        convolutions=counter.calls[True],
        matmul_flops=counter.flops[False] / 2,
        convolution_flops=counter.flops[True] / 2,
        activation_bytes=counter.bytes / 2,
        addressed=counter.draws and counter.unaddressed is None,
        draws=counter.draws or bool(own_draws),
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


class _Counter(EagerMode):
    """Counts calls and floating-point operations, by whether they are convolutions, and the bytes of all results.

    It also notes whether any operator draws random numbers, and whether one does so from a generator of the model.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry  # imports Triton, where it is installed

        self._formulas = flop_registry
        self.calls: Counter[bool] = Counter()
        self.flops: Counter[bool] = Counter()
        self.bytes = 0
        self.draws = self.own_generator = False  # random numbers; with a generator of the model's own
        self.unaddressed: str | None = None  # an operator that draws random numbers without addresses

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.layout == torch.strided:
            self.bytes += out.nbytes
        if func.overloadpacket.__name__.startswith(RANDOM) or torch.Tag.nondeterministic_seeded in func.tags:
            self.draws = True
            if find_draw(func, args, kwargs or {}) is None:
                self.unaddressed = func.overloadpacket.__name__
        self.own_generator |= (kwargs or {}).get("generator") is not None
        formula = self._formulas.get(func.overloadpacket)
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


def _find_reason_to_train_alone(
    trial: nn.Module, x: Tensor, tracks: bool, state: str | None, task: Task, precision: Precision
) -> str | None:
    """Returns why clients must train one by one. ``state`` is what forward changes or draws, which tracing freezes."""
    if tracks or state is not None:
        return "; ".join(filter(None, ("it keeps running statistics" if tracks else None, state)))
    if _mixes_examples(trial, x):
        return "examples of a batch influence each other"
    try:
        gradient = GroupGradient(trial, ParameterLayout.of(trial), task, torch.device("cpu"), 2, precision)
        with warnings.catch_warnings(), seed_global_generators():
            warnings.filterwarnings("error", message="There is a performance drop")  # it goes row by row, slowly
            gradient.check_vmap(x[:2])
    except UnaddressedDraw as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - functorch may raise anything; plain autograd remains
        sentence = first_line(error).partition(". ")[0]
        return f"torch.func.vmap cannot batch it ({sentence[:120]})"
    return gradient.given.find_change()


def _mixes_examples(trial: nn.Module, x: Tensor) -> bool:
    """Returns whether an example's output depends on the other example of its batch, with equal random draws."""
    first = [forward(trial, pair).outputs[0] for pair in (x[[0, 1]], x[[0, 2]])]
    return not torch.allclose(first[0], first[1], rtol=1e-3, atol=1e-5, equal_nan=True)
