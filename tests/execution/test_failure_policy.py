"""The decision after a failed call."""

import logging

import pytest
import torch

from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.exclusion import ExclusionReason
from fednar_ray.execution.failure_policy import (
    Abort,
    Drop,
    Failure,
    FailureKind,
    FailurePolicy,
    Retry,
    RoundFailures,
    Split,
    classify_error,
    describe_error,
)

FAILED = "excluded: training failed"


def build_failure(
    *client_ids: int, kind: FailureKind = FailureKind.RAISED, reason: str = "x", attempts: int = 1
) -> Failure:
    return Failure(client_ids=client_ids, kind=kind, reason=reason, attempts=attempts)


@pytest.mark.parametrize(
    ("kind", "clients", "attempts", "remaining", "expected"),
    [
        (FailureKind.ACTOR_LOST, 5, 1, 9, Retry()),
        (FailureKind.ACTOR_LOST, 5, 2, 9, Retry()),
        (
            FailureKind.ACTOR_LOST,
            5,
            3,
            9,
            Split(attempts=2),
        ),  # one of the five clients is at fault; each half gets one attempt
        (FailureKind.RAISED, 1, 3, 9, Drop()),
        (FailureKind.TIMED_OUT, 1, 3, 4, Drop()),
        (FailureKind.TIMED_OUT, 1, 3, 3, Abort(f"2 of 9 clients remain, at least 3 required; client 0 {FAILED}: x")),
        (FailureKind.OUT_OF_MEMORY, 5, 1, 9, Split(attempts=0)),  # it would run out of memory again
        (FailureKind.OUT_OF_MEMORY, 1, 1, 9, Retry()),  # another actor may have more memory
        (FailureKind.OUT_OF_MEMORY, 1, 3, 9, Drop()),
    ],
)
def test_the_policy_retries_twice_then_splits_then_drops_the_client(
    kind: FailureKind, clients: int, attempts: int, remaining: int, expected: Retry | Split | Drop | Abort
) -> None:
    policy, failure = (
        FailurePolicy(retries=2, min_clients=3),
        build_failure(*range(clients), kind=kind, attempts=attempts),
    )
    assert policy.decide(failure, remaining=remaining, clients=9) == expected


def test_a_round_counts_dropped_clients_and_aborts_with_the_cause() -> None:
    failures = RoundFailures(FailurePolicy(retries=0, min_clients=2), round_index=7, clients=3)
    assert failures.handle(build_failure(5, reason="ValueError: no")) == Drop()
    with pytest.raises(RoundAborted) as raised:
        failures.handle(build_failure(6, reason="OSError: gone"))
    text = (
        "round 7 aborted: 1 of 3 clients remain, at least 2 required; client 6 excluded: training failed: OSError: gone"
    )
    assert (str(raised.value), raised.value.cause) == (text, ExclusionReason.FAILED)


def test_the_log_names_the_failure_and_the_next_attempt(caplog: pytest.LogCaptureFixture) -> None:
    failures = RoundFailures(FailurePolicy(retries=1, min_clients=1), round_index=3, clients=20)
    with caplog.at_level(logging.WARNING, "fednar_ray"):
        failures.handle(build_failure(4, reason="OSError: gone"))
        failures.handle(build_failure(*range(12), reason="OSError: gone", attempts=2))
    first, second = caplog.messages
    assert first == "round 3, client 4: OSError: gone; retrying"
    assert second.startswith("round 3, clients 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …: OSError: gone; training its two halves")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("x"), FailureKind.RAISED),
        (MemoryError(), FailureKind.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: device-side assert triggered"), FailureKind.ACTOR_LOST),
        (torch.OutOfMemoryError("CUDA error: out of memory"), FailureKind.OUT_OF_MEMORY),
    ],
)
def test_exceptions_are_classified(error: Exception, kind: FailureKind) -> None:
    assert classify_error(error) is kind


def test_an_impossible_allocation_is_classified_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50, dtype=torch.float64)
    assert classify_error(raised.value) is FailureKind.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("error", "text"), [(MemoryError(), "MemoryError"), (OSError("\n gone\nfor good"), "OSError: gone")]
)
def test_an_error_is_described_in_one_line(error: Exception, text: str) -> None:
    assert describe_error(error) == text
