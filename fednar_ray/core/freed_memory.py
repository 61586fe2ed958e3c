"""Keeps the memory that arrays have freed, for the next arrays of a process."""

import ctypes
import sys
from contextlib import suppress
from functools import cache

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""The numbers of two settings in glibc's ``malloc.h``."""
LARGEST = 2**25
"""Arrays up to this size are allocated where freed memory is kept. It is the most that glibc accepts."""
KEPT = 2**27
"""How much freed memory is kept at most."""


@cache
def keep_freed_memory() -> None:
    """Lets glibc keep up to ``KEPT`` bytes of freed memory. On other systems nothing changes.

    By default it returns freed megabytes to the operating system and asks for them again in the next local step. Then
    each page is cleared, which takes longer than the step's work on a matrix of 1.5 MB.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, LARGEST)
        library.mallopt(TRIM_THRESHOLD, KEPT)
