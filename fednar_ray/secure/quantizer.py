"""The quantizer: rounds an update to integers at random, without bias, so that sums of integers decode exactly."""

import numpy as np
import numpy.typing as npt

from fednar_ray.secure.words import WordVector

CHUNK = 1 << 14
FRACTION = 2.0**32


def count_levels(bits: int) -> int:
    """Returns L, the largest integer of the quantizer: integers of ``bits`` bits are −L to L."""
    levels: int = 2 ** (bits - 1) - 1
    return levels


def quantize(
    values: npt.NDArray[np.float32], scale: float, bits: int, address: np.random.SeedSequence, out: WordVector
) -> int:
    """Writes ⌊scale·value + u⌋ of every value, with u uniform in [0, 1), as words in two's complement.

    The expected value is scale·value, to 2^-30. Results beyond ±L are clamped.

    Args:
        values: [d], finite.
        scale: L divided by the range of the values, times what they are multiplied by.
        bits: The size of the integers, at most 30.
        address: Where the random numbers come from: the same address and values give the same integers.
        out: Where the integers are written, [d].

    Returns:
        How many of them were clamped.
    """
    levels, generator, saturated = count_levels(bits), np.random.SFC64(address), 0
    work = np.empty(CHUNK)
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK]
        row = work[: len(part)]
        uniform = generator.random_raw((len(part) + 1) // 2).view(np.uint32)[: len(part)]
        np.multiply(part, scale * FRACTION, out=row, dtype=np.float64)
        np.add(row, uniform, out=row)
        np.multiply(row, 1 / FRACTION, out=row)
        np.floor(row, out=row)
        if row.max() > levels or row.min() < -levels:
            saturated += int(np.count_nonzero(np.abs(row) > levels))
            np.clip(row, -levels, levels, out=row)
        out[start : start + CHUNK].view(np.int32)[:] = row
    return saturated


def decode(words: WordVector, step: float) -> npt.NDArray[np.float32]:
    """Returns the sum of integers times ``step``, [d].

    Args:
        words: The sum in Z_2^32, in two's complement.
        step: What one unit of the sum is worth.
    """
    decoded = np.empty(len(words), dtype=np.float32)
    np.multiply(words.view(np.int32), step, out=decoded, dtype=np.float64, casting="unsafe")
    return decoded
