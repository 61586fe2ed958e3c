"""Moves arrays to a device: on the CPU without a copy, or into the trainer's memory; to a GPU through pinned memory."""

import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.core.flat_params import FloatVector


def as_tensor(array: npt.NDArray[np.generic]) -> Tensor:
    """Returns a tensor over the same memory. It must not be written to: arrays in Ray's object store are read-only."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def on_device(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """Returns the array on ``device``: a view on the CPU, elsewhere a copy that does not block the caller."""
    tensor = as_tensor(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


ALIGNED_BYTES = 64
"""Where torch's own memory starts: at multiples of this. Sums over memory of another alignment give other bits."""


def is_aligned(vector: FloatVector) -> bool:
    """Returns whether a vector starts where a tensor of torch's would, as all large ones in Ray's object store do."""
    return vector.flags.c_contiguous and vector.ctypes.data % ALIGNED_BYTES == 0


class StagingBuffer:
    """Memory on a device into which vectors [d] are copied, one after the other.

    On a GPU the copy goes through a pinned vector. Between two calls of ``fill`` the caller must read results from the
    device, so that the earlier transfer has finished. The memory is taken at the first copy.
    """

    def __init__(self, dimension: int, device: torch.device) -> None:
        self._dimension, self._device = dimension, device
        self._memory: tuple[Tensor, Tensor] | None = None  # the host's vector and the device's; on the CPU, one

    def fill(self, vector: FloatVector) -> Tensor:
        """Returns the vector on the device, valid until the next ``fill``."""
        host, tensor = self._memory = self._memory or self._allocate()
        host.copy_(as_tensor(vector))
        if tensor is not host:
            tensor.copy_(host, non_blocking=True)
        return tensor

    def _allocate(self) -> tuple[Tensor, Tensor]:
        on_cpu = self._device.type == "cpu"
        host = torch.empty(self._dimension, pin_memory=self._device.type == "cuda")
        return host, host if on_cpu else torch.empty(self._dimension, device=self._device)
