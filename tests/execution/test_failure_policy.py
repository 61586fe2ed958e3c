"""What fails within a round is tried again elsewhere with the same result, isolated, or dropped, and never hangs."""

import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._C import _functorch

import fednar_ray as fr
from fednar_ray.core.errors import BadInput, BuffersChanged, ModelError, RoundAborted, RunFailed
from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.messages import Broadcast, ClientsLost, GroupTask
from fednar_ray.execution.actor_pool import ActorPool
from fednar_ray.execution.failure_policy import (
    Decision,
    Failure,
    FailureKind,
    FailurePolicy,
    FailureTally,
    decide,
    kind_of,
)
from fednar_ray.execution.queue import CallQueue
from fednar_ray.experiments.placement import place, resolve
from fednar_ray.experiments.prepare import prepare
from tests.conftest import small_federation

SIZES = (7, 30, 12, 3, 21, 9, 16)
BAD, SENTINEL = 4, 77.0  # the client whose examples hold the number


# ---- the policy


@pytest.mark.parametrize(
    ("kind", "clients", "attempts", "remaining", "expected"),
    [
        (FailureKind.LOST, 5, 1, 9, Decision.RETRY),
        (FailureKind.LOST, 5, 2, 9, Decision.RETRY),
        (FailureKind.LOST, 5, 3, 9, Decision.SPLIT),  # one of the five is to blame: find it
        (FailureKind.RAISED, 1, 3, 9, Decision.DROP),
        (FailureKind.TIMED_OUT, 1, 3, 4, Decision.DROP),
        (FailureKind.TIMED_OUT, 1, 3, 3, Decision.ABORT),  # dropping it would leave 2, and 3 must remain
        (FailureKind.OUT_OF_MEMORY, 5, 1, 9, Decision.SPLIT),  # it would run out again
        (FailureKind.OUT_OF_MEMORY, 1, 1, 9, Decision.RETRY),  # elsewhere there may be more
        (FailureKind.OUT_OF_MEMORY, 1, 3, 9, Decision.DROP),
    ],
)
def test_two_retries_then_halves_then_the_one_client(
    kind: FailureKind, clients: int, attempts: int, remaining: int, expected: Decision
) -> None:
    failure = Failure(kind=kind, clients=clients, attempts=attempts, remaining=remaining)
    assert decide(failure, FailurePolicy(retries=2, min_clients=3)) is expected


def test_the_ledger_counts_what_it_drops_and_aborts_with_the_cause() -> None:
    ledger = FailureTally(FailurePolicy(retries=0, min_clients=2), round_index=7, clients=3)
    assert ledger.judge((5,), FailureKind.RAISED, "ValueError: no", 1) is Decision.DROP
    with pytest.raises(RoundAborted, match=r"round 7 aborted: fewer than 2 clients remain; .*client 6: OSError: gone"):
        ledger.judge((6,), FailureKind.RAISED, "OSError: gone", 1)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("x"), FailureKind.RAISED),
        (MemoryError(), FailureKind.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), FailureKind.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: device-side assert triggered"), FailureKind.LOST),
    ],
)
def test_an_exception_says_what_failed(error: Exception, kind: FailureKind) -> None:
    assert kind_of(error) is kind


def test_an_allocation_that_no_machine_can_serve_is_known_as_one() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50, dtype=torch.float64)
    assert kind_of(raised.value) is FailureKind.OUT_OF_MEMORY


# ---- the order of results


def tasks(*groups: tuple[int, ...]) -> list[GroupTask]:
    return [GroupTask(client_ids=group, states=None) for group in groups]


def test_results_leave_in_the_order_of_the_tasks_in_whatever_order_they_arrive() -> None:
    for order in itertools.permutations(range(3)):
        queue = CallQueue(tasks((1, 2), (3,), (4,)), [None] * 3)
        calls, left = list(queue.waiting()), []
        for call in calls:
            queue.sent(call)
        for index in order:
            queue.arrive(calls[index], index)
            left += queue.due()
        assert left == [0, 1, 2]
        assert not queue.unfinished


def test_halves_take_the_place_of_their_group() -> None:
    queue = CallQueue(tasks((1, 2, 3), (4,)), [None] * 2)
    first, second = queue.waiting()
    queue.sent(first)
    queue.sent(second)
    queue.arrive(second, "4")
    queue.split(first, attempts=2)
    halves = list(queue.waiting())
    assert [(h.task.client_ids, h.attempts, queue.is_due(h)) for h in halves] == [((1, 2), 2, True), ((3,), 2, False)]
    queue.sent(halves[0])
    queue.split(halves[0], attempts=2)
    for call in list(queue.waiting()):
        queue.sent(call)
        queue.arrive(call, call.task.client_ids)
    assert list(queue.due()) == [(1,), (2,), (3,), "4"]


def test_a_half_carries_its_clients_share_of_the_task() -> None:
    rows = tuple(np.full(2, i, dtype=np.float32) for i in range(3))
    task = GroupTask(client_ids=(7, 8, 9), states=rows, factors=(0.0, 1.0, 0.5), rows=True)
    first, second = task.halves()
    assert (first.client_ids, first.factors, first.rows) == ((7, 8), (0.0, 1.0), True)
    assert (second.client_ids, second.factors) == ((9,), (0.5,))
    assert second.states is not None
    assert second.states[0] is rows[2]


# ---- on real actors


def unwrapped(x: torch.Tensor) -> torch.Tensor:
    """Within ``torch.func.vmap``, the examples of the whole client group."""
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x


class Leaves(BaseException):
    """Not an ``Exception``, as ``SystemExit`` is none."""


class Trap(torch.nn.Module):
    """A model that does ``what`` when it meets the bad client's examples: once, or always."""

    def __init__(self, what: str, marker: Path | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.what, self.marker = what, marker
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.what and bool((unwrapped(x) == SENTINEL).any()) and self._springs():
            if self.what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "hang":
                time.sleep(3600)
            if self.what == "exit":
                sys.exit(3)
            if self.what == "interrupt":
                raise KeyboardInterrupt
            if self.what == "leave":
                raise Leaves("for good")
            raise ArithmeticError("this client cannot be trained")
        return self.layers(torch.where(x == SENTINEL, 0.0, x))

    def _springs(self) -> bool:
        if self.marker is None:
            return True
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Crowded(Trap):
    """A model that runs out of memory where more than two clients train together."""

    def __init__(self) -> None:
        super().__init__("", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if unwrapped(x).ndim > 2 and len(unwrapped(x)) > 2:
            raise MemoryError
        return super().forward(x)


def federation(sizes: tuple[int, ...] = SIZES, bad: int = BAD) -> fr.Federation:
    whole = small_federation(sizes)
    start, stop = whole.shards.offsets[bad : bad + 2]
    whole.shards.examples.x[start:stop, 0] = SENTINEL
    return whole


def experiment(execution: dict[str, Any], preset: str = "fedavg", **more: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "federation": {"rounds": 3, "local_epochs": 1, "batch_size": 4, **more.pop("federation", {})},
            "algorithm": {"name": preset, "local_lr": 0.1},
            "regularizer": {"name": "fednar", "weight_decay": 0.1, "clip_bound": 0.5},
            "execution": {"gpus_per_actor": 0, "cpus_per_actor": 0.5, "vectorize": 1, **execution},
            **more,
        }
    )


POOLED = {"placement": "pooled", "actors": 2}


def trained(
    settings: fr.Experiment, model: torch.nn.Module, session: fr.RaySession | None = None
) -> list[fr.RoundReport]:
    return list(fr.iter_rounds(settings, federation=federation(), model=model, session=session))


def undisturbed(preset: str = "fedavg", **more: Any) -> bytes:
    return trained(experiment({"placement": "serial"}, preset, **more), Trap("", None))[-1].parameters.tobytes()


def without_the_bad_client(rounds: int = 3) -> bytes:
    others = [[i for i in range(len(SIZES)) if i != BAD]] * rounds
    return undisturbed(federation={"participation": others, "rounds": rounds})


@pytest.mark.ray
@pytest.mark.parametrize("what", ["die", "hang", "raise", "exit"])
def test_what_fails_once_changes_nothing(what: str, session: fr.RaySession, tmp_path: Path) -> None:
    settings = experiment({**POOLED, "client_timeout_seconds": 3 if what == "hang" else None}, "scaffold")
    reports = trained(settings, Trap(what, tmp_path / "sprung"), session)
    assert (tmp_path / "sprung").exists()
    assert not any(report.exclusions for report in reports)
    assert reports[-1].parameters.tobytes() == undisturbed("scaffold")


@pytest.mark.ray
@pytest.mark.parametrize(("what", "retries", "rounds"), [("die", 0, 1), ("raise", 1, 2), ("exit", 1, 1)])
def test_a_poisoned_client_is_dropped_and_nobody_else(
    what: str, retries: int, rounds: int, session: fr.RaySession
) -> None:
    settings = experiment({**POOLED, "retries": retries}, federation={"rounds": rounds})
    reports = trained(settings, Trap(what, None), session)
    assert [set(report.exclusions) for report in reports] == [{BAD}] * rounds
    reasons = {"die": "actor was lost", "raise": "ArithmeticError", "exit": "raised SystemExit(3)"}
    assert reasons[what] in str(reports[0].exclusions[BAD])
    assert [report.metrics["clients_trained"] for report in reports] == [6] * rounds
    assert reports[-1].parameters.tobytes() == without_the_bad_client(rounds)


@pytest.mark.ray
def test_a_poisoned_client_is_found_within_its_group(session: fr.RaySession, caplog: pytest.LogCaptureFixture) -> None:
    def of(*clients: int) -> dict[str, Any]:
        return {"rounds": 1, "participation": [list(clients)]}

    settings = experiment({**POOLED, "retries": 0, "vectorize": 2}, federation=of(0, 1, 2, BAD))
    with caplog.at_level(logging.WARNING, "fednar_ray"):
        (report,) = trained(settings, Trap("die", None), session)
    assert set(report.exclusions) == {BAD}
    expected = np.frombuffer(undisturbed(federation=of(0, 1, 2)), dtype=np.float32)
    np.testing.assert_allclose(report.parameters, expected, rtol=1e-4, atol=1e-6)
    assert "trained in halves (their sum is equal to rounding, not to the bit)" in caplog.text


@pytest.mark.parametrize("placement", ["serial", pytest.param("pooled", marks=pytest.mark.ray)])
def test_groups_that_run_out_of_memory_are_halved_and_nobody_is_lost(
    placement: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    session = request.getfixturevalue("session") if placement == "pooled" else None
    settings = experiment({"placement": placement, "vectorize": 7})
    with caplog.at_level(logging.WARNING, "fednar_ray"):
        reports = trained(settings, Crowded(), session)
    assert not any(report.exclusions for report in reports)
    assert "MemoryError; trained in halves (their sum is equal to rounding" in caplog.text
    expected = trained(experiment({"placement": "serial", "vectorize": 2}), Trap("", None))[-1]
    np.testing.assert_allclose(reports[-1].parameters, expected.parameters, rtol=1e-4, atol=1e-6)


def test_a_client_that_raises_is_dropped_without_ray_too() -> None:
    reports = trained(experiment({"placement": "serial"}), Trap("raise", None))
    assert [dict(report.exclusions) for report in reports] == [
        {BAD: Exclusion(ExclusionReason.FAILED, "ArithmeticError: this client cannot be trained")}
    ] * 3
    assert reports[-1].parameters.tobytes() == without_the_bad_client()


@pytest.mark.parametrize("placement", ["serial", pytest.param("pooled", marks=pytest.mark.ray)])
def test_too_few_that_remain_abort_the_round_with_the_cause(placement: str, request: pytest.FixtureRequest) -> None:
    session = request.getfixturevalue("session") if placement == "pooled" else None
    settings = experiment({"placement": placement, "min_clients": 7, "retries": 0})
    with pytest.raises(RoundAborted, match=r"fewer than 7 clients remain.*client 4: ArithmeticError: this client"):
        trained(settings, Trap("raise", None), session)


@pytest.mark.ray
def test_a_dedicated_actor_that_dies_is_replaced_with_its_own_shard(session: fr.RaySession, tmp_path: Path) -> None:
    def run(execution: dict[str, Any], model: torch.nn.Module) -> bytes:
        settings, whole = experiment(execution, "scaffold"), federation(SIZES[:3], bad=1)
        *_, last = fr.iter_rounds(settings, federation=whole, model=model, session=session)
        return last.parameters.tobytes()

    dedicated = run({"placement": "dedicated"}, Trap("die", tmp_path / "sprung"))
    assert (tmp_path / "sprung").exists()
    assert dedicated == run({"placement": "serial"}, Trap("", None))


SCREENED: dict[str, Any] = {"screening": {"max_deviation": 1.0}, "attacks": {"scaled": 0.3, "factor": 30}}


# ---- code that ends the process, in the driver's own


@pytest.mark.parametrize(("what", "reason"), [("exit", "SystemExit(3)"), ("leave", "Leaves(for good)")])
@pytest.mark.parametrize("screening", [{}, {"max_deviation": 50}], ids=["one phase", "two phases"])
def test_an_exit_of_one_client_is_its_own_failure(what: str, reason: str, screening: dict[str, Any]) -> None:
    settings = experiment({"placement": "serial", "retries": 1}, screening=screening)
    reports = trained(settings, Trap(what, None))
    expected = Exclusion(ExclusionReason.FAILED, f"UserCodeExited: the code raised {reason}")
    assert [report.exclusions for report in reports] == [{BAD: expected}] * 3
    assert reports[-1].parameters.tobytes() == without_the_bad_client()


def test_an_exit_that_does_not_come_again_changes_nothing(tmp_path: Path) -> None:
    reports = trained(experiment({"placement": "serial"}), Trap("exit", tmp_path / "sprung"))
    assert (tmp_path / "sprung").exists()
    assert reports[-1].parameters.tobytes() == undisturbed()


def test_an_interrupt_still_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(experiment({"placement": "serial"}), Trap("interrupt", None))


@pytest.mark.parametrize("always", [True, False])
def test_an_exit_in_the_trial_is_a_refusal(always: bool) -> None:
    calls: list[int] = []

    class Exits(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            if always or len(calls) == 4:
                sys.exit(5)
            return super().forward(x)

    with pytest.raises(BadInput, match=r"raised SystemExit\(5\)"):
        trained(experiment({"placement": "serial"}), Exits(2, 3))


def test_an_exit_while_a_function_builds_the_model_is_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exits_of_a_user.py").write_text("import sys\n\ndef build():\n    sys.exit('usage: …')\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = experiment({"placement": "serial"}, model={"function": "exits_of_a_user.build"})
    with pytest.raises(ModelError, match=r"exits_of_a_user.build: fails .*raised SystemExit\(usage: …\)"):
        next(fr.iter_rounds(settings, federation=federation()))


@pytest.mark.parametrize("what", ["exit", "raise"])
def test_what_fails_in_scoring_ends_the_run_and_names_the_split(what: str) -> None:
    class FailsWhenScoring(Trap):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if self.training else torch.full_like(x, SENTINEL))

    settings = experiment({"placement": "serial"}, federation={"participation": [[0, 1]] * 3})
    with pytest.raises(RunFailed, match=r"round 0: test cannot be scored: .*(SystemExit|ArithmeticError)"):
        trained(settings, FailsWhenScoring(what, None))


@pytest.mark.ray
def test_buffers_that_change_after_all_end_a_run_on_actors_too(session: fr.RaySession) -> None:
    class Late(Trap):
        def __init__(self) -> None:
            super().__init__("", None)
            self.register_buffer("mask", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool((unwrapped(x) == SENTINEL).any()):
                self.mask += 1
            return super().forward(x)

    with pytest.raises(BuffersChanged, match="training changed buffer mask"):
        trained(experiment(POOLED), Late(), session)


@pytest.mark.ray
@pytest.mark.parametrize("preset", ["fedavg", "scaffold", "feddyn"])
def test_two_phases_give_the_same_bytes_everywhere(preset: str, session: fr.RaySession) -> None:
    model = Trap("", None)
    expected = trained(experiment({"placement": "serial", "vectorize": 2}, preset, **SCREENED), model)
    reports = trained(experiment({**POOLED, "vectorize": 2}, preset, **SCREENED), model, session)
    assert any(report.exclusions for report in expected)
    assert [r.exclusions for r in reports] == [r.exclusions for r in expected]
    assert reports[-1].parameters.tobytes() == expected[-1].parameters.tobytes()


@contextmanager
def two_actors(
    session: fr.RaySession, model: torch.nn.Module, **execution: Any
) -> Iterator[tuple[ActorPool, Broadcast]]:
    """A pool that is ready, and a round for it."""
    prepared = prepare(experiment({**POOLED, "vectorize": 2, **execution}), federation(), model)
    broadcast = Broadcast(
        round_index=0,
        scalars=prepared.experiment.scalars(0),
        parameters=np.full(prepared.model_bytes // 4, 0.1, dtype=np.float32),
        shared={},
        buffers=None,
    )
    with place(prepared, resolve(prepared, session), session) as pool:
        assert isinstance(pool, ActorPool)
        pool.actor_infos()
        yield pool, broadcast


@pytest.mark.ray
def test_what_an_actor_held_between_two_phases_is_trained_again_when_it_dies(session: fr.RaySession) -> None:
    groups = tasks((0, 1), (2, 3), (5, 6))
    with two_actors(session, Trap("", None)) as (pool, broadcast):
        whole = [u.weighted_delta.tobytes() for u in pool.train(broadcast, groups)]
        figures = [f.delta_norms.tolist() for f in pool.measure(broadcast, groups)]
        os.kill(pool.actor_infos()[0].process_id, signal.SIGKILL)
        counted = [replace(task, factors=(1.0, 1.0), rows=True) for task in groups]
        updates = list(pool.train(broadcast, counted))
    assert [u.weighted_delta.tobytes() for u in updates] == whole
    assert [np.linalg.norm(u.rows, axis=1) for u in updates] == pytest.approx(np.array(figures), rel=1e-5)


@pytest.mark.ray
def test_a_loss_that_two_calls_may_have_caused_is_charged_to_neither(session: fr.RaySession, tmp_path: Path) -> None:
    # four calls for two actors: one dies with the first, and the third behind it; without retries a charge is a drop
    groups = tasks((BAD,), (0,), (1,), (2,))
    with two_actors(session, Trap("die", tmp_path / "sprung"), retries=0, vectorize=1) as (pool, broadcast):
        disturbed = list(pool.train(broadcast, groups))
        assert (tmp_path / "sprung").exists()
        again = list(pool.train(broadcast, groups))
    assert not any(isinstance(u, ClientsLost) for u in disturbed)
    assert [u.weighted_delta.tobytes() for u in disturbed] == [u.weighted_delta.tobytes() for u in again]


@pytest.mark.ray
def test_scoring_survives_an_actor_too(session: fr.RaySession, tmp_path: Path) -> None:
    class DiesWhenScoring(Trap):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training and len(x) > 50 and self._springs():
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(x)

    reports = trained(experiment(POOLED), DiesWhenScoring("", tmp_path / "sprung"), session)
    assert (tmp_path / "sprung").exists()
    expected = trained(experiment({"placement": "serial"}), Trap("", None))
    assert [r.metrics["test_loss"] for r in reports] == [r.metrics["test_loss"] for r in expected]
