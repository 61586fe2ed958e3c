"""The quantizer is bounded, unbiased and addressed, and its sums decode exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fednar_ray.secure.quantizer import CHUNK, count_levels, decode, quantize
from fednar_ray.secure.words import WordVector


def run(values: np.ndarray, scale: float, bits: int, seed: int = 0) -> tuple[WordVector, int]:
    out = np.empty(len(values), dtype=np.uint32)
    return out, quantize(values.astype(np.float32), scale, bits, np.random.SeedSequence(seed), out)


@given(
    values=arrays(np.float32, st.integers(1, 40), elements=st.floats(-1, 1, width=32)),
    bits=st.integers(8, 30),
    seed=st.integers(0, 2**32),
)
def test_each_integer_is_one_of_the_two_next_to_the_value(values: np.ndarray, bits: int, seed: int) -> None:
    levels = count_levels(bits)
    words, saturated = run(values, levels, bits, seed)
    exact, found = values.astype(np.float64) * levels, words.view(np.int32)
    assert (np.abs(found - exact) < 1).all()
    assert (np.abs(found) <= levels).all()
    assert saturated == 0
    on_the_grid = exact == np.floor(exact)
    assert (found[on_the_grid] == exact[on_the_grid]).all()


@pytest.mark.parametrize("value", [0.25, -0.25, 100.9, -100.9, 0.001])
def test_rounding_has_no_bias(value: float) -> None:
    count, up = 400_000, value - np.floor(value)
    words, _ = run(np.full(count, value), 1.0, 16)
    found = words.view(np.int32)
    assert set(found.tolist()) == {int(np.floor(value)), int(np.floor(value)) + 1}
    error = found.mean() - np.float32(value)
    assert abs(error) < 4 * np.sqrt(up * (1 - up) / count)  # four standard deviations


def test_values_beyond_the_range_are_clamped_and_counted() -> None:
    words, saturated = run(np.array([-2.0, -1.0, 0.0, 1.0, 1.01, 9.0]), 127.0, 8)
    assert words.view(np.int32).tolist() == [-127, -127, 0, 127, 127, 127]
    assert saturated == 3


def test_integers_follow_from_the_address_alone() -> None:
    values = np.random.default_rng(0).normal(size=2 * CHUNK + 5)
    words, _ = run(values, 1000.0, 20, seed=3)
    assert words.tobytes() == run(values, 1000.0, 20, seed=3)[0].tobytes()
    assert words.tobytes() != run(values, 1000.0, 20, seed=4)[0].tobytes()


@given(clients=st.integers(1, 256), extreme=st.sampled_from([-1.0, 1.0]))
def test_the_sum_of_as_many_clients_as_fit_decodes_exactly(clients: int, extreme: float) -> None:
    # 24 bits and 256 clients are 32 bits
    levels = count_levels(24)
    words, _ = run(np.array([extreme, extreme / 2]), levels, 24)
    total = np.zeros(2, dtype=np.uint32)
    for _ in range(clients):
        total += words
    integers = words.view(np.int32).astype(np.int64) * clients
    assert decode(total, 0.25).tolist() == (integers * 0.25).astype(np.float32).tolist()
