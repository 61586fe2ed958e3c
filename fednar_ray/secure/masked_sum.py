"""The driver's half of secure aggregation: it adds masked updates, and removes the masks from the sum alone."""

from collections.abc import Mapping, Sequence

from fednar_ray.core.errors import RoundAborted
from fednar_ray.secure.keys import SEED_BYTES
from fednar_ray.secure.masks import Mask, add_masks
from fednar_ray.secure.messages import Attempt, MaskedUpdate, Reveal, UnmaskRequest, UnmaskTask
from fednar_ray.secure.shamir import PRIME, compute_weights
from fednar_ray.secure.words import WordVector


class MaskedSum:
    """The sum of the masked updates of an attempt. No update is kept by itself.

    Args:
        attempt: The attempt.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self._vector: WordVector | None = None
        self._packages: dict[int, Mapping[int, bytes]] = {}  # by sender, then by recipient

    @property
    def arrived(self) -> tuple[int, ...]:
        """The clients whose updates are in the sum, in the order of their ids."""
        return tuple(sorted(self._packages))

    @property
    def vanished(self) -> tuple[int, ...]:
        """The other clients with a key, whose masks are still in the sum."""
        return tuple(sorted(set(self.attempt.keys) - set(self._packages)))

    def add(self, update: MaskedUpdate) -> None:
        """Adds an update. The order does not matter, since sums of integers are exact."""
        if self._vector is None:
            self._vector = update.vector.copy()  # the update may lie in read-only memory
        else:
            self._vector += update.vector
        (client_id,) = update.client_ids
        self._packages[client_id] = dict(update.packages)

    def build_request(self) -> UnmaskRequest:
        """Returns what all clients that arrived are asked for."""
        return UnmaskRequest(attempt=self.attempt, arrived=self.arrived, vanished=self.vanished)

    def build_tasks(self) -> list[UnmaskTask]:
        """Returns for each client that arrived the shares that the others have encrypted for it."""
        return [
            UnmaskTask(
                client_ids=(recipient,),
                packages={
                    sender: packages[recipient] for sender, packages in self._packages.items() if sender != recipient
                },
            )
            for recipient in self.arrived
        ]

    def unmask(self, reveals: Sequence[Reveal]) -> WordVector:
        """Returns the sum of the updates that arrived, without any mask. Call it once.

        Args:
            reveals: Those of at least t clients.

        Raises:
            RoundAborted: Shares do not fit together, so that the sum cannot be unmasked.
        """
        assert self._vector is not None
        chosen = sorted(reveals, key=lambda reveal: reveal.client_ids)[: self.attempt.threshold]
        weights = compute_weights([reveal.client_ids[0] + 1 for reveal in chosen])

        def recover(shares: Sequence[int]) -> bytes:
            secret = sum(weight * share for weight, share in zip(weights, shares, strict=True)) % PRIME
            if secret >> (8 * SEED_BYTES):
                raise RoundAborted(self.attempt.round_index, "the shares of a seed do not fit together")
            return secret.to_bytes(SEED_BYTES, "big")

        masks: list[Mask] = [(recover([reveal.own[i] for reveal in chosen]), -1) for i in self.arrived]
        for i in self.arrived:
            for gone in self.vanished:
                sign = -1 if i < gone else 1  # the opposite of the sign with which client i has added it
                masks.append((recover([reveal.pairs[i, gone] for reveal in chosen]), sign))
        add_masks(self._vector, masks)
        return self._vector
