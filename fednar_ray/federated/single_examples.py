"""Models that cannot train on a batch of one example, as BatchNorm cannot: refused before round 0."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fednar_ray.core.errors import ModelError, first_line
from fednar_ray.core.exits import exits_as_errors
from fednar_ray.core.random import global_generators
from fednar_ray.core.schedules import Workload
from fednar_ray.federated.forward_trial import fresh

SHOWN = 5  # clients in an error


def check_single_example_batches(
    model: nn.Module, x: Tensor, sizes: npt.NDArray[np.int64], client_ids: Sequence[int], workload: Workload
) -> None:
    """Checks that no client reaches a batch of one example on which the model cannot train.

    Args:
        model: The model, which stays as it is.
        x: A batch of two inputs.
        sizes: n_i of every client, [N].
        client_ids: The clients that may be sampled.
        workload: The batch size and the local steps or epochs.

    Raises:
        ModelError: The message names the module, the clients, and batch sizes that leave no such batch.
    """
    own = sizes[list(client_ids)]
    reached = np.asarray(client_ids)[_reach_single_example(own, workload)]
    problem = _problem_with_one_example(model, x) if len(reached) else None
    if problem is None:
        return
    shown = ", ".join(f"{i} ({sizes[i]} examples)" for i in reached[:SHOWN].tolist())
    more = f" and {len(reached) - SHOWN} more" if len(reached) > SHOWN else ""
    raise ModelError(
        f"the model cannot train on a batch of one example: {problem}. With federation.batch_size {workload.batch_size}"
        f" the last batch of an epoch has one example for client {shown}{more}. "
        f"{_remedy(own, workload)}, or use a model whose examples do not depend on each other: "
        "GroupNorm or LayerNorm instead of BatchNorm"
    )


def _reach_single_example(sizes: npt.NDArray[np.int64], workload: Workload) -> npt.NDArray[np.bool_]:
    """Which clients reach the last batch of an epoch, and have a single example in it."""
    per_epoch = -(-sizes // workload.batch_size)
    last = sizes - (per_epoch - 1) * workload.batch_size
    reached: npt.NDArray[np.bool_] = (sizes > 0) & (last == 1) & (workload.steps(sizes) >= per_epoch)
    return reached if workload.batch_size > 1 else sizes > 0


def _remedy(sizes: npt.NDArray[np.int64], workload: Workload) -> str:
    """What to change in the settings: the nearest smaller and larger batch sizes that leave no such batch."""
    if (sizes == 1).any():
        return "No batch size helps, since a client has one example in all: leave such clients out"
    fit = [
        size
        for size in range(2, int(sizes.max()) + 1)
        if not _reach_single_example(sizes, replace(workload, batch_size=size)).any()
    ]
    below = [size for size in fit if size < workload.batch_size][-1:]
    above = [size for size in fit if size > workload.batch_size][:1]
    return f"Set federation.batch_size to {' or '.join(map(str, below + above))}"


def _problem_with_one_example(model: nn.Module, x: Tensor) -> str | None:
    """Why a training forward pass on one example fails, or gives something else than on two; None if it does not."""
    trial = fresh(model)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), global_generators(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deviations over one example, which the result shows
        try:
            with exits_as_errors():
                two, one = trial(x[:2]), trial(x[:1])
        except Exception as error:  # noqa: BLE001 - whatever a user's model raises
            return f"{_raised_in(trial, error.__traceback__)}{type(error).__name__}: {first_line(error)}"
    if list(one.shape) != [1, *two.shape[1:]]:
        return f"its outputs for one example have the shape {list(one.shape)}, not {[1, *two.shape[1:]]}"
    if torch.isfinite(two).all() and not torch.isfinite(one).all():
        return "its outputs for one example are not finite"
    return None


def _raised_in(model: nn.Module, trace: TracebackType | None) -> str:
    """The innermost module in whose forward pass an error was raised, for a message."""
    names, found = {id(module): name for name, module in model.named_modules()}, ""
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if names.get(id(module)):
            found = f"module {names[id(module)]} ({type(module).__name__}) raises "
        trace = trace.tb_next
    return found
