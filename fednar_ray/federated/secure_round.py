"""A round in which the driver learns only the sum of the updates: secure aggregation, as the round loop sees it."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fednar_ray.algorithms.server_optimizers import RoundAggregate
from fednar_ray.core.client_names import ClientNames, describe_client
from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.flat_params import FloatVector
from fednar_ray.core.messages import Broadcast, ClientMetrics, ClientsLost, GroupTask
from fednar_ray.core.timing import Phases
from fednar_ray.federated.exclusion_record import ExclusionRecord
from fednar_ray.federated.masked_vector import EXTRA_WORDS, DecodedSum, decode_sum
from fednar_ray.secure.messages import (
    Attempt,
    MaskedBroadcast,
    MaskedUpdate,
    Reveal,
    UnmaskRequest,
    UnmaskTask,
    Withheld,
)
from fednar_ray.secure.plan import SecurePlan, compute_threshold
from fednar_ray.secure.words import WordVector


@runtime_checkable
class SecurePool(Protocol):
    """A pool whose clients mask their updates. Results are in the order of the tasks."""

    run: str  # what the clients call it

    def list_public_keys(self, client_ids: Sequence[int]) -> Mapping[int, bytes]:
        """Returns the public keys of those clients that have sent one."""

    def train_masked(
        self, request: MaskedBroadcast, tasks: Sequence[GroupTask]
    ) -> Iterator[MaskedUpdate | Withheld | ClientsLost]:
        """Yields the masked update of each task, each of one client."""

    def reveal(self, request: UnmaskRequest, tasks: Sequence[UnmaskTask]) -> Iterator[Reveal | ClientsLost]:
        """Yields the shares of each task. Not all of them are needed."""


@dataclass(slots=True, kw_only=True)
class SecureSums(ExclusionRecord):
    """The sums of a round over the clients whose masked updates arrived. It holds nothing of a single client.

    Attributes:
        arrived: The clients that are in the sums.
        decoded: What was summed; None until the sum is unmasked.
        bytes_down: What clients received.
        bytes_up: What they sent.
        client_seconds: How long they trained.
    """

    arrived: tuple[int, ...] = ()
    decoded: DecodedSum | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    client_seconds: float = 0.0

    @property
    def metrics(self) -> tuple[ClientMetrics, ...]:
        """Nothing: no metrics of single clients are known."""
        return ()

    @property
    def shared_changes(self) -> Mapping[str, FloatVector]:
        """Nothing: algorithms with shared vectors are refused."""
        return {}

    def find_included(self) -> npt.NDArray[np.bool_]:
        """Returns one ``True`` for each client in the sums."""
        return np.ones(len(self.arrived), dtype=np.bool_)

    def compute_mean_buffers(self) -> None:
        """Returns None: models with running statistics are refused."""
        return

    def aggregate(self, population: int, epsilon: float) -> RoundAggregate:
        """Returns the round's aggregate; the arguments are those of ``RoundSums.aggregate``."""
        assert self.decoded is not None
        return RoundAggregate(
            delta=self.decoded.compute_mean(),
            mean_squared_norm=self.decoded.totals["squared_norm"] / self.decoded.weight,
            clients=len(self.arrived),
            population=population,
            epsilon=epsilon,
        )

    def compute_training_metrics(self) -> dict[str, float]:
        """Returns the means over the clients that a plain round has as well."""
        assert self.decoded is not None
        totals = self.decoded.totals
        return {
            "train_loss": totals["loss"] / totals["examples"],
            "clip_fraction": totals["clipped_steps"] / totals["steps"],
            "effective_weight_decay": totals["decay"] / totals["examples"],
            "step_norm": totals["step_norm"] / totals["steps"],
        }

    def compute_metrics(self) -> dict[str, float]:
        """Returns the metrics that are not those of a plain round, or differ there."""
        assert self.decoded is not None
        return {
            "client_seconds": self.client_seconds,
            "bytes_down": float(self.bytes_down),
            "bytes_up": float(self.bytes_up),
            "secure/survivors": float(len(self.arrived)),
            "secure/saturated": self.decoded.totals["saturated"],
            "secure/clipped_updates": self.decoded.totals["clipped_updates"],
        }


def train_securely(
    plan: SecurePlan, pool: object, broadcast: Broadcast, tasks: Sequence[GroupTask], names: ClientNames, phases: Phases
) -> SecureSums:
    """Trains the clients of a round, and returns the sums over those whose masked updates arrive.

    Args:
        plan: What driver and clients have agreed on.
        pool: The pool, whose clients can mask.
        broadcast: What the clients receive.
        tasks: The clients, each alone, in dispatch order.
        names: How messages call the clients.
        phases: The stopwatches of the round.

    Raises:
        RoundAborted: Updates or shares of fewer than t clients arrive. The attempt is abandoned, and its masks are
            not used again.
    """
    assert isinstance(pool, SecurePool), "the pool cannot mask updates"
    private = broadcast.norm_bound is not None
    sums = SecureSums(round_index=broadcast.round_index, client_names=names, quiet=private)
    attempt = _start_attempt(plan, pool, sums, tasks)
    masked = _Collector(sums, attempt, len(broadcast.parameters) + EXTRA_WORDS)
    request = MaskedBroadcast(broadcast=broadcast, attempt=attempt)
    sums.bytes_down += request.nbytes * len(attempt.keys)
    with phases.measure("broadcast"):
        updates = pool.train_masked(request, [task for task in tasks if task.client_ids[0] in attempt.keys])
    for update in phases.measure_items("train", updates):
        masked.add(update)
    with phases.measure("train"):
        words = masked.unmask(pool)
    sums.decoded = decode_sum(plan, words, broadcast.scalars)
    return sums


def _start_attempt(plan: SecurePlan, pool: SecurePool, sums: SecureSums, tasks: Sequence[GroupTask]) -> Attempt:
    """Returns a new attempt among the clients of the tasks. Those without a public key are left out of the sum."""
    members = tuple(sorted(task.client_ids[0] for task in tasks))
    keys = pool.list_public_keys(members)
    for client_id in members:
        if client_id not in keys:
            sums.exclude(client_id, Exclusion(ExclusionReason.FAILED, "it has sent no public key"))
    threshold = compute_threshold(plan.threshold, len(members))
    _check_enough(sums, len(keys), len(members), threshold, "public keys")
    return Attempt(
        run=pool.run,
        round_index=sums.round_index,
        number=secrets.randbits(63),
        members=members,
        keys=keys,
        threshold=threshold,
    )


class _Collector:
    """Collects what the clients of an attempt send."""

    def __init__(self, sums: SecureSums, attempt: Attempt, length: int) -> None:
        from fednar_ray.secure.masked_sum import MaskedSum  # needs ``cryptography``, which takes time to import

        self._sums, self._attempt, self._length, self._masked = sums, attempt, length, MaskedSum(attempt)

    def add(self, update: MaskedUpdate | Withheld | ClientsLost) -> None:
        """Adds an update to the sum, or notes why a client is left out."""
        if isinstance(update, MaskedUpdate) and update.vector.shape == (self._length,):
            self._masked.add(update)
            self._sums.bytes_up += update.nbytes
            self._sums.client_seconds += update.train_seconds
            return
        for client_id in update.client_ids:
            self._sums.exclude(client_id, self._explain(update))

    def _explain(self, update: MaskedUpdate | Withheld | ClientsLost) -> Exclusion:
        """Returns why a client is left out."""
        match update:
            case MaskedUpdate():
                text = f"masked update {list(update.vector.shape)} instead of {[self._length]}"
                return Exclusion(ExclusionReason.WRONG_SHAPE, text)
            case Withheld():
                return update.exclusion
            case ClientsLost():
                return Exclusion(ExclusionReason.FAILED, update.reason)

    def unmask(self, pool: SecurePool) -> WordVector:
        """Asks the clients for shares, and returns the sum without masks. Raises RoundAborted if too few answer."""
        sums, attempt, masked = self._sums, self._attempt, self._masked
        sums.arrived = masked.arrived
        _check_enough(sums, len(masked.arrived), len(attempt.members), attempt.threshold, "masked updates")
        request, tasks = masked.build_request(), masked.build_tasks()
        answers = list(pool.reveal(request, tasks))
        reveals = [answer for answer in answers if isinstance(answer, Reveal)]
        packages = sum(len(package) for task in tasks for package in task.packages.values())
        sums.bytes_down += request.nbytes * len(tasks) + packages
        sums.bytes_up += sum(reveal.nbytes for reveal in reveals)
        for lost in answers:
            if isinstance(lost, ClientsLost):
                text = f"was lost while the sum was unmasked; its update is in it: {lost.reason}"
                sums.warn(lost.client_ids[0], text)
        _check_enough(sums, len(reveals), len(attempt.members), attempt.threshold, "answers to unmask the sum")
        return masked.unmask(reveals)


def _check_enough(sums: SecureSums, count: int, members: int, threshold: int, what: str) -> None:
    """Raises RoundAborted if fewer clients than the threshold have sent something."""
    if count >= threshold:
        return
    if sums.quiet:
        text = f"{what} of too few clients arrived, secure_aggregation.threshold requires {threshold} of {members}"
        raise RoundAborted(sums.round_index, text)
    text = f"{what} of {count} of {members} clients arrived, secure_aggregation.threshold requires {threshold}"
    excluded = next(iter(sums.exclusions.items()), None)
    if excluded is None:
        raise RoundAborted(sums.round_index, text)
    who = describe_client(excluded[0], sums.client_names)
    raise RoundAborted(sums.round_index, f"{text}; {who} excluded: {excluded[1]}", excluded[1].reason)
