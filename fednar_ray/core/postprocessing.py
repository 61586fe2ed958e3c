"""Turns a network's outputs into numbers in the label's unit, as the last part of the saved model.

Only regressions whose labels are scaled for training have this part. It is called ``postprocessing`` and follows the
two parts of ``core.preprocessing``.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fednar_ray.core.preprocessing import PREPROCESSING

POSTPROCESSING = "postprocessing"

TargetScale = tuple[float, float]
"""Mean and scale of a regression's labels. The network's output for a label y is (y − mean)/scale."""


def scale_targets(y: Tensor, target_scale: TargetScale, dtype: torch.dtype) -> Tensor:
    """Returns the labels y as the network is trained to output them, of type ``dtype``."""
    mean, scale = target_scale
    return ((y.to(torch.float64) - mean) / scale).to(dtype)


def unscale_outputs(outputs: Tensor, mean: float | Tensor, scale: float | Tensor) -> Tensor:
    """Returns the network's outputs in the label's unit, computed in float64 and rounded to the type of ``outputs``."""
    return (outputs.to(torch.float64) * scale + mean).to(outputs.dtype)


class TargetOutputs(nn.Module):
    """The last part of a saved model: the network's outputs [n, 1] in the label's unit."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, outputs: Tensor) -> Tensor:
        """Maps the network's outputs [n, 1] to numbers of the same shape."""
        return unscale_outputs(outputs, self.mean, self.scale)


def append_postprocessing(model: nn.Module, target_scale: TargetScale | None) -> nn.Module:
    """Appends the postprocessing to a model that starts with its preprocessing. None returns the model itself."""
    if target_scale is None:
        return model
    return _append(model, *(torch.tensor(value, dtype=torch.float64) for value in target_scale))


def split_postprocessing(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits the state dict of a saved model into that of its postprocessing, which may be empty, and the rest."""
    names = {f"{POSTPROCESSING}.{name}" for name in ("mean", "scale")}
    is_saved_model = names <= set(state) and any(key.startswith(f"{PREPROCESSING}.") for key in state)
    if not is_saved_model:
        return {}, dict(state)
    own = {name.partition(".")[2]: state[name] for name in names}
    return own, {key: value for key, value in state.items() if key not in names}


def append_saved_postprocessing(state: Mapping[str, Tensor], model: nn.Module) -> nn.Module:
    """Appends the postprocessing of a saved model; ``state`` is from ``split_postprocessing``, and may be empty."""
    return _append(model, **state) if state else model


def _append(model: nn.Module, mean: Tensor, scale: Tensor) -> nn.Module:
    parts = OrderedDict(model.named_children())
    assert PREPROCESSING in parts, "labels are scaled only if inputs are preprocessed"
    return nn.Sequential(parts | {POSTPROCESSING: TargetOutputs(mean, scale)}).train(model.training)
