"""Which clients train together as one matrix, and how many: from the model, the device and the clients a round.

Never from the number of actors, since the cohorts decide the order of every sum (DESIGN: determinism).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fednar_ray.data.federation import Examples
from fednar_ray.errors import ModelError
from fednar_ray.gradients import CohortGradient
from fednar_ray.vectors import ParameterLayout, flatten_buffers

CPU_STEP_FLOPS = 1e8  # above this a step is bound by arithmetic, and a cohort gains nothing
GPU_STEP_FLOPS = 1e11
WIDEST = 32


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """What a trial batch shows of a model."""

    tracks_buffers: bool  # its training changes buffers (BatchNorm's running statistics)
    alone_because: str | None  # why clients must train one by one; None where cohorts may be wide
    example_flops: float  # forward, for one example


def probe(model: nn.Module, examples: Examples, classes: int) -> ModelTraits:
    """Try the model on two examples. Raises ModelError where it fails, or its output does not fit the labels."""
    trial = copy.deepcopy(model).cpu().train()
    x = torch.from_numpy(examples.x[[0, _unlike_the_first(examples), 0]])
    before = flatten_buffers(trial)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), counter:
        try:
            outputs = trial(x[:2])
        except Exception as error:
            raise ModelError(f"the model fails on a batch of shape {list(x[:2].shape)}: {error}") from error
    _check_outputs(outputs, classes)
    tracks = not np.array_equal(before, flatten_buffers(trial), equal_nan=True)
    return ModelTraits(tracks, _alone_because(trial, x, tracks), counter.get_total_flops() / 2)


def _unlike_the_first(examples: Examples) -> int:
    """An example that differs from the first, so that neighbours can be told apart; 0 where all are alike."""
    flat = examples.x.reshape(len(examples), -1)
    return next((i for i in range(1, len(flat)) if (flat[i] != flat[0]).any()), 0)


def _check_outputs(outputs: object, classes: int) -> None:
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != 2:
        shape = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ModelError(f"the model gives {shape} for 2 examples; logits [2, classes] are needed")
    if outputs.shape[1] < classes:
        raise ModelError(f"the model has {outputs.shape[1]} outputs, and the labels run to {classes - 1}")


def _alone_because(trial: nn.Module, x: Tensor, tracks: bool) -> str | None:
    if tracks:
        return "it keeps running statistics"
    if _examples_mix(trial, x):
        return "examples of a batch influence each other"
    try:
        gradient = CohortGradient(trial, ParameterLayout.of(trial), torch.device("cpu"), 2)
        gradient.try_out(x[:2])
    except Exception as error:  # noqa: BLE001 - whatever functorch raises, plain autograd remains
        return f"torch.func.vmap cannot batch it ({str(error).splitlines()[0][:120]})"
    return None


def _examples_mix(trial: nn.Module, x: Tensor) -> bool:
    """Does an example's output change with its neighbour, the random draws being the same?"""
    first = []
    for pair in (x[[0, 1]], x[[0, 2]]):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first.append(trial(pair)[0])
    return not torch.allclose(first[0], first[1], rtol=1e-3, atol=1e-5, equal_nan=True)


def cohort_width(traits: ModelTraits, clients_per_round: int, batch_size: int, gpu: bool) -> int:
    """The width that ``cohort_width: auto`` takes.

    1 where the model demands it or a step is bound by arithmetic (forward and backward cost three times the
    forward); else half the clients of a round, at most ``WIDEST``, so that two or more cohorts keep actors busy.
    """
    step_flops = 3 * batch_size * traits.example_flops
    if traits.alone_because is not None or step_flops > (GPU_STEP_FLOPS if gpu else CPU_STEP_FLOPS):
        return 1
    return max(1, min(ceil(clients_per_round / 2), WIDEST))


def form_cohorts(client_ids: Sequence[int], steps: npt.NDArray[np.int64], width: int) -> list[tuple[int, ...]]:
    """Cohorts of at most ``width``, as equal in size as can be, in dispatch order: most steps first, ties by id.

    Neighbours in that order have like step counts, so little of a cohort is masked.
    """
    ids = np.asarray(client_ids)
    ordered = ids[np.lexsort((ids, -steps))]
    parts = np.array_split(ordered, ceil(len(ordered) / width))
    return [tuple(part.tolist()) for part in parts]
