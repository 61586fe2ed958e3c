"""What a run does to raw inputs before its network sees them, as a part of the model that it saves.

A saved model is an ``nn.Sequential`` of two named parts: ``preprocessing``, which takes inputs as the data hold them,
and ``model``, the trained network. Its state dict holds the numbers of both, below these two names.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

PREPROCESSING, NETWORK = "preprocessing", "model"

Floats = npt.NDArray[np.float64]


class Preprocessing(Protocol):
    """The numbers of a preprocessing step, which travel to whoever holds data."""

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of the input columns, in order; None where inputs are not rows of named columns."""

    def build_module(self) -> nn.Module:
        """The step as a module, from raw inputs [n, …] to those of the network."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TablePreprocessing:
    """Imputes and scales the rows of tables, column by column.

    All numbers follow from counts, means and sums of squares of the clients' training examples. A column that is left
    as it is has mean 0 and scale 1.
    """

    columns: tuple[str, ...] | None
    fill: Floats  # [f…] what stands in for a missing value; NaN: it stays missing
    mean: Floats  # [f…]
    scale: Floats  # [f…]

    def apply(self, x: Floats) -> Floats:
        """Rows [n, f…] in which NaN is missing, imputed and scaled."""
        scaled: Floats = (np.where(np.isnan(x), self.fill, x) - self.mean) / self.scale
        return scaled

    def build_module(self) -> nn.Module:
        """The same step as a module; it ends in the bits that training and evaluation see."""
        return TableInputs(torch.tensor(self.fill), torch.tensor(self.mean), torch.tensor(self.scale))

    def build_example(self) -> Floats:
        """Two raw rows [2, f…] that are nobody's: the imputed or mean values."""
        return np.stack([np.where(np.isnan(self.fill), self.mean, self.fill)] * 2)


class TableInputs(nn.Module):
    """Raw rows [n, f…] (NaN is missing) to float32: ``(x − mean) / scale``, with ``fill`` for what is missing.

    It computes in float64, so that large numbers with small differences, such as times, keep them.
    """

    fill: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, fill: Tensor, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        for name, values in (("fill", fill), ("mean", mean), ("scale", scale)):
            self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        """[n, f…] of any number type → float32."""
        rows = x.to(torch.float64)
        filled = torch.where(rows.isnan(), self.fill, rows)
        return ((filled - self.mean) / self.scale).to(torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePreprocessing:
    """Scales uint8 images channel by channel; ``mean`` and ``std`` are of values in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def columns(self) -> None:
        """Images have none."""
        return

    def build_module(self) -> nn.Module:
        """The step as a module, in the operations of ``Transform.normalized``."""
        return ImageInputs(*(255 * torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std)))


class ImageInputs(nn.Module):
    """uint8 images [n, channels, height, width] to float32: ``(x − mean) / std``, with both on the scale 0..255."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, height, width] → float32."""
        return (x.to(torch.float32) - self.mean) / self.std


def join_preprocessing(preprocessing: Preprocessing | None, network: nn.Module) -> nn.Module:
    """The network behind its preprocessing, which takes raw inputs; without preprocessing, the network itself."""
    return network if preprocessing is None else _join(preprocessing.build_module(), network)


def _join(module: nn.Module, network: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict({PREPROCESSING: module, NETWORK: network})).train(network.training)


def split_state(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state dict of a saved model as those of its preprocessing, which may be empty, and of its network."""
    parts: dict[str, dict[str, Any]] = {PREPROCESSING: {}, NETWORK: {}}
    for key, value in state.items():
        part, _, name = key.partition(".")
        if part not in parts:
            return {}, dict(state)
        parts[part][name] = value
    is_saved_model = set(parts[PREPROCESSING]) in ({"fill", "mean", "scale"}, {"mean", "std"})
    return (parts[PREPROCESSING], parts[NETWORK]) if is_saved_model else ({}, dict(state))


def join_saved_preprocessing(state: Mapping[str, Tensor], network: nn.Module) -> nn.Module:
    """``network`` behind the preprocessing whose numbers ``state`` holds, as ``split_state`` returns them."""
    if not state:
        return network
    return _join(TableInputs(**state) if "fill" in state else ImageInputs(**state), network)
