"""What is done about a call that failed: pure functions, which the pools carry out."""

import logging
from dataclasses import dataclass
from enum import Enum

from fednar_ray.config import ExecutionSettings
from fednar_ray.core.errors import RoundAborted, is_of_memory

log = logging.getLogger("fednar_ray")


class FailureKind(Enum):
    """How a call failed."""

    LOST = "its actor was lost"
    TIMED_OUT = "it took longer than execution.client_timeout_seconds"
    OUT_OF_MEMORY = "out of memory"
    RAISED = "an exception"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailurePolicy:
    """How much a run puts up with."""

    retries: int
    min_clients: int

    @classmethod
    def from_settings(cls, settings: ExecutionSettings) -> "FailurePolicy":
        """As the settings say."""
        return cls(retries=settings.retries, min_clients=settings.min_clients)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed call of one client group."""

    kind: FailureKind
    clients: int  # of the client group
    attempts: int  # that failed so far, this one included
    remaining: int  # clients of the round that are not lost yet, these included


class Decision(Enum):
    """What follows from a failure."""

    RETRY = "tried again"
    SPLIT = "trained in halves"
    DROP = "dropped"
    ABORT = "the round is aborted"


def decide(failure: Failure, tolerance: FailurePolicy) -> Decision:
    """Try again so often; then halve the client group, to find who is to blame; drop a single client, or abort.

    A client group that ran out of memory is halved at once: it would again.
    """
    if failure.clients > 1 and failure.kind is FailureKind.OUT_OF_MEMORY:
        return Decision.SPLIT
    if failure.attempts <= tolerance.retries:
        return Decision.RETRY
    if failure.clients > 1:
        return Decision.SPLIT
    return Decision.DROP if failure.remaining > tolerance.min_clients else Decision.ABORT


def kind_of(error: BaseException) -> FailureKind:
    """What an exception of a client means."""
    if is_of_memory(error):
        return FailureKind.OUT_OF_MEMORY
    return (
        FailureKind.LOST if "CUDA error" in str(error) else FailureKind.RAISED
    )  # the process's CUDA context is of no more use


class FailureTally:
    """The failures of one round: each is judged, and said."""

    def __init__(self, tolerance: FailurePolicy, round_index: int, clients: int) -> None:
        """``clients``: how many the round trains."""
        self._tolerance, self._round_index, self._remaining = tolerance, round_index, clients

    def judge(self, client_ids: tuple[int, ...], kind: FailureKind, reason: str, attempts: int) -> Decision:
        """What follows from the ``attempts``-th failure of a client group. Raises RoundAborted where too few remain."""
        failure = Failure(kind=kind, clients=len(client_ids), attempts=attempts, remaining=self._remaining)
        decision = decide(failure, self._tolerance)
        names = ", ".join(map(str, client_ids[:10])) + (", …" if len(client_ids) > 10 else "")
        who = f"client {names}" if len(client_ids) == 1 else f"clients {names}"
        if decision is Decision.ABORT:
            least = self._tolerance.min_clients
            raise RoundAborted(self._round_index, f"fewer than {least} clients remain; the last was {who}: {reason}")
        rounding = " (their sum is equal to rounding, not to the bit)" if decision is Decision.SPLIT else ""
        log.warning("round %d, %s: %s; %s%s", self._round_index, who, reason, decision.value, rounding)
        self._remaining -= decision is Decision.DROP
        return decision

    def attempts_of_a_half(self, kind: FailureKind) -> int:
        """What the halves of a client group inherit: one try more, where the client group had had all of its own."""
        return 0 if kind is FailureKind.OUT_OF_MEMORY else self._tolerance.retries


def reason_of(error: BaseException) -> str:
    """An error in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
