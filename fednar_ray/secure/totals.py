"""Numbers whose sum over the clients is exact: fixed point with 128 bits, in words that are masked like the update.

A number is split into limbs of 16 bits, one per word, so that the sum of 2^16 of them still fits into its word.
"""

import math
from collections.abc import Mapping

import numpy as np

from fednar_ray.secure.words import WordVector

LIMBS, LIMB_BITS, FRACTION_BITS, LIMIT_BITS = 8, 16, 64, 108
_BITS = LIMBS * LIMB_BITS


def encode_totals(values: Mapping[str, float], out: WordVector) -> None:
    """Writes numbers as words, in the order of the mapping; ``LIMBS`` words each.

    Args:
        values: The numbers. Those beyond ±2^44 are clamped, and NaN becomes 2^44.
        out: [LIMBS · number of values].
    """
    for index, value in enumerate(values.values()):
        number = _to_fixed_point(value) % 2**_BITS
        limbs = [number >> (LIMB_BITS * limb) & (2**LIMB_BITS - 1) for limb in range(LIMBS)]
        out[index * LIMBS : (index + 1) * LIMBS] = limbs


def decode_totals(names: tuple[str, ...], words: WordVector) -> dict[str, float]:
    """Returns the sums by name.

    Args:
        names: The names, in the order in which they were written.
        words: The sums of the words, [LIMBS · number of names].
    """
    return {name: _from_limbs(words[i * LIMBS : (i + 1) * LIMBS]) for i, name in enumerate(names)}


def _to_fixed_point(value: float) -> int:
    limit = 2.0 ** (LIMIT_BITS - FRACTION_BITS)
    value = limit if math.isnan(value) else value
    return int(math.ldexp(min(max(value, -limit), limit), FRACTION_BITS))


def _from_limbs(words: WordVector) -> float:
    number = sum(int(word) << (LIMB_BITS * limb) for limb, word in enumerate(words)) % 2**_BITS
    signed = number - 2**_BITS if number >> (_BITS - 1) else number
    return float(np.ldexp(float(signed), -FRACTION_BITS))
