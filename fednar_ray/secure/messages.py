"""The messages of secure aggregation. They are immutable."""

from collections.abc import Mapping
from dataclasses import dataclass

from fednar_ray.core.exclusion import Exclusion
from fednar_ray.core.messages import Broadcast
from fednar_ray.secure.shamir import SHARE_BYTES
from fednar_ray.secure.words import WordVector


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt at the sum of a round. Every attempt has masks of its own.

    Attributes:
        run: The run, which no other run is called by.
        round_index: t.
        number: Which attempt it is; no number occurs twice in a run.
        members: The clients of the round, n of them.
        keys: The public keys of those members that have sent one, by client id.
        threshold: t, how many members' updates a sum needs, and how many shares a secret.
    """

    run: str
    round_index: int
    number: int
    members: tuple[int, ...]
    keys: Mapping[int, bytes]
    threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedBroadcast:
    """What every client of an attempt receives."""

    broadcast: Broadcast
    attempt: Attempt

    @property
    def round_index(self) -> int:
        """The round t."""
        return self.broadcast.round_index

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.broadcast.nbytes + 36 * len(self.attempt.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedUpdate:
    """What a client sends: its masked update, and the encrypted shares of its secrets.

    Attributes:
        client_ids: The client, alone.
        vector: The quantized update, the client's weight and its totals, in Z_2^32, with all masks added.
        packages: By recipient, the shares for it, encrypted.
        train_seconds: How long it trained. The driver could measure it as well.
    """

    client_ids: tuple[int]
    vector: WordVector
    packages: Mapping[int, bytes]
    train_seconds: float

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.vector.nbytes + sum(map(len, self.packages.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """A client that takes no part in the sum, because its update is not finite."""

    client_ids: tuple[int]
    exclusion: Exclusion


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmaskRequest:
    """What every client whose update arrived receives once the sum is complete."""

    attempt: Attempt
    arrived: tuple[int, ...]  # the clients whose masked updates are in the sum
    vanished: tuple[int, ...]  # the other members with a key

    @property
    def round_index(self) -> int:
        """The round t."""
        return self.attempt.round_index

    @property
    def nbytes(self) -> int:
        """The size in bytes, roughly."""
        return 36 * len(self.attempt.keys) + 4 * (len(self.arrived) + len(self.vanished))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmaskTask:
    """One call: reveal shares. ``packages`` are those that the other clients of the sum have encrypted for this one."""

    client_ids: tuple[int]
    packages: Mapping[int, bytes]  # by sender

    def halves(self) -> "tuple[UnmaskTask, UnmaskTask]":
        """Never called, since the task is one client's."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Reveal:
    """The shares that one client reveals: for every member one kind, and never both.

    Attributes:
        client_ids: The client, alone.
        own: By client whose update arrived, the share of the seed of its self-mask.
        pairs: By client whose update arrived and client that vanished, the share of the seed of their mask.
    """

    client_ids: tuple[int]
    own: Mapping[int, int]
    pairs: Mapping[tuple[int, int], int]

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return SHARE_BYTES * (len(self.own) + len(self.pairs))
