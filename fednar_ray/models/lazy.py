"""Gives lazy layers, such as ``torch.nn.LazyLinear``, their shapes from a first batch."""

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fednar_ray.core.errors import ModelError, first_line
from fednar_ray.core.exits import exits_as_errors
from fednar_ray.core.random import Purpose, seed_global_generators, torch_seed


def initialize_lazy_layers(model: nn.Module, x: Tensor, seed: int) -> None:
    """Gives every lazy layer its shape and its first weights, in place. Other models are left unchanged.

    Args:
        model: The model, of which one forward pass runs in evaluation mode.
        x: A batch of inputs.
        seed: The experiment's seed, from which alone the weights follow.

    Raises:
        ModelError: The forward pass fails, or does not reach a lazy layer.
    """
    if not any(True for _ in _find_lazy_tensors(model)):
        return
    modes = [(module, module.training) for module in model.modules()]
    with torch.no_grad(), torch.random.fork_rng(devices=[]), seed_global_generators():
        torch.manual_seed(torch_seed(seed, Purpose.INITIALISATION))
        try:
            with exits_as_errors():
                model.eval()(x)
        except Exception as error:
            text = f"the model, which has lazy layers, fails on a batch of shape {list(x.shape)}: {first_line(error)}"
            raise ModelError(text) from error
    for module, mode in modes:
        module.training = mode
    unreached = ", ".join(_find_lazy_tensors(model))
    if unreached:
        raise ModelError(f"a forward pass does not reach the lazy layers of {unreached}; give these layers their sizes")


def _find_lazy_tensors(model: nn.Module) -> Iterator[str]:
    """Yields the names of parameters and buffers that have no shape yet."""
    return (name for name, t in chain(model.named_parameters(), model.named_buffers()) if is_lazy(t))
