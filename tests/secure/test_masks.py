"""Masks are ChaCha20's keystream, and cancel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednar_ray.secure.masks import CHUNK, add_masks

RFC_8439 = bytes.fromhex(  # appendix A.1, test vector 1: key, nonce and counter are 0
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
)


def test_a_mask_is_the_keystream_of_the_standard() -> None:
    vector = np.zeros(16, dtype=np.uint32)
    add_masks(vector, [(bytes(32), 1)])
    assert vector.astype("<u4").tobytes() == RFC_8439


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_a_mask_does_not_depend_on_where_a_vector_is_divided(length: int) -> None:
    long, short = np.zeros(4 * CHUNK, dtype=np.uint32), np.zeros(length, dtype=np.uint32)
    for vector in (long, short):
        add_masks(vector, [(b"s" * 32, 1)])
    assert short.tobytes() == long[:length].tobytes()
    assert len(np.unique(long)) > 0.99 * len(long)  # the stream goes on from chunk to chunk


@given(seeds=st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=4), value=st.integers(0, 2**32 - 1))
def test_a_mask_with_the_opposite_sign_cancels(seeds: list[bytes], value: int) -> None:
    vector = np.full(100, value, dtype=np.uint32)
    add_masks(vector, [(seed, 1) for seed in seeds])
    for seed in reversed(seeds):
        add_masks(vector, [(seed, -1)])
    assert (vector == value).all()
