"""Runs forward passes on two examples before training, to find out what a model changes, draws and depends on."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fednar_ray.core.buffers import have_same_bits
from fednar_ray.core.errors import ModelError, first_line
from fednar_ray.core.exits import exits_as_errors
from fednar_ray.core.module_state import GivenState, copy_model, describe_draws, describe_module
from fednar_ray.core.random import get_global_states, seed_global_generators
from fednar_ray.federated.outside_influence import has_outside_influence
from fednar_ray.federated.outside_state import find_changed_places, find_outside_change, read_outside_state

TRIAL_SEED = 0x0FED9A3
"""The seed of torch in every trial. A model is unlikely to set this one itself."""

OUTSIDE = (
    "which lies outside of the module, so clients cannot start from its given value; keep it in an attribute of the "
    "module, which starts as given for each client and round, or in a buffer, which is averaged over clients"
)
UNREPEATABLE = (
    "gives other outputs for the same input, parameters, attributes and seeds: its forward depends on something else, "
    "such as a global variable, the clock, or a generator that it creates without a seed; keep state in attributes or "
    "buffers, and draw from torch, numpy.random or random"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialForward:
    """One forward pass in training mode.

    Attributes:
        module: The copy of the model that it ran on.
        outputs: What it returned.
        moved_torch: Whether it drew from torch's global generator.
        python_state: Which Python state or randomness it uses, for a message; None if it uses none. Clients of a model
            with such state train one by one.
    """

    module: nn.Module
    outputs: Tensor
    moved_torch: bool
    python_state: str | None


def copy_for_trial(model: nn.Module) -> nn.Module:
    """Returns a copy of the model on the CPU, in training mode."""
    return copy_model(model).cpu().train()


def forward(module: nn.Module, x: Tensor, counter: AbstractContextManager[Any] | None = None) -> TrialForward:
    """Calls ``module``, and compares its attributes and the global generators before and after.

    Args:
        module: The copy to run, in training mode.
        x: The batch, [2, …].
        counter: A context that is entered for the call alone.

    Returns:
        The outputs, and what the pass changed. The states of Python's, NumPy's and torch's generators are restored.

    Raises:
        ModelError: The module fails, or its outputs depend on state outside of the module that it changes.
    """
    given, outside = GivenState(module), read_outside_state(module)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), seed_global_generators():
        torch.default_generator.manual_seed(TRIAL_SEED)
        before, of_torch = get_global_states(), torch.get_rng_state()
        try:
            with exits_as_errors(), counter or nullcontext():
                outputs = module(x)
        except Exception as error:
            text = f"the model fails on a batch of shape {list(x.shape)}: {first_line(error)}"
            raise ModelError(text + _hint_at_types(x)) from error
        found = given.find_change() or describe_draws(before, get_global_states())
        if found is None and torch.initial_seed() != TRIAL_SEED:
            found = "forward seeds torch's random numbers"
        moved = not torch.equal(of_torch, torch.get_rng_state())
    after = read_outside_state(module)
    if (elsewhere := find_outside_change(outside, after)) is not None:
        places = find_changed_places(module, outside, after)
        if has_outside_influence(places, lambda: _repeat(module, x)):
            raise ModelError(f"forward changes {elsewhere}, {OUTSIDE}")
    return TrialForward(module=module, outputs=outputs, moved_torch=moved, python_state=found)


def _repeat(module: nn.Module, x: Tensor) -> Tensor:
    """Returns the outputs of a copy of ``module``. Its random draws are the same each time."""
    copy = copy_model(module)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), seed_global_generators(), exits_as_errors():
        torch.default_generator.manual_seed(TRIAL_SEED)
        outputs: Tensor = copy(x)
    return outputs


def _hint_at_types(x: Tensor) -> str:
    if x.is_floating_point():
        return ""
    kind = str(x.dtype).removeprefix("torch.")
    return f" (the inputs are {kind} and reach the model as such; give float32 inputs if it computes with them)"


def check_repeatable(first: TrialForward, again: nn.Module, x: Tensor) -> TrialForward:
    """Runs a second pass on another copy of the model with the same input, seeds and state.

    Args:
        first: The first pass.
        again: A fresh copy of the model.
        x: The same batch.

    Raises:
        ModelError: The outputs differ, so no run could be repeated; or forward writes a frozen parameter, or adds or
            removes a buffer.
    """
    _check_parts(first.module, again)
    second = forward(again, x)
    same = first.outputs.shape == second.outputs.shape and torch.allclose(
        first.outputs, second.outputs, rtol=1e-3, atol=1e-5, equal_nan=True
    )
    if not same:
        raise ModelError(f"{describe_module('', again)} {UNREPEATABLE}")
    return second


def _check_parts(ran: nn.Module, given: nn.Module) -> None:
    """Checks that forward wrote no frozen parameter, which clients do not send, and added no buffer."""
    for (name, module), (_, other) in zip(ran.named_modules(), given.named_modules(), strict=False):
        here, there = dict(module.named_buffers(recurse=False)), dict(other.named_buffers(recurse=False))
        if changed := ", ".join(sorted(here.keys() ^ there.keys())):
            raise ModelError(
                f"{describe_module(name, module)} gets or loses a buffer in forward ({changed}); register it with its "
                "final shape in __init__"
            )
    for (name, parameter), (_, other) in zip(ran.named_parameters(), given.named_parameters(), strict=False):
        if not parameter.requires_grad and not have_same_bits(parameter, other):
            raise ModelError(
                f"forward changes the frozen parameter '{name}', which no client sends; keep it in a buffer "
                "(register_buffer), which is averaged over clients"
            )


def describe_changed_parameter(ran: nn.Module, given: nn.Module) -> str | None:
    """Returns which trainable parameter forward itself writes to, for a message; None if there is none."""
    for (name, parameter), (_, other) in zip(ran.named_parameters(), given.named_parameters(), strict=False):
        if not have_same_bits(parameter, other):
            return f"forward changes the parameter '{name}'"
    return None
