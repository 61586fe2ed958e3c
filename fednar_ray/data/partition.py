"""Partitions: which client holds which examples.

Every kind of partition gives each example to at most one client. Only two leave examples out: ``dirichlet_equal`` the
remainder N mod n, and ``natural`` the groups that are not chosen as clients. All kinds work on whole arrays: 50,000
labels over 10,000 clients take well under a second.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.core.errors import DataError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of examples among n clients: client i holds the examples ``order[offsets[i]:offsets[i + 1]]``."""

    order: Indices  # [assigned] indices of examples, client by client
    offsets: Indices  # [n + 1]
    left_out: Indices  # indices of examples that no client holds

    @property
    def sizes(self) -> Indices:
        """The number of examples of each client, [n]."""
        return np.diff(self.offsets)

    def client(self, client_id: int) -> Indices:
        """Returns the indices of one client's examples."""
        return self.order[self.offsets[client_id] : self.offsets[client_id + 1]]


def count_held_out(share: float, examples: int, key: str) -> int:
    """Computes how many examples a share holds out.

    Args:
        share: The share, from 0 to 1.
        examples: The number of examples.
        key: The setting that the share comes from, for messages: "data.validation".

    Raises:
        DataError: The share is not 0, but rounds to no example or to all of them.
    """
    held = round(share * examples)
    if not share or 0 < held < examples:
        return held
    if examples < 2:
        raise DataError(f"{key}: {share:g} of {examples} examples cannot be held out; use 0, or provide more examples")
    if not held:
        raise DataError(f"{key}: {share:g} of {examples} examples is none; use at least {1 / examples:g}, or 0")
    raise DataError(f"{key}: {share:g} of {examples} examples is all of them; use at most {1 - 1 / examples:g}")


def _by_owner(owner: Indices, clients: int, rng: np.random.Generator) -> Partition:
    """Gathers examples by owner [N], in random order within each client. The owner −1 means left out."""
    order = np.lexsort((rng.random(len(owner)), owner))
    left_out = int((owner < 0).sum())
    sizes = np.bincount(owner[owner >= 0], minlength=clients)
    return Partition(order[left_out:], np.concatenate([[0], np.cumsum(sizes)]), np.sort(order[:left_out]))


def iid(labels: Indices, clients: int, rng: np.random.Generator) -> Partition:
    """Gives each client a random share of the examples. The sizes of clients differ by at most one."""
    owner = rng.permutation(np.arange(len(labels)) % clients)
    return _by_owner(owner, clients, rng)


def dirichlet(labels: Indices, clients: int, rng: np.random.Generator, alpha: float) -> Partition:
    """Divides each class among the clients by shares that are drawn from Dir(α·1).

    Args:
        labels: The class of each example, [N].
        clients: The number of clients, n. Some may get no example.
        rng: Draws the shares, and which examples each client gets.
        alpha: α. The smaller it is, the more the clients' classes differ.

    Source: Hsu et al. 2019; Li et al. 2022, label distribution skew.
    """
    owner = np.empty(len(labels), dtype=np.int64)
    for members in map(rng.permutation, _group_by_class(labels)):
        ends = np.cumsum(_dirichlet_rows(rng, alpha, 1, clients)[0])
        bounds = np.round(ends * len(members)).astype(np.int64)
        bounds[-1] = len(members)
        owner[members] = np.repeat(np.arange(clients), np.diff(bounds, prepend=0))
    return _by_owner(owner, clients, rng)


def dirichlet_equal(labels: Indices, clients: int, rng: np.random.Generator, alpha: float) -> Partition:
    """Gives each client the same number of examples, ⌊N/n⌋, with its own mixture of classes from Dir(α·1).

    Each client draws the class of each of its examples from its mixture. When no example of a class remains, clients
    draw from the other classes. The remainder N mod n is left out. The arguments are those of ``dirichlet``.

    Source: Acar et al. 2021. FedNAR's authors use this partition.
    """
    classes, coded = np.unique(labels, return_inverse=True)
    each = len(labels) // clients
    # Random arrival times order the draws: the next client is any of those that still need examples.
    arrivals = rng.exponential(size=(clients, each)).cumsum(axis=1)
    takers = np.argsort(arrivals, axis=None) // max(each, 1)
    remaining = np.bincount(coded, minlength=len(classes))
    drawn = _draw_classes(takers, _dirichlet_rows(rng, alpha, clients, len(classes)), remaining, rng)
    owner = np.full(len(labels), -1, dtype=np.int64)
    for code, members in enumerate(map(rng.permutation, _group_by_class(coded))):
        who = takers[drawn == code]
        owner[members[: len(who)]] = who
    return _by_owner(owner, clients, rng)


def _group_by_class(labels: Indices) -> list[Indices]:
    """Returns the examples of each class, classes and examples in ascending order."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _dirichlet_rows(rng: np.random.Generator, alpha: float, rows: int, size: int) -> npt.NDArray[np.float64]:
    """Draws ``rows`` vectors of ``size`` shares from Dir(α·1).

    If α is tiny, all gamma draws of a row may underflow; then one random entry of the row is 1.
    """
    with np.errstate(invalid="ignore"):
        priors = rng.dirichlet(np.full(size, alpha), size=rows)
    broken = np.flatnonzero(~(np.abs(priors.sum(axis=1) - 1) < 1e-6))
    priors[broken] = np.eye(size)[rng.integers(size, size=len(broken))] if len(broken) else priors[broken]
    return priors


def _draw_classes(
    takers: Indices, priors: npt.NDArray[np.float64], remaining: Indices, rng: np.random.Generator
) -> Indices:
    """Draws a class for each taker, in order, without replacement. Each class that runs out costs one more pass."""
    drawn = np.empty(len(takers), dtype=np.int64)
    uniform, done, remaining = rng.random(len(takers)), 0, remaining.copy()
    while done < len(takers):
        weights = np.where(remaining > 0, priors, 0.0)
        empty = weights.sum(axis=1) == 0  # no example remains of any class that this client prefers
        weights[empty] = remaining
        ends = np.cumsum(weights, axis=1)
        ends /= ends[:, -1:]
        picks = (uniform[done:, None] >= ends[takers[done:]]).sum(axis=1)
        stop = _first_overdraw(picks, remaining)
        drawn[done : done + stop] = picks[:stop]
        remaining -= np.bincount(picks[:stop], minlength=len(remaining))
        done += stop
        uniform[done : done + 1] = rng.random()  # the rejected draw is repeated
    return drawn


def _first_overdraw(picks: Indices, remaining: Indices) -> int:
    """Returns how many of the picks can be served before one needs a class of which no example remains."""
    stop = len(picks)
    for code in np.flatnonzero(remaining >= 0):
        asks = np.flatnonzero(picks == code)
        if len(asks) > remaining[code]:
            stop = min(stop, int(asks[remaining[code]]))
    return stop


def shards(labels: Indices, clients: int, rng: np.random.Generator, shards_per_client: int) -> Partition:
    """Sorts the examples by label, cuts them into n·k shards, and gives each of n clients k random shards.

    Args:
        labels: The class of each example, [N].
        clients: The number of clients, n.
        rng: Draws the order within a class, and each client's shards.
        shards_per_client: k. A client has about k classes.

    Source: McMahan et al. 2017.
    """
    by_label = np.lexsort((rng.random(len(labels)), labels))
    count = clients * shards_per_client
    shard_of = np.arange(len(labels)) * count // max(len(labels), 1)
    owner = np.empty(len(labels), dtype=np.int64)
    owner[by_label] = rng.permutation(np.arange(count) % clients)[shard_of]
    return _by_owner(owner, clients, rng)


def natural(groups: npt.NDArray[Any], rng: np.random.Generator, clients: int | None = None) -> Partition:
    """Makes each group a client. Clients are numbered in the sorted order of their groups.

    Args:
        groups: The group of each example, [N].
        rng: Draws the order of each client's examples, and which groups are clients.
        clients: The number of groups to draw at random as clients; None: all groups are clients.

    Raises:
        DataError: There are fewer groups than ``clients``.
    """
    names, owner = np.unique(groups, return_inverse=True)
    if clients is None:
        return _by_owner(owner.astype(np.int64), len(names), rng)
    if clients > len(names):
        raise DataError(f"data.partition.clients: {clients} is more than the number of groups ({len(names)})")
    rank = np.full(len(names), -1)
    rank[np.sort(rng.choice(len(names), clients, replace=False))] = np.arange(clients)
    return _by_owner(rank[owner], clients, rng)


def ensure_minimum(partition: Partition, min_examples: int) -> Partition:
    """Moves examples from the largest clients to those that have fewer than ``min_examples``.

    Raises:
        DataError: There are too few examples for all clients.
    """
    sizes = partition.sizes
    examples = int(sizes.sum())
    if examples < min_examples * len(sizes):
        raise DataError(
            f"data.partition: {examples} examples cannot give each of {len(sizes)} clients {min_examples}; "
            f"use at most {examples // max(min_examples, 1)} clients or a smaller data.partition.min_examples"
        )
    deficits = np.maximum(min_examples - sizes, 0)
    if not deficits.any():
        return partition
    given = _compute_gifts(sizes, min_examples, int(deficits.sum()))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    rank_from_end = np.repeat(partition.offsets[1:], sizes) - np.arange(len(owner))  # 1 is a client's last example
    moving = rank_from_end <= given[owner]
    owner[moving] = np.repeat(np.arange(len(sizes)), deficits)
    order = np.argsort(owner, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(sizes - given + deficits)])
    return Partition(partition.order[order], offsets, partition.left_out)


def _compute_gifts(sizes: Indices, floor: int, needed: int) -> Indices:
    """Computes how many examples each client gives: ``needed`` in all, from the largest clients down to ``floor``."""
    low, high = floor, int(sizes.max())
    while low < high:  # the highest level whose surplus covers the need
        level = (low + high + 1) // 2
        low, high = (level, high) if np.maximum(sizes - level, 0).sum() >= needed else (low, level - 1)
    given = np.maximum(sizes - low, 0)
    surplus = int(given.sum()) - needed
    given[np.flatnonzero(given)[:surplus]] -= 1
    return given


Kind = Callable[[Indices, int, np.random.Generator, float, int], Partition]
KINDS: Mapping[str, Kind] = {
    "iid": lambda labels, clients, rng, alpha, per_client: iid(labels, clients, rng),
    "dirichlet": lambda labels, clients, rng, alpha, per_client: dirichlet(labels, clients, rng, alpha),
    "dirichlet_equal": lambda labels, clients, rng, alpha, per_client: dirichlet_equal(labels, clients, rng, alpha),
    "shards": lambda labels, clients, rng, alpha, per_client: shards(labels, clients, rng, per_client),
}
"""The partitions that follow from labels, by name. ``natural`` is not among them, because it follows from groups."""
