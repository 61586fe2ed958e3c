"""Masks: keystreams of ChaCha20, read as vectors in Z_2^32 and added to a vector of integers."""

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fednar_ray.secure.words import WordVector

Mask = tuple[bytes, int]
"""The seed of a mask, 32 bytes, and its sign: 1 or −1."""

CHUNK = 1 << 14  # words: two buffers fit into a core's second-level cache
_ZEROS = bytes(4 * CHUNK)


def add_masks(vector: WordVector, masks: Sequence[Mask]) -> None:
    """Adds masks to a vector, or subtracts them, in place and in one pass over it.

    A mask's k-th word is made of bytes 4k to 4k + 3 of the keystream of ChaCha20 (RFC 8439) with the seed as the key,
    and nonce and counter 0, lowest byte first. A seed must therefore be used for one vector only.

    Args:
        vector: Contiguous and writable, [length].
        masks: Seeds and signs.
    """
    streams = [Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor() for seed, _ in masks]
    words = np.empty(CHUNK, dtype="<u4")
    stream_bytes = words.data.cast("B")
    for start in range(0, len(vector), CHUNK):
        part = vector[start : start + CHUNK]
        size = 4 * len(part)
        for stream, (_, sign) in zip(streams, masks, strict=True):
            stream.update_into(_ZEROS[:size], stream_bytes[:size])
            combine = np.add if sign > 0 else np.subtract
            combine(part, words[: len(part)], out=part)
