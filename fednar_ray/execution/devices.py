"""What a process that trains runs on: its device, and its memory."""

import ctypes
import sys
from collections.abc import Sequence

from fednar_ray.core.errors import DeviceError


def choose_device(assigned: Sequence[str], cuda_devices: int) -> str:
    """The torch device for the accelerators that Ray assigned, of which torch sees ``cuda_devices``.

    Without an assignment the CPU, even where a GPU exists: it belongs to somebody else.  Ray shows an actor
    only its own GPUs, so an assigned one is ``cuda:0``.  Raises DeviceError for a GPU that torch cannot use.
    """
    if not assigned:
        return "cpu"
    if cuda_devices < 1:
        raise DeviceError(
            f"Ray assigned GPU {', '.join(assigned)}, and this torch sees no CUDA device; "
            "install a CUDA build of torch on that node, or set execution.gpus_per_actor=0"
        )
    return "cuda:0"


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Let this process reuse the memory that it frees, where its C library can (glibc's mallopt).

    By default glibc gives large blocks back at once and asks the kernel for fresh, zeroed pages at the next
    tensor: on vectors of tens of megabytes that doubles the time of a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 64 * 2**20)
