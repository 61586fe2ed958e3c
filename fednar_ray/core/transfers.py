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


class StagingBuffer:
    """Memory on a device into which vectors [d] are copied, one after the other.

    Vectors from the object store are always copied, because sums over memory of another alignment give other bits. On a
    GPU the copy goes through a pinned vector. Between two calls of ``fill`` the caller must read results from the
    device, so that the earlier transfer has finished.
    """

    def __init__(self, dimension: int, device: torch.device) -> None:
        self._host = torch.empty(dimension, pin_memory=device.type == "cuda")
        self._tensor = self._host if device.type == "cpu" else torch.empty(dimension, device=device)

    def fill(self, vector: FloatVector) -> Tensor:
        """Returns the vector on the device, valid until the next ``fill``."""
        self._host.copy_(as_tensor(vector))
        if self._tensor is not self._host:
            self._tensor.copy_(self._host, non_blocking=True)
        return self._tensor
