"""Decides what follows a failed call. The serial pool and the actor pool carry out the decisions."""

import logging
from dataclasses import dataclass
from enum import Enum

from fednar_ray.config import ExecutionSettings
from fednar_ray.core.client_names import ClientNames, describe_clients
from fednar_ray.core.errors import RoundAborted, is_of_device, is_of_memory
from fednar_ray.core.exclusion import Exclusion, ExclusionReason

log = logging.getLogger("fednar_ray")


class FailureKind(Enum):
    """How a call failed. The value is the reason that is reported if the failure has no message."""

    ACTOR_LOST = "its actor was lost"
    TIMED_OUT = "it took longer than execution.client_timeout_seconds"
    OUT_OF_MEMORY = "out of memory"
    RAISED = "an exception"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed call for one client group.

    Attributes:
        client_ids: The clients of the group.
        kind: How the call failed.
        reason: The failure in one line, for messages.
        attempts: How many calls for this group have failed so far, including this one.
    """

    client_ids: tuple[int, ...]
    kind: FailureKind
    reason: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Retry:
    """Train the group again, on another actor if there is one."""


@dataclass(frozen=True, slots=True)
class Split:
    """Train the two halves of the group separately. Each half starts with ``attempts`` failed attempts."""

    attempts: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Leave the one client of the group out of the round."""


@dataclass(frozen=True, slots=True)
class Abort:
    """End the run, since too few clients remain in the round."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailurePolicy:
    """Decides what follows a failed call.

    Attributes:
        retries: How often a client group is trained again after its first failure.
        min_clients: How many clients must remain in a round.
        client_names: How messages call the clients.
        private: Whether who takes part is private: then the log is silent about clients, and no round is aborted.

    Examples:
        >>> policy = FailurePolicy(retries=0, min_clients=1)
        >>> failure = Failure(client_ids=(3, 5), kind=FailureKind.RAISED, reason="ValueError: no", attempts=1)
        >>> policy.decide(failure, remaining=8, clients=8)
        Split(attempts=0)
    """

    retries: int
    min_clients: int
    client_names: ClientNames = ()
    private: bool = False

    @classmethod
    def from_settings(
        cls, settings: ExecutionSettings, client_names: ClientNames = (), *, private: bool = False
    ) -> "FailurePolicy":
        """Returns the policy that the ``execution`` section asks for."""
        least = 0 if private else settings.min_clients
        return cls(retries=settings.retries, min_clients=least, client_names=client_names, private=private)

    def decide(self, failure: Failure, *, remaining: int, clients: int) -> Retry | Split | Drop | Abort:
        """Retries a group, then halves it to find the client at fault, and then drops that client or aborts the round.

        A group that ran out of memory is halved at once, because it would run out of memory again.

        Args:
            failure: What failed.
            remaining: Clients of the round that are not dropped yet, including those of the failed group.
            clients: Clients that the round started with.
        """
        is_group = len(failure.client_ids) > 1
        if is_group and failure.kind is FailureKind.OUT_OF_MEMORY:
            return Split(attempts=0)
        if failure.attempts <= self.retries:
            return Retry()
        if is_group:
            return Split(attempts=self.retries)  # each half has one attempt left
        if remaining > self.min_clients:
            return Drop()
        left = f"{remaining - 1} of {clients} clients remain, at least {self.min_clients} required"
        exclusion = Exclusion(ExclusionReason.FAILED, failure.reason)
        return Abort(f"{left}; {describe_clients(failure.client_ids, self.client_names)} excluded: {exclusion}")


class RoundFailures:
    """Applies a policy to the failures of one round: counts the dropped clients and logs what is tried next."""

    def __init__(self, policy: FailurePolicy, round_index: int, clients: int) -> None:
        self._policy, self._round_index, self._clients = policy, round_index, clients
        self._remaining = clients

    def handle(self, failure: Failure) -> Retry | Split | Drop:
        """Decides what the pool does about a failure, and logs it.

        Raises:
            RoundAborted: Fewer clients than the policy requires would remain.
        """
        decision = self._policy.decide(failure, remaining=self._remaining, clients=self._clients)
        if isinstance(decision, Abort):
            raise RoundAborted(self._round_index, decision.reason, ExclusionReason.FAILED)
        if isinstance(decision, Drop):
            self._remaining -= 1  # the round loop logs which client was excluded
        else:
            self._log(failure.client_ids, failure.reason, _describe(decision))
        return decision

    def log_term(self, client_ids: tuple[int, ...], reason: str) -> None:
        """Logs that one of several client groups failed, which are trained one by one next."""
        self._log(client_ids, reason, "training each client group by itself")

    def _log(self, client_ids: tuple[int, ...], reason: str, next_step: str) -> None:
        who = describe_clients(client_ids, self._policy.client_names)
        level = logging.DEBUG if self._policy.private else logging.WARNING
        log.log(level, "round %d, %s: %s; %s", self._round_index, who, reason, next_step)


def _describe(decision: Retry | Split) -> str:
    if isinstance(decision, Retry):
        return "retrying"
    return "training its two halves separately (the sum is the same up to rounding, not bit for bit)"


def classify_error(error: BaseException) -> FailureKind:
    """Classifies the failure of a call whose training code raised ``error``."""
    if is_of_memory(error):
        return FailureKind.OUT_OF_MEMORY
    return FailureKind.ACTOR_LOST if is_of_device(error) else FailureKind.RAISED


def describe_error(error: BaseException) -> str:
    """Returns the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
