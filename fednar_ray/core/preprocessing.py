"""Preprocesses raw inputs for the network, as a part of the saved model.

A saved model is an ``nn.Sequential`` of two named parts: ``preprocessing``, which takes raw inputs, and ``model``, the
trained network. Its state dict contains both, with these names as prefixes.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fednar_ray.core.fednar_table_schema import TableSchema

PREPROCESSING, NETWORK = "preprocessing", "model"

Floats = npt.NDArray[np.float64]


class Preprocessing(Protocol):
    """The numbers of a preprocessing step. They are sent to every process that holds examples."""

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of the input columns, in order; None if inputs are not rows with named columns."""

    def build_module(self) -> nn.Module:
        """Builds the step as a module from raw inputs [n, …] to the network's inputs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TablePreprocessing:
    """Imputes and scales the rows of tables, column by column.

    A category of the raw rows is the number of its level. Each level becomes one input of the network, 1 in the rows of
    this level and 0 in all others; a level is neither imputed nor scaled.

    All numbers are computed from counts, means and sums of squares of the clients' training examples. An input that is
    not scaled has mean 0 and scale 1.

    Attributes:
        schema: The columns of the raw rows; None if inputs are not rows with named columns.
        fill: Replaces missing values, [g…] for the g inputs of the network; NaN leaves them missing.
        mean: Subtracted, [g…].
        scale: Divides, [g…].
    """

    schema: TableSchema | None
    fill: Floats
    mean: Floats
    scale: Floats

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of the raw columns, in order."""
        return None if self.schema is None else self.schema.names

    def apply(self, x: Floats) -> Floats:
        """Returns the rows [n, f…] expanded, imputed and scaled, [n, g…]. NaN stands for a missing value."""
        expansion = self._build_expansion()
        values = x
        if expansion is not None:
            column, level = expansion
            x = x[:, column]
            values = np.where(np.isnan(level), x, x == level)
        scaled: Floats = (np.where(np.isnan(x), self.fill, values) - self.mean) / self.scale
        return scaled

    def expand_categories(self) -> "TablePreprocessing":
        """Returns the step with one input per level, from one whose numbers are by raw column, [f]."""
        expansion = self._build_expansion()
        if expansion is None:
            return self
        column, level = expansion
        number = np.isnan(level)
        imputed = np.where(np.isnan(self.fill[column]), np.nan, 0.0)
        return replace(
            self,
            fill=np.where(number, self.fill[column], imputed),
            mean=np.where(number, self.mean[column], 0.0),
            scale=np.where(number, self.scale[column], 1.0),
        )

    def _build_expansion(self) -> tuple[npt.NDArray[np.int64], Floats] | None:
        """Returns the raw column and the level of each input, NaN for numbers; None if there are no categories."""
        if self.schema is None or all(column.kind != "category" for column in self.schema.columns):
            return None
        levels = [range(len(c.levels)) if c.kind == "category" else (np.nan,) for c in self.schema.columns]
        return np.repeat(np.arange(len(levels)), [len(own) for own in levels]), np.concatenate(levels, dtype=np.float64)

    def build_module(self) -> nn.Module:
        """Builds the step as a module. Its outputs are bit for bit the inputs of training and evaluation."""
        expansion = self._build_expansion() or ()
        return TableInputs(*(torch.tensor(part) for part in (self.fill, self.mean, self.scale, *expansion)))

    def build_example(self) -> Floats:
        """Builds two raw example rows [2, f…] from the imputed or mean values, so that they reveal no one's data."""
        values = np.where(np.isnan(self.fill), self.mean, self.fill)
        if (expansion := self._build_expansion()) is not None:
            first = np.unique(expansion[0], return_index=True)[1]  # the first level of a category
            values = np.where(np.isnan(expansion[1]), values, 0.0)[first]
        return np.stack([values] * 2)


class TableInputs(nn.Module):
    """Turns raw rows [n, f…] into float32: ``(x − mean) / scale``, with ``fill`` for missing values (NaN).

    With ``column`` and ``level``, it first expands categories: input i is raw column ``column[i]``. Where
    ``level[i]`` is a number, the input is 1 if the raw value is this level and 0 otherwise.

    It computes in float64, so that small differences between large numbers, such as timestamps, are not lost.
    """

    fill: Tensor
    mean: Tensor
    scale: Tensor
    column: Tensor | None
    level: Tensor | None

    def __init__(
        self, fill: Tensor, mean: Tensor, scale: Tensor, column: Tensor | None = None, level: Tensor | None = None
    ) -> None:
        super().__init__()
        parts = {"fill": fill, "mean": mean, "scale": scale, "column": column, "level": level}
        for name, values in parts.items():
            self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        """Maps rows [n, f…] of any number type to float32 [n, g…]."""
        rows = values = x.to(torch.float64)
        if self.column is not None and self.level is not None:
            rows = rows[:, self.column]
            values = torch.where(self.level.isnan(), rows, (rows == self.level).to(torch.float64))
        filled = torch.where(rows.isnan(), self.fill, values)
        return ((filled - self.mean) / self.scale).to(torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePreprocessing:
    """Scales uint8 images channel by channel. ``mean`` and ``std`` refer to values in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def columns(self) -> None:
        """None, since images have no columns."""
        return

    def build_module(self) -> nn.Module:
        """Builds the step as a module with the same operations as ``Transform.normalized``."""
        return ImageInputs(*(255 * torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std)))


class ImageInputs(nn.Module):
    """Turns uint8 images [n, channels, height, width] into float32: ``(x − mean) / std``, both on the scale 0..255."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [n, channels, height, width] to float32 of the same shape."""
        return (x.to(torch.float32) - self.mean) / self.std


def join_preprocessing(preprocessing: Preprocessing | None, network: nn.Module) -> nn.Module:
    """Puts the preprocessing in front of the network, so that it takes raw inputs. None returns the network itself."""
    return network if preprocessing is None else _join(preprocessing.build_module(), network)


def _join(module: nn.Module, network: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict({PREPROCESSING: module, NETWORK: network})).train(network.training)


def split_state(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits the state dict of a saved model into those of its preprocessing, which may be empty, and its network."""
    parts: dict[str, dict[str, Any]] = {PREPROCESSING: {}, NETWORK: {}}
    for key, value in state.items():
        part, _, name = key.partition(".")
        if part not in parts:
            return {}, dict(state)
        parts[part][name] = value
    table = {"fill", "mean", "scale"}
    is_saved_model = set(parts[PREPROCESSING]) in (table, table | {"column", "level"}, {"mean", "std"})
    return (parts[PREPROCESSING], parts[NETWORK]) if is_saved_model else ({}, dict(state))


def join_saved_preprocessing(state: Mapping[str, Tensor], network: nn.Module) -> nn.Module:
    """Puts the preprocessing of a saved model in front of ``network``.

    Args:
        state: The state dict of the preprocessing, from ``split_state``. If it is empty, the network is returned.
        network: The network, [n, …] to [n, outputs].
    """
    if not state:
        return network
    return _join(TableInputs(**state) if "fill" in state else ImageInputs(**state), network)
