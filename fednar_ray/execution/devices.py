"""Chooses the device of a training process."""

from collections.abc import Sequence

import torch

from fednar_ray.config.execution import Precision
from fednar_ray.core.errors import DeviceError

AMPERE = (8, 0)
"""The compute capability of the first GPUs that compute in TF32 and bfloat16."""


def choose_device(assigned: Sequence[str], cuda_devices: int) -> str:
    """Returns the torch device of a process.

    Without an assigned GPU this is the CPU, even where a GPU exists, because that GPU belongs to another process. Ray
    shows an actor only its own GPUs, so an assigned GPU is ``cuda:0``.

    Args:
        assigned: The ids of the GPUs that Ray assigned.
        cuda_devices: How many CUDA devices torch sees.

    Raises:
        DeviceError: A GPU is assigned, and torch sees none.
    """
    if not assigned:
        return "cpu"
    if cuda_devices < 1:
        raise DeviceError(
            f"Ray assigned GPU {', '.join(assigned)}, but torch sees no CUDA device; "
            "install a CUDA build of torch on that node, or set execution.gpus_per_actor=0"
        )
    return "cuda:0"


def check_device(device: torch.device, precision: Precision) -> None:
    """Checks that a process can train in a precision on its device; see ``check_precision``."""
    if device.type == "cuda":
        check_precision(precision, torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device))


def check_precision(precision: Precision, capability: tuple[int, int], name: str) -> None:
    """Checks that a GPU computes in a precision. By itself, torch would compute in float32 instead, or slowly.

    Args:
        precision: The run's ``execution.precision``.
        capability: The compute capability of the GPU.
        name: Its name.

    Raises:
        DeviceError: It is older than the first GPUs with TF32 and bfloat16.
    """
    if precision != "float32" and capability < AMPERE:
        raise DeviceError(
            f"execution.precision: {precision} needs a GPU of compute capability 8.0 or newer; {name} has "
            f"{capability[0]}.{capability[1]}; use float32"
        )
