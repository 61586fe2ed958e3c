"""Vectors of integers modulo 2^32, in which masks are added and cancel."""

import numpy as np
import numpy.typing as npt

WordVector = npt.NDArray[np.uint32]
"""A vector in Z_2^32. Sums wrap around. A signed integer is stored in two's complement."""
