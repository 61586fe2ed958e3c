"""Sums of numbers through words are exact."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fednar_ray.secure.totals import LIMBS, decode_totals, encode_totals

numbers = st.floats(-(2.0**40), 2.0**40).map(lambda value: round(value * 2**20) / 2**20)  # multiples of 2^-20


@given(rows=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20))
def test_sums_are_those_of_the_numbers(rows: list[tuple[float, float]]) -> None:
    total = np.zeros(2 * LIMBS, dtype=np.uint32)
    for a, b in rows:
        words = np.empty_like(total)
        encode_totals({"a": a, "b": b}, words)
        total += words
    exact = [float(sum(map(Fraction, column))) for column in zip(*rows, strict=True)]
    assert decode_totals(("a", "b"), total) == {"a": exact[0], "b": exact[1]}


def test_numbers_that_are_too_large_are_clamped() -> None:
    words = np.empty(4 * LIMBS, dtype=np.uint32)
    encode_totals({"a": 1e300, "b": -np.inf, "c": np.nan, "d": 2.0**-64}, words)
    assert list(decode_totals(tuple("abcd"), words).values()) == [2.0**44, -(2.0**44), 2.0**44, 2.0**-64]
