"""A module seen as one flat float32 vector of its trainable parameters, in ``module.parameters()`` order.

Frozen parameters are in neither the vector nor any norm. Buffers (running statistics) travel as a
flat float64 vector of their own, which holds integer counters exactly.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fednar_ray.errors import ModelError

FloatVector = npt.NDArray[np.float32]
BufferVector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ParameterLayout:
    """Where each trainable parameter lies in the flat vector [d]."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, module: nn.Module) -> "ParameterLayout":
        """The layout of ``module``. Raises ModelError without trainable parameters, or where one is not float32."""
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise ModelError("the model has no trainable parameters")
        for name, parameter in named:
            if parameter.dtype != torch.float32:
                raise ModelError(f"parameter {name} is {parameter.dtype}; train in float32 (module.float())")
        names, parameters = zip(*named, strict=True)
        return cls(names, tuple(p.shape for p in parameters), tuple(p.numel() for p in parameters))

    @property
    def dimension(self) -> int:
        """d, the number of trainable parameters."""
        return sum(self.sizes)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of ``vector`` [d] by parameter name."""
        parts = torch.split(vector, list(self.sizes))
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}


def trainable(module: nn.Module) -> Iterator[nn.Parameter]:
    """The trainable parameters, in ``parameters()`` order."""
    return (p for p in module.parameters() if p.requires_grad)


def flatten(module: nn.Module) -> FloatVector:
    """The trainable parameters as one fresh vector [d]."""
    with torch.no_grad():
        return torch.cat([p.reshape(-1) for p in trainable(module)]).cpu().numpy()


def load_parameters(module: nn.Module, vector: FloatVector) -> None:
    """Copy ``vector`` [d] into the trainable parameters."""
    parts = torch.split(torch.tensor(vector, dtype=torch.float32), [p.numel() for p in trainable(module)])
    with torch.no_grad():
        for parameter, part in zip(trainable(module), parts, strict=True):
            parameter.copy_(part.view_as(parameter))


def flatten_buffers(module: nn.Module) -> BufferVector:
    """Every buffer as one fresh vector [b]; empty where there is none."""
    parts = [b.detach().reshape(-1).to("cpu", torch.float64) for b in module.buffers()]
    return torch.cat(parts).numpy() if parts else np.empty(0)


def load_buffers(module: nn.Module, vector: BufferVector) -> None:
    """Copy ``vector`` [b] into the buffers; integer buffers are rounded to nearest."""
    buffers = list(module.buffers())
    parts = torch.split(torch.tensor(vector), [b.numel() for b in buffers]) if buffers else ()
    with torch.no_grad():
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_((part if buffer.is_floating_point() else part.round()).view_as(buffer))
