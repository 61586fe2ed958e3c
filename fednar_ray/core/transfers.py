"""Arrays to a device: on the CPU in place or into the trainer's own memory, to a GPU through pinned memory."""

import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.core.flat_params import FloatVector


def as_tensor(array: npt.NDArray[np.generic]) -> Tensor:
    """A tensor over the same memory. Arrays from Ray's object store are read-only, and nobody writes to this one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def on_device(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """The array on ``device``: a view of it on the CPU, else a copy that does not hold up the caller."""
    tensor = as_tensor(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class StagingBuffer:
    """Where vectors [d] from elsewhere land, one after the other: the same memory every time.

    What comes from the object store is always copied: sums over memory of another alignment give other bits.
    On a GPU the copy goes through a pinned vector; whoever fills a landing again has read results in between,
    so the transfer before is over.
    """

    def __init__(self, dimension: int, device: torch.device) -> None:
        self._host = torch.empty(dimension, pin_memory=device.type == "cuda")
        self._tensor = self._host if device.type == "cpu" else torch.empty(dimension, device=device)

    def fill(self, vector: FloatVector) -> Tensor:
        """The vector on the device; valid until the next ``fill``."""
        self._host.copy_(as_tensor(vector))
        if self._tensor is not self._host:
            self._tensor.copy_(self._host, non_blocking=True)
        return self._tensor
