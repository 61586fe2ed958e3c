"""Keeps the memory that arrays have freed, for the next arrays of a process."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h


def keep_freed_memory() -> None:
    """Lets this process reuse the memory that it frees, if its C library can (``mallopt`` of glibc).

    By default glibc returns megabytes to the kernel, and asks for fresh, zeroed pages at the next tensor. That doubles
    the time of a step, for vectors of tens of megabytes as for matrices of two.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 64 * 2**20)
