"""A client's half of secure aggregation: it masks its update, shares the seeds of its masks, and reveals shares.

Source: Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017, with seeds
per attempt in place of key pairs, and shares that travel with the masked update.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fednar_ray.config.secure_aggregation import FEWEST_CLIENTS
from fednar_ray.core.errors import SiloRefused
from fednar_ray.secure.masks import Mask, add_masks
from fednar_ray.secure.messages import Attempt, Reveal, UnmaskRequest, UnmaskTask
from fednar_ray.secure.plan import SecurePlan, compute_threshold
from fednar_ray.secure.records import SiloRecords
from fednar_ray.secure.shamir import SHARE_BYTES, split_secret
from fednar_ray.secure.words import WordVector

_NONCE = bytes(12)  # each key encrypts one message


class Silo:
    """One client in one run. It trusts neither the driver's numbers nor other clients' messages.

    Args:
        plan: What the clients have agreed on.
        client_id: The client.
    """

    def __init__(self, plan: SecurePlan, client_id: int) -> None:
        self._plan, self._id = plan, client_id
        self._records = SiloRecords(find_directory(plan, client_id))
        self._keys = self._records.keys

    @property
    def public_key(self) -> bytes:
        """The public key, which the driver gives to the other clients."""
        return self._keys.public

    def mask(self, attempt: Attempt, vector: WordVector) -> Mapping[int, bytes]:
        """Adds the client's masks to a vector in place, and returns the encrypted shares of their seeds by recipient.

        The vector may be sent afterwards: the client is committed to it, and will mask no other one in this attempt.

        Raises:
            SiloRefused: The attempt is not one in which the update stays secret, or another vector was masked in it.
        """
        self._check(attempt)
        self._records.commit_peers(attempt.keys)
        peers = [other for other in sorted(attempt.keys) if other != self._id]
        seeds = {other: self._keys.derive_pair_seed(attempt, self._id, other) for other in peers}
        own = self._keys.derive_own_seed(attempt, self._id)
        masks: list[Mask] = [(own, 1), *((seeds[other], 1 if self._id < other else -1) for other in peers)]
        add_masks(vector, masks)
        self._records.commit_update(attempt, hashlib.sha256(vector.data).hexdigest())
        shares = self._share(attempt, [own, *seeds.values()])
        return {other: self._encrypt(attempt, other, shares[other]) for other in peers}

    def reveal(self, request: UnmaskRequest, task: UnmaskTask) -> Reveal:
        """Returns shares of the self-masks of clients that arrived, and of the pair masks of those that vanished.

        Raises:
            SiloRefused: The request would unmask the sum of too few clients, or a client whose other kind of share was
                revealed, or a package was not encrypted for this client.
        """
        attempt, arrived, vanished = request.attempt, request.arrived, request.vanished
        self._check(attempt)
        if sorted((*arrived, *vanished)) != sorted(attempt.keys) or self._id not in arrived:
            raise SiloRefused("the clients that arrived and vanished are not those of the attempt")
        if len(arrived) < attempt.threshold:
            raise SiloRefused(f"{len(arrived)} updates arrived, and a sum needs {attempt.threshold}")
        shares = {sender: self._open(attempt, sender, task.packages) for sender in arrived}
        self._records.commit_reveal(attempt, arrived, vanished)
        return Reveal(
            client_ids=(self._id,),
            own={sender: shares[sender][sender] for sender in arrived},
            pairs={(sender, gone): shares[sender][gone] for sender in arrived for gone in vanished},
        )

    def forget(self) -> None:
        """Deletes the client's keys of this run."""
        self._records.forget()

    def _check(self, attempt: Attempt) -> None:
        """Raises SiloRefused for an attempt in which fewer than t clients could see an update."""
        members, threshold = len(attempt.members), attempt.threshold
        problem = None
        if attempt.run != self._plan.run:
            problem = "it is another run's"
        elif len(set(attempt.members)) != members or members < FEWEST_CLIENTS:
            problem = f"it has {members} members, at least {FEWEST_CLIENTS} are required"
        elif threshold != compute_threshold(self._plan.threshold, members) or 2 * threshold <= members:
            problem = f"its threshold is {threshold} of {members}"
        elif not set(attempt.keys) <= set(attempt.members) or len(attempt.keys) < threshold:
            problem = f"it has the public keys of {len(attempt.keys)} members"
        elif attempt.keys.get(self._id) != self.public_key:
            problem = "it does not have this client's public key"
        if problem is not None:
            raise SiloRefused(f"the attempt at round {attempt.round_index} is refused: {problem}")

    def _share(self, attempt: Attempt, secrets: list[bytes]) -> dict[int, list[int]]:
        """Returns by recipient the shares of the secrets, in their order; of the same secrets always the same."""
        recipients = sorted(attempt.keys)
        points = [recipient + 1 for recipient in recipients]
        rest = self._keys.derive_coefficients(attempt, self._id, len(secrets))
        columns = [
            split_secret([int.from_bytes(secret, "big"), *coefficients], points)
            for secret, coefficients in zip(secrets, rest, strict=True)
        ]
        return {recipient: [column[i] for column in columns] for i, recipient in enumerate(recipients)}

    def _encrypt(self, attempt: Attempt, recipient: int, shares: list[int]) -> bytes:
        key = self._keys.derive_package_key(attempt, self._id, recipient, recipient)
        text = b"".join(share.to_bytes(SHARE_BYTES, "big") for share in shares)
        return ChaCha20Poly1305(key).encrypt(_NONCE, text, None)

    def _open(self, attempt: Attempt, sender: int, packages: Mapping[int, bytes]) -> dict[int, int]:
        """Returns this client's shares of a sender's seeds.

        The share of a pair's seed is found by the other client, that of the self-mask's by the sender itself.
        """
        peers = [other for other in sorted(attempt.keys) if other != sender]
        if sender == self._id:
            seeds = [self._keys.derive_pair_seed(attempt, self._id, other) for other in peers]
            shares = self._share(attempt, [self._keys.derive_own_seed(attempt, self._id), *seeds])[self._id]
        else:
            key = self._keys.derive_package_key(attempt, sender, self._id, sender)
            try:
                text = ChaCha20Poly1305(key).decrypt(_NONCE, packages.get(sender, b""), None)
            except InvalidTag:
                raise SiloRefused(f"the shares of client {sender} were not encrypted for this client") from None
            shares = [
                int.from_bytes(text[start : start + SHARE_BYTES], "big") for start in range(0, len(text), SHARE_BYTES)
            ]
        return dict(zip((sender, *peers), shares, strict=True))


def find_directory(plan: SecurePlan, client_id: int) -> Path:
    """Returns where a client keeps its keys: in ``XDG_STATE_HOME``, else ``~/.local/state``, unless the plan says."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    base = Path(home) / "fednar" / "secure" if plan.directory is None else Path(plan.directory)
    return base / plan.run / str(client_id)
