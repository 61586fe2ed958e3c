"""Addressed randomness: a generator comes from (seed, purpose, round, client), never from earlier draws.

So resumption, failures, and the number of actors cannot change what is drawn (DESIGN: determinism).
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream of random numbers is for. The numbers are part of every result: never renumber."""

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


def _sequence(seed: int, purpose: Purpose, round_index: int, client_id: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(purpose.value, round_index, client_id))


def generator(seed: int, purpose: Purpose, *, round_index: int = 0, client_id: int = 0) -> np.random.Generator:
    """The NumPy generator at one address."""
    return np.random.default_rng(_sequence(seed, purpose, round_index, client_id))


def torch_seed(seed: int, purpose: Purpose, *, round_index: int = 0, client_id: int = 0) -> int:
    """A 63-bit seed for ``torch.manual_seed`` at one address."""
    word = _sequence(seed, purpose, round_index, client_id).generate_state(1, np.uint64)[0]
    return int(word >> np.uint64(1))
