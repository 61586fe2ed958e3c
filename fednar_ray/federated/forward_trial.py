"""Forward passes on two examples, before anything is started: what a model changes, draws from and depends on."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fednar_ray.core.errors import ModelError, first_line
from fednar_ray.core.exits import exits_as_errors
from fednar_ray.core.module_state import GivenState, called, drawn, own_copy
from fednar_ray.core.random import global_generators, global_states
from fednar_ray.federated.outside_influence import outside_influence
from fednar_ray.federated.outside_state import changed_places, outside_change, outside_state

TRIAL_SEED = 0x0FED9A3
"""Torch's seed of every trial, unlikely to be one that a model sets itself."""

OUTSIDE = (
    "which lies outside of the module: no client could start with it as given; keep it in an attribute of the module, "
    "which starts as given for each client and round, or in a buffer, which is averaged over clients"
)
UNREPEATABLE = (
    "gives other outputs for the same input, parameters, attributes and seeds: its forward depends on something else, "
    "such as a global variable, the clock, or a generator that it creates without a seed; keep state in attributes or "
    "buffers, and draw from torch, numpy.random or random"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialForward:
    """One forward pass in training mode."""

    module: nn.Module  # the copy of the model that it ran on
    outputs: Tensor
    moved_torch: bool  # it drew from torch's global generator
    python_state: str | None  # what clients must train one by one for: Python state or randomness, in words


def fresh(model: nn.Module) -> nn.Module:
    """A copy of the model on the CPU, in training mode."""
    return own_copy(model).cpu().train()


def forward(module: nn.Module, x: Tensor, counter: AbstractContextManager[Any] | None = None) -> TrialForward:
    """Call ``module``, and look at its attributes and the global generators before and after.

    ``counter`` is entered for the call alone.
    Python's, NumPy's and torch's generators are put back. Raises ModelError where the module fails.
    """
    given, outside = GivenState(module), outside_state(module)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), global_generators():
        torch.default_generator.manual_seed(TRIAL_SEED)
        before, of_torch = global_states(), torch.get_rng_state()
        try:
            with exits_as_errors(), counter or nullcontext():
                outputs = module(x)
        except Exception as error:
            text = f"the model fails on a batch of shape {list(x.shape)}: {first_line(error)}"
            raise ModelError(text + _hint_of_types(x)) from error
        found = given.change() or drawn(before, global_states())
        if found is None and torch.initial_seed() != TRIAL_SEED:
            found = "forward seeds torch's random numbers"
        moved = not torch.equal(of_torch, torch.get_rng_state())
    after = outside_state(module)
    if (elsewhere := outside_change(outside, after)) is not None:
        places = changed_places(module, outside, after)
        if outside_influence(places, lambda: _repeated(module, x)):
            raise ModelError(f"forward changes {elsewhere}, {OUTSIDE}")
    return TrialForward(module=module, outputs=outputs, moved_torch=moved, python_state=found)


def _repeated(module: nn.Module, x: Tensor) -> Tensor:
    """The outputs of a copy of ``module``, whose random draws are the same each time."""
    copy = own_copy(module)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), global_generators(), exits_as_errors():
        torch.default_generator.manual_seed(TRIAL_SEED)
        outputs: Tensor = copy(x)
    return outputs


def _hint_of_types(x: Tensor) -> str:
    if x.is_floating_point():
        return ""
    kind = str(x.dtype).removeprefix("torch.")
    return f" (the inputs are {kind} and reach the model as such; give float32 inputs if it computes with them)"


def check_repeatable(first: TrialForward, again: nn.Module, x: Tensor) -> TrialForward:
    """A second pass, on another copy of the model with the same input, seeds and state.

    Raises ModelError where its outputs are others: then nothing could make a run the same twice.
    """
    _check_parts(first.module, again)
    second = forward(again, x)
    same = first.outputs.shape == second.outputs.shape and torch.allclose(
        first.outputs, second.outputs, rtol=1e-3, atol=1e-5, equal_nan=True
    )
    if not same:
        raise ModelError(f"{called('', again)} {UNREPEATABLE}")
    return second


def _check_parts(ran: nn.Module, given: nn.Module) -> None:
    """Forward may not write frozen parameters, which no client sends, nor add buffers."""
    for (name, module), (_, other) in zip(ran.named_modules(), given.named_modules(), strict=False):
        here, there = dict(module.named_buffers(recurse=False)), dict(other.named_buffers(recurse=False))
        if changed := ", ".join(sorted(here.keys() ^ there.keys())):
            raise ModelError(
                f"{called(name, module)} gets or loses a buffer in forward ({changed}); register it with its final "
                "shape in __init__"
            )
    for (name, parameter), (_, other) in zip(ran.named_parameters(), given.named_parameters(), strict=False):
        if not parameter.requires_grad and not _equal(parameter, other):
            raise ModelError(
                f"forward changes the frozen parameter '{name}', which no client sends; keep it in a buffer "
                "(register_buffer), which is averaged over clients"
            )


def changed_parameter(ran: nn.Module, given: nn.Module) -> str | None:
    """A trainable parameter that forward itself writes to, in words."""
    for (name, parameter), (_, other) in zip(ran.named_parameters(), given.named_parameters(), strict=False):
        if not _equal(parameter, other):
            return f"forward changes the parameter '{name}'"
    return None


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
