"""The key from which a run's noise follows, and in a secret run its sampled clients: addressed by purpose and round.

A secret key lies in a file of its own, in the directory for the state of this user's programs, and in nothing that a
run writes, logs or sends. A run records only the key's name, with which it finds the file when it is resumed.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fednar_ray.config import Experiment
from fednar_ray.core.errors import BadInput, RunFailed
from fednar_ray.core.flat_params import FloatVector
from fednar_ray.core.random import Purpose, seed_sequence

KEY_BYTES = 32
IDENTIFYING = ("seed", "federation", "algorithm", "regularizer", "privacy", "availability", "attacks", "changes")
"""The sections that tell runs apart whose noise is simulated. Others follow below, without what a resume may change."""
FREE = ("threshold", "directory")  # of secure_aggregation
PATHS = ("directory", "path", "test_path", "weights", "download", "csv")


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """The key of one run.

    Attributes:
        name: Names the file of a secret key. None: the key follows from public settings.
        value: The key itself, which no message shows.
    """

    name: str | None
    value: bytes

    def __repr__(self) -> str:
        return f"NoiseKey({self.name!r}, …)"

    def build_generator(
        self, purpose: Purpose, round_index: int, client_id: int = 0, context: bytes = b""
    ) -> np.random.Generator:
        """Builds the generator at one address. It gives the same numbers whenever the round is trained.

        Args:
            purpose: What the numbers are for.
            round_index: t.
            client_id: Whom they are for.
            context: ``compute_context`` of what is noised, so that the same noise never hides two different things. A
                public key hides nothing, and repeats its numbers on machines that differ in the last bits.
        """
        secret = context and self.name is not None
        number = int.from_bytes(hmac.digest(self.value, context, "sha256") if secret else self.value, "big")
        address = seed_sequence(number, purpose, round_index=round_index, client_id=client_id)
        return np.random.Generator(np.random.Philox(address))

    def derive(self, purpose: str) -> "NoiseKey":
        """Returns a key that follows from this one, and from which this one cannot be computed."""
        return NoiseKey(self.name, hmac.digest(self.value, purpose.encode(), "sha256"))

    def seal(self, digest: str) -> str:
        """Returns a digest that only somebody with the key can compare with that of other data."""
        return hmac.digest(self.value, digest.encode(), "sha256").hex()


def compute_context(parameters: FloatVector, client_ids: Sequence[int] = (), summed: bytes = b"") -> bytes:
    """Computes a digest of what a round noises: where it starts, x [d], whose updates it sums, and the sum if given.

    A sum of integers is given, since random rounding turns a difference in the last bits into whole steps.
    """
    return hashlib.sha256(parameters.tobytes() + np.array(client_ids, dtype=np.int64).tobytes() + summed).digest()


def build_public_key(experiment: Experiment) -> NoiseKey:
    """Builds the key of a run whose privacy is simulated, from its seed and the settings that its training follows.

    So the same experiment repeats its bytes, on any machine, and no two variants or trials share noise. The number of
    rounds does not count: a longer run begins with the rounds of a shorter one.
    """
    settings = experiment.model_dump(mode="json", exclude_defaults=True)
    chosen = {name: settings[name] for name in IDENTIFYING if name in settings}
    chosen["federation"] = {key: value for key, value in chosen.get("federation", {}).items() if key != "rounds"}
    for name in ("data", "model"):
        chosen[name] = {key: value for key, value in settings.get(name, {}).items() if key not in PATHS}
    if "secure_aggregation" in settings:
        masked = {key: value for key, value in settings["secure_aggregation"].items() if key not in FREE}
        chosen["secure_aggregation"] = masked
    text = json.dumps(chosen, sort_keys=True)
    return NoiseKey(None, hashlib.sha256(text.encode()).digest())


def draw_key() -> NoiseKey:
    """Draws a secret key from the operating system's generator. It is kept in memory only."""
    return NoiseKey(secrets.token_hex(8), secrets.token_bytes(KEY_BYTES))


def find_key_file(name: str) -> Path:
    """Returns the file of a secret key, below ``$XDG_STATE_HOME`` or ``~/.local/state``."""
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "fednar" / "secrets" / name


def save_key(key: NoiseKey) -> Path:
    """Writes a secret key into its file, which only this user may read. Raises RunFailed if that is impossible."""
    assert key.name is not None, "a public key"
    path = find_key_file(key.name)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(key.value)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunFailed(f"{path}: the secret cannot be written: {error.strerror}") from error
    return path


def load_key(name: str) -> NoiseKey:
    """Loads a secret key.

    Raises:
        BadInput: The file is missing, has another size, or others than this user may read it.
    """
    path = find_key_file(name)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            mode, value = os.fstat(file.fileno()).st_mode & 0o777, file.read(KEY_BYTES + 1)
    except OSError as error:
        raise BadInput(
            f"{path}: the secret of this run cannot be read ({error.strerror}): without it the noise of its rounds "
            "cannot be repeated; copy the file from where the run was started, or start a new run"
        ) from None
    if mode & 0o077:
        raise BadInput(f"{path}: others may read the secret (mode {mode:o}); if nobody has, use: chmod 600 {path}")
    if len(value) != KEY_BYTES:
        raise BadInput(f"{path}: holds {len(value)} bytes instead of {KEY_BYTES}; copy the file again")
    return NoiseKey(name, value)
