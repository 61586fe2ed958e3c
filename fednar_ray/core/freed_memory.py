"""Keeps the memory that arrays have freed, for the next arrays of a process."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # from glibc's malloc.h
LARGEST = 2**25  # bytes of an array; glibc accepts no larger M_MMAP_THRESHOLD


def keep_freed_memory(most: int | None = None, largest: int = LARGEST) -> None:
    """Lets this process reuse the memory that it frees, if its C library can (``mallopt`` of glibc).

    By default glibc returns megabytes to the kernel, and asks for fresh, zeroed pages at the next tensor. That doubles
    the time of a step for vectors of tens of megabytes, and takes a third of it for those of two.

    Args:
        most: How many bytes are kept at the end of the heap, in a process that does not only train. None: all are
            kept. It holds until the process ends, for all of its arrays.
        largest: The size of the largest arrays whose memory is kept, if ``most`` is given.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    if most is None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 64 * 2**20)
    else:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, min(most, 2**31 - 1))
        if largest > LARGEST:
            mallopt(M_MMAP_MAX, 0)  # arrays of any size then come from memory that is kept
