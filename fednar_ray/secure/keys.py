"""The keys of a client: generated where it trains, kept there, and never sent.

Seeds are derived from them, so that a client whose process was restarted has the same masks and shares again.
"""

import os
import struct
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fednar_ray.secure.messages import Attempt
from fednar_ray.secure.shamir import PRIME

KEY_BYTES = SEED_BYTES = 32
_COEFFICIENT_BYTES = 80  # 119 bits more than the field has, so that a remainder is uniform


class SiloKeys:
    """A private key for pairs of clients, and a secret of the client's own.

    Args:
        private: The X25519 private key, 32 bytes.
        own: The other secret, 32 bytes.
    """

    def __init__(self, private: bytes, own: bytes) -> None:
        self._private, self._own = X25519PrivateKey.from_private_bytes(private), own
        self._agreed: dict[bytes, bytes] = {}

    @classmethod
    def load_or_create(cls, file: Path) -> "SiloKeys":
        """Reads the keys from a file, or generates them and writes the file, which only its owner can read.

        The caller must hold a lock, so that two processes do not generate different keys.

        Raises:
            OSError: The file cannot be read or written.
            ValueError: The file is damaged.
        """
        if not file.exists():
            _write_privately(file, os.urandom(2 * KEY_BYTES))
        content = file.read_bytes()
        if len(content) != 2 * KEY_BYTES:
            raise ValueError(f"{file}: has {len(content)} bytes instead of {2 * KEY_BYTES}; start a new run")
        return cls(content[:KEY_BYTES], content[KEY_BYTES:])

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self._private.public_key().public_bytes_raw()

    def derive_own_seed(self, attempt: Attempt, client_id: int) -> bytes:
        """Returns the seed of the client's self-mask in an attempt."""
        return _derive(self._own, "own mask", attempt, client_id)

    def derive_pair_seed(self, attempt: Attempt, client_id: int, other: int) -> bytes:
        """Returns the seed of the mask that two clients share in an attempt; the same for both."""
        agreed = self._agree(attempt.keys[other])
        return _derive(agreed, "pair mask", attempt, min(client_id, other), max(client_id, other))

    def derive_package_key(self, attempt: Attempt, sender: int, recipient: int, peer: int) -> bytes:
        """Returns the key that encrypts the shares of ``sender`` for ``recipient``.

        Args:
            attempt: The attempt.
            sender: Who encrypts.
            recipient: Who decrypts.
            peer: The one of the two that is not this client.
        """
        return _derive(self._agree(attempt.keys[peer]), "shares", attempt, sender, recipient)

    def derive_coefficients(self, attempt: Attempt, client_id: int, secrets: int) -> list[list[int]]:
        """Returns t − 1 coefficients for each of so many secrets. They are elements of the field, and secret."""
        seed, count = _derive(self._own, "coefficients", attempt, client_id), attempt.threshold - 1
        size = _COEFFICIENT_BYTES * count * secrets
        stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(size))
        numbers = [
            int.from_bytes(stream[start : start + _COEFFICIENT_BYTES], "little") % PRIME
            for start in range(0, size, _COEFFICIENT_BYTES)
        ]
        return [numbers[i * count : (i + 1) * count] for i in range(secrets)]

    def _agree(self, public: bytes) -> bytes:
        """Returns the secret that X25519 gives for a pair of clients. Raises ValueError for a key that is none."""
        if public not in self._agreed:
            self._agreed[public] = self._private.exchange(X25519PublicKey.from_public_bytes(public))
        return self._agreed[public]


def _derive(secret: bytes, purpose: str, attempt: Attempt, *client_ids: int) -> bytes:
    """Derives 32 bytes from a secret by HKDF-SHA256 (RFC 5869), for one purpose in one attempt of one run."""
    texts = b"".join(struct.pack(">I", len(text)) + text for text in (b"fednar_ray", purpose.encode()))
    run = attempt.run.encode()
    numbers = struct.pack(f">I{len(run)}sQQ", len(run), run, attempt.round_index, attempt.number)
    ids = struct.pack(f">{len(client_ids)}I", *client_ids)
    return HKDF(algorithm=SHA256(), length=SEED_BYTES, salt=None, info=texts + numbers + ids).derive(secret)


def _write_privately(file: Path, content: bytes) -> None:
    """Writes a new file of mode 0600, whole or not at all."""
    part = file.with_suffix(".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as writer:
        writer.write(content)
        writer.flush()
        os.fsync(writer.fileno())
    part.replace(file)
