"""Addressed randomness: a generator follows from (seed, purpose, round, client), never from earlier draws.

So resumed runs, failures and the number of actors cannot change what is drawn.
"""

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import numpy as np


class Purpose(IntEnum):
    """What a stream of random numbers is for. The values decide every result, so they must never change."""

    INITIALISATION = 0
    HOLDOUT = 1
    PARTITION = 2
    SAMPLING = 3
    BATCHES = 4
    LAYERS = 5
    AVAILABILITY = 6
    DROPOUT = 7
    SPEED = 8
    CORRUPTION = 9
    TEST_SHARE = 10
    CROPPING = 11
    AUGMENTATION = 12
    SCORING = 13
    PRIVACY_NOISE = 14
    COUNT_NOISE = 15
    EXAMPLES = 16
    EXAMPLE_NOISE = 17
    QUANTIZATION = 20


def seed_sequence(seed: int, purpose: Purpose, *, round_index: int = 0, client_id: int = 0) -> np.random.SeedSequence:
    """Returns the seed sequence at one address, from which all its random numbers follow."""
    return np.random.SeedSequence(seed, spawn_key=(purpose.value, round_index, client_id))


def generator(seed: int, purpose: Purpose, *, round_index: int = 0, client_id: int = 0) -> np.random.Generator:
    """Returns the NumPy generator at one address."""
    return np.random.default_rng(seed_sequence(seed, purpose, round_index=round_index, client_id=client_id))


def torch_seed(seed: int, purpose: Purpose, *, round_index: int = 0, client_id: int = 0) -> int:
    """Returns a 63-bit seed for ``torch.manual_seed`` at one address."""
    word = seed_sequence(seed, purpose, round_index=round_index, client_id=client_id).generate_state(1, np.uint64)[0]
    return int(word >> np.uint64(1))


def get_global_states() -> tuple[Any, Any]:
    """Returns the states of Python's and NumPy's global generators. Two results are equal if nothing was drawn."""
    return random.getstate(), pickle.dumps(np.random.get_state(legacy=False))


@contextmanager
def seed_global_generators(address: np.random.SeedSequence | None = None) -> Iterator[None]:
    """Seeds Python's and NumPy's global generators at ``address`` inside, and restores their states afterwards.

    Without an address they are only restored.
    """
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    try:
        if address is not None:
            words = address.generate_state(4)
            random.seed(int.from_bytes(words.tobytes(), "little"))
            np.random.seed(words)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
