"""Failures of real actors: calls are retried on another actor with the same result, isolated or dropped, and end."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fednar_ray as fr
from fednar_ray.core.errors import BuffersChanged
from fednar_ray.core.messages import Broadcast, ClientsLost
from fednar_ray.execution.actor_pool import ActorPool
from fednar_ray.experiments.placement import open_pool, plan_execution
from fednar_ray.experiments.prepare import prepare
from tests.support.faulty_models import (
    BAD,
    POOLED,
    SENTINEL,
    SIZES,
    Trap,
    build_experiment,
    build_federation,
    build_tasks,
    check_abort_with_cause,
    check_halves_after_running_out_of_memory,
    train,
    train_undisturbed,
    train_without_bad_client,
    unwrap_group,
)

SCREENED: dict[str, Any] = {"screening": {"max_deviation": 1.0}, "attacks": {"scaled": 0.3, "factor": 30}}


@pytest.mark.parametrize("what", ["die", "hang", "raise", "exit"])
def test_a_failure_that_happens_once_changes_nothing(what: str, session: fr.RaySession, tmp_path: Path) -> None:
    settings = build_experiment({**POOLED, "client_timeout_seconds": 3 if what == "hang" else None}, "scaffold")
    reports = train(settings, Trap(what, tmp_path / "sprung"), session)
    assert (tmp_path / "sprung").exists()
    assert not any(report.exclusions for report in reports)
    assert reports[-1].parameters.tobytes() == train_undisturbed("scaffold")


WIDE = 50_000  # of a model whose updates are added in terms


@pytest.mark.parametrize(("what", "preset"), [("die", "scaffold"), ("raise", "fedavg")])
def test_a_failure_among_the_groups_of_a_term_changes_nothing(
    what: str, preset: str, session: fr.RaySession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(execution: dict[str, Any], model: Trap) -> bytes:
        settings = build_experiment({"vectorize": 1, "retries": 1, **execution}, preset, federation={"rounds": 2})
        reports = train(settings, model, session)
        assert not any(report.exclusions for report in reports)
        return reports[-1].parameters.tobytes()

    with caplog.at_level(logging.WARNING, "fednar_ray"):
        disturbed = run(POOLED, Trap(what, tmp_path / "sprung", WIDE))
    assert (tmp_path / "sprung").exists()
    assert disturbed == run({"placement": "serial"}, Trap("", None, WIDE))
    if what == "raise":
        assert "cannot be trained; training each client group by itself" in caplog.text


def test_a_client_of_a_term_that_always_fails_is_the_only_one_dropped(session: fr.RaySession) -> None:
    def run(execution: dict[str, Any]) -> list[fr.RoundReport]:
        settings = build_experiment({"vectorize": 1, "retries": 0, **execution}, "scaffold", federation={"rounds": 2})
        return train(settings, Trap("raise", None, WIDE), session)

    reports, expected = run(POOLED), run({"placement": "serial"})
    assert [set(report.exclusions) for report in reports] == [{BAD}] * 2
    assert [report.exclusions for report in reports] == [report.exclusions for report in expected]
    assert reports[-1].parameters.tobytes() == expected[-1].parameters.tobytes()


@pytest.mark.parametrize(("what", "retries", "rounds"), [("die", 0, 1), ("raise", 1, 2), ("exit", 1, 1)])
def test_a_client_that_always_fails_is_the_only_one_dropped(
    what: str, retries: int, rounds: int, session: fr.RaySession
) -> None:
    settings = build_experiment({**POOLED, "retries": retries}, federation={"rounds": rounds})
    reports = train(settings, Trap(what, None), session)
    assert [set(report.exclusions) for report in reports] == [{BAD}] * rounds
    reasons = {"die": "actor was lost", "raise": "ArithmeticError", "exit": "raised SystemExit(3)"}
    assert reasons[what] in str(reports[0].exclusions[BAD])
    assert [report.metrics["clients_trained"] for report in reports] == [6] * rounds
    assert reports[-1].parameters.tobytes() == train_without_bad_client(rounds)


def test_a_client_that_always_fails_is_found_within_its_group(
    session: fr.RaySession, caplog: pytest.LogCaptureFixture
) -> None:
    def select(*clients: int) -> dict[str, Any]:
        return {"rounds": 1, "participation": [list(clients)]}

    settings = build_experiment({**POOLED, "retries": 0, "vectorize": 2}, federation=select(0, 1, 2, BAD))
    with caplog.at_level(logging.WARNING, "fednar_ray"):
        (report,) = train(settings, Trap("die", None), session)
    assert set(report.exclusions) == {BAD}
    expected = np.frombuffer(train_undisturbed(federation=select(0, 1, 2)), dtype=np.float32)
    np.testing.assert_allclose(report.parameters, expected, rtol=1e-4, atol=1e-6)
    assert "training its two halves separately (the sum is the same up to rounding, not bit for bit)" in caplog.text


def test_groups_that_run_out_of_memory_are_halved_and_no_client_is_lost(
    session: fr.RaySession, caplog: pytest.LogCaptureFixture
) -> None:
    check_halves_after_running_out_of_memory("pooled", caplog, session)


def test_a_round_with_too_few_clients_left_is_aborted_with_the_cause(session: fr.RaySession) -> None:
    check_abort_with_cause("pooled", session)


def test_the_replacement_of_a_dedicated_actor_gets_the_same_shard(session: fr.RaySession, tmp_path: Path) -> None:
    def run(execution: dict[str, Any], model: torch.nn.Module) -> bytes:
        settings, whole = build_experiment(execution, "scaffold"), build_federation(SIZES[:3], bad=1)
        *_, last = fr.iter_rounds(settings, federation=whole, model=model, session=session)
        return last.parameters.tobytes()

    dedicated = run({"placement": "dedicated"}, Trap("die", tmp_path / "sprung"))
    assert (tmp_path / "sprung").exists()
    assert dedicated == run({"placement": "serial"}, Trap("", None))


@pytest.mark.parametrize("bound", ["adaptive", "fednar"])
def test_a_killed_actor_changes_neither_the_bytes_nor_the_epsilon_of_private_clients(
    session: fr.RaySession, tmp_path: Path, bound: str
) -> None:
    def run(execution: dict[str, Any], model: torch.nn.Module) -> list[Any]:
        federation = {"local_epochs": None, "local_steps": 3, "sampling": "poisson", "clients_per_round": 5}
        privacy = {"noise_multiplier": 1.0, "delta": 0.01, "bound": bound}
        reports = train(build_experiment(execution, federation=federation, privacy=privacy), model, session)
        return [
            (each.parameters.tobytes(), each.metrics["privacy/epsilon"], each.metrics["privacy/bound"])
            for each in reports
        ]

    killed = run(POOLED, Trap("die", tmp_path / "sprung"))
    assert (tmp_path / "sprung").exists()
    assert killed == run({"placement": "serial"}, Trap("", None))


def test_an_unexpected_change_of_a_buffer_ends_a_run_on_actors(session: fr.RaySession) -> None:
    class Late(Trap):
        def __init__(self) -> None:
            super().__init__("", None)
            self.register_buffer("mask", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool((unwrap_group(x) == SENTINEL).any()):
                self.mask += 1
            return super().forward(x)

    with pytest.raises(BuffersChanged, match="training changed buffer mask"):
        train(build_experiment(POOLED), Late(), session)


@pytest.mark.parametrize("preset", ["fedavg", "scaffold", "feddyn"])
def test_two_phases_give_the_same_bytes_in_every_placement(preset: str, session: fr.RaySession) -> None:
    model = Trap("", None)
    expected = train(build_experiment({"placement": "serial", "vectorize": 2}, preset, **SCREENED), model)
    reports = train(build_experiment({**POOLED, "vectorize": 2}, preset, **SCREENED), model, session)
    assert any(report.exclusions for report in expected)
    assert [r.exclusions for r in reports] == [r.exclusions for r in expected]
    assert reports[-1].parameters.tobytes() == expected[-1].parameters.tobytes()


@contextmanager
def build_two_actors(
    session: fr.RaySession, model: torch.nn.Module, **execution: Any
) -> Iterator[tuple[ActorPool, Broadcast]]:
    """Yields a pool that is ready, and the broadcast of a round for it."""
    prepared = prepare(build_experiment({**POOLED, "vectorize": 2, **execution}), build_federation(), model)
    broadcast = Broadcast(
        round_index=0,
        scalars=prepared.experiment.compute_scalars(0),
        parameters=np.full(prepared.model_bytes // 4, 0.1, dtype=np.float32),
        shared={},
        buffers=None,
    )
    with open_pool(prepared, plan_execution(prepared, session), session) as pool:
        assert isinstance(pool, ActorPool)
        pool.list_actors()
        yield pool, broadcast


def test_groups_of_an_actor_that_dies_between_two_phases_are_trained_again(session: fr.RaySession) -> None:
    groups = build_tasks((0, 1), (2, 3), (5, 6))
    with build_two_actors(session, Trap("", None)) as (pool, broadcast):
        whole = [u.weighted_delta.tobytes() for u in pool.train(broadcast, groups)]
        norms = [f.delta_norms.tolist() for f in pool.measure(broadcast, groups)]
        os.kill(pool.list_actors()[0].process_id, signal.SIGKILL)
        counted = [replace(task, factors=(1.0, 1.0), return_rows=True) for task in groups]
        updates = list(pool.train(broadcast, counted))
    assert [u.weighted_delta.tobytes() for u in updates] == whole
    assert [np.linalg.norm(u.rows, axis=1) for u in updates] == pytest.approx(np.array(norms), rel=1e-5)


def test_the_loss_of_an_actor_with_two_calls_is_blamed_on_neither(session: fr.RaySession, tmp_path: Path) -> None:
    # four calls for two actors: one actor dies with the first call, and the third waits behind it; without retries a
    # call that is blamed is dropped
    groups = build_tasks((BAD,), (0,), (1,), (2,))
    with build_two_actors(session, Trap("die", tmp_path / "sprung"), retries=0, vectorize=1) as (pool, broadcast):
        disturbed = list(pool.train(broadcast, groups))
        assert (tmp_path / "sprung").exists()
        again = list(pool.train(broadcast, groups))
    assert not any(isinstance(u, ClientsLost) for u in disturbed)
    assert [u.weighted_delta.tobytes() for u in disturbed] == [u.weighted_delta.tobytes() for u in again]


def test_scoring_survives_the_loss_of_an_actor(session: fr.RaySession, tmp_path: Path) -> None:
    class DiesWhenScoring(Trap):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training and len(x) > 50 and self._is_triggered():
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(x)

    reports = train(build_experiment(POOLED), DiesWhenScoring("", tmp_path / "sprung"), session)
    assert (tmp_path / "sprung").exists()
    expected = train(build_experiment({"placement": "serial"}), Trap("", None))
    assert [r.metrics["test_loss"] for r in reports] == [r.metrics["test_loss"] for r in expected]
