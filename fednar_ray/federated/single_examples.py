"""Checks before round 0 that no client trains on a batch of one example if the model (BatchNorm) cannot."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fednar_ray.core.client_names import ClientNames, name_client
from fednar_ray.core.errors import ModelError, first_line
from fednar_ray.core.exits import exits_as_errors
from fednar_ray.core.random import seed_global_generators
from fednar_ray.core.schedules import Workload
from fednar_ray.federated.forward_trial import copy_for_trial

SHOWN = 5  # clients in an error


def check_single_example_batches(
    model: nn.Module,
    x: Tensor,
    sizes: npt.NDArray[np.int64],
    client_ids: Sequence[int],
    workload: Workload,
    names: ClientNames = (),
) -> None:
    """Checks that no client reaches a batch of one example on which the model cannot train.

    Args:
        model: The model. It is not changed.
        x: A batch of two inputs.
        sizes: n_i of every client, [N].
        client_ids: The clients that may be sampled.
        workload: The batch size and the local steps or epochs.
        names: How the message calls the clients.

    Raises:
        ModelError: The message names the module, the clients, and batch sizes that leave no such batch.
    """
    own = sizes[list(client_ids)]
    reached = np.asarray(client_ids)[_find_clients_with_single_example(own, workload)]
    problem = _find_problem(model, x) if len(reached) else None
    if problem is None:
        return
    shown = ", ".join(f"{name_client(i, names)} ({sizes[i]} examples)" for i in reached[:SHOWN].tolist())
    more = f" and {len(reached) - SHOWN} more" if len(reached) > SHOWN else ""
    raise ModelError(
        f"the model cannot train on a batch of one example: {problem}. With federation.batch_size {workload.batch_size}"
        f" the last batch of an epoch has one example for client {shown}{more}. "
        f"{_suggest_batch_sizes(own, workload)}, or use a model whose examples do not depend on each other: "
        "GroupNorm or LayerNorm instead of BatchNorm"
    )


def _find_clients_with_single_example(sizes: npt.NDArray[np.int64], workload: Workload) -> npt.NDArray[np.bool_]:
    """Returns which clients reach the last batch of an epoch and have a single example in it, [C]."""
    per_epoch = -(-sizes // workload.batch_size)
    last = sizes - (per_epoch - 1) * workload.batch_size
    reached: npt.NDArray[np.bool_] = (sizes > 0) & (last == 1) & (workload.steps(sizes) >= per_epoch)
    return reached if workload.batch_size > 1 else sizes > 0


def _suggest_batch_sizes(sizes: npt.NDArray[np.int64], workload: Workload) -> str:
    """Suggests the nearest smaller and larger batch sizes without a batch of one example."""
    if (sizes == 1).any():
        return "No batch size helps, since a client has a single example: leave out such clients"
    fit = [
        size
        for size in range(2, int(sizes.max()) + 1)
        if not _find_clients_with_single_example(sizes, replace(workload, batch_size=size)).any()
    ]
    below = [size for size in fit if size < workload.batch_size][-1:]
    above = [size for size in fit if size > workload.batch_size][:1]
    return f"Set federation.batch_size to {' or '.join(map(str, below + above))}"


def _find_problem(model: nn.Module, x: Tensor) -> str | None:
    """Returns why a forward pass in training mode fails on one example or gives invalid outputs; None if it works."""
    trial = copy_for_trial(model)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), seed_global_generators(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # standard deviations of one example; the outputs are checked instead
        try:
            with exits_as_errors():
                two, one = trial(x[:2]), trial(x[:1])
        except Exception as error:  # noqa: BLE001 - a user's model may raise anything
            return f"{_find_raising_module(trial, error.__traceback__)}{type(error).__name__}: {first_line(error)}"
    if list(one.shape) != [1, *two.shape[1:]]:
        return f"its outputs for one example have the shape {list(one.shape)}, not {[1, *two.shape[1:]]}"
    if torch.isfinite(two).all() and not torch.isfinite(one).all():
        return "its outputs for one example are not finite"
    return None


def _find_raising_module(model: nn.Module, trace: TracebackType | None) -> str:
    """Names the innermost module whose forward pass raised an error, for a message."""
    names, found = {id(module): name for name, module in model.named_modules()}, ""
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if names.get(id(module)):
            found = f"module {names[id(module)]} ({type(module).__name__}) raises "
        trace = trace.tb_next
    return found
