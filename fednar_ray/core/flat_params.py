"""A module's trainable parameters as one flat float32 vector, in ``module.parameters()`` order.

Frozen parameters are in neither the vector nor any norm. Buffers that training changes (running statistics) form a
separate float64 vector, which represents integers up to 2^53 exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fednar_ray.core.errors import ModelError

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
        """Returns the layout of ``module``.

        Raises:
            ModelError: The module has no trainable parameters, or one of them is not float32.
        """
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
        """Returns views of ``vector`` [d] by parameter name."""
        parts = torch.split(vector, list(self.sizes))
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}


def trainable(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yields the trainable parameters, in ``parameters()`` order."""
    return (p for p in module.parameters() if p.requires_grad)


def flatten(module: nn.Module) -> FloatVector:
    """Returns the trainable parameters as one new vector [d]."""
    with torch.no_grad():
        return torch.cat([p.reshape(-1) for p in trainable(module)]).cpu().numpy()


def load_parameters(module: nn.Module, vector: FloatVector) -> None:
    """Copies ``vector`` [d] into the trainable parameters."""
    parts = torch.split(torch.tensor(vector, dtype=torch.float32), [p.numel() for p in trainable(module)])
    with torch.no_grad():
        for parameter, part in zip(trainable(module), parts, strict=True):
            parameter.copy_(part.view_as(parameter))


def flatten_buffers(module: nn.Module, names: Sequence[str] | None = None) -> BufferVector:
    """Returns the buffers as one new vector [b], which is empty if there are none.

    Args:
        module: Whose buffers are taken.
        names: Which buffers, in this order. None takes all of them.

    Returns:
        The values one buffer after the other. A complex number takes two places.
    """
    parts = [_view_as_reals(b.detach()).reshape(-1).to("cpu", torch.float64) for b in _list_buffers(module, names)]
    return torch.cat(parts).numpy() if parts else np.empty(0)


def load_buffers(module: nn.Module, vector: BufferVector, names: Sequence[str] | None = None) -> None:
    """Copies ``vector`` [b] into the buffers; those of integers and bools are rounded to nearest.

    Args:
        module: Whose buffers are overwritten.
        vector: What ``flatten_buffers`` returns for the same ``names``, or an average of such vectors.
        names: Which buffers, in this order. None takes all of them.
    """
    buffers = _list_buffers(module, names)
    parts = torch.split(torch.tensor(vector), [_count_values(b) for b in buffers]) if buffers else ()
    with torch.no_grad():
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(_convert_values(buffer, part).view_as(buffer))


def _list_buffers(module: nn.Module, names: Sequence[str] | None) -> list[Tensor]:
    if names is None:
        return list(module.buffers())
    buffers = dict(module.named_buffers()) if names else {}
    return [buffers[name] for name in names]


def _view_as_reals(buffer: Tensor) -> Tensor:
    """Returns complex numbers as pairs of reals, and other tensors unchanged."""
    return torch.view_as_real(buffer.resolve_conj()) if buffer.is_complex() else buffer


def _count_values(buffer: Tensor) -> int:
    """Returns how many numbers of a vector the buffer takes."""
    return buffer.numel() * (2 if buffer.is_complex() else 1)


def _convert_values(buffer: Tensor, part: Tensor) -> Tensor:
    """Returns the buffer's part of a vector as values of its kind, in float64 or complex128."""
    if buffer.is_complex():
        return torch.view_as_complex(part.view(-1, 2))
    return part if buffer.is_floating_point() else part.round()
