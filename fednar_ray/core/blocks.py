"""Works on large vectors by blocks of columns that stay in the cache meanwhile."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fednar_ray.core.flat_params import FloatVector

BLOCK = 1 << 16
"""How many numbers a block has."""
LARGE_BYTES = 2**20
"""From this size on, vectors are added in terms, client states are kept in a file, and freed memory is kept."""


def cut_columns(matrix: Tensor, *, whole: bool = False) -> Iterator[slice]:
    """Yields the blocks of columns in which [C, d] is worked on: one, if ``whole``, on a GPU, or if it is small."""
    rows, dimension = matrix.shape
    whole = whole or matrix.device.type != "cpu" or matrix.numel() <= 4 * BLOCK
    width = dimension if whole else max(1, BLOCK // rows)
    return (slice(start, min(start + width, dimension)) for start in range(0, dimension, max(1, width)))


class Columns:
    """A vector or matrix [..., d] in the driver's form, put together from blocks of columns.

    Args:
        dimension: d.
        before: A vector to which the blocks are added, in place. None: they are the result.
    """

    def __init__(self, dimension: int, before: FloatVector | None = None) -> None:
        self._dimension, self._adds = dimension, before is not None
        self._values = None if before is None else torch.from_numpy(before)

    def put(self, block: slice, part: Tensor) -> None:
        """Puts or adds a block in its place."""
        part = part.cpu()
        if self._values is not None and self._adds:
            self._values[..., block].add_(part)
        elif part.shape[-1] == self._dimension:
            self._values = part
        else:
            if self._values is None:
                self._values = part.new_empty(*part.shape[:-1], self._dimension)
            self._values[..., block] = part

    def get(self) -> FloatVector:
        """Returns what the blocks have made, [..., d]."""
        assert self._values is not None
        array: FloatVector = self._values.numpy()
        return array
