"""Rounds with secure aggregation: the exact quantized sum, close to a plain round, whoever is lost."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fednar_ray as fr
from fednar_ray.algorithms.presets import PRESETS
from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.messages import ClientsLost, GroupTask
from fednar_ray.core.timing import DURATIONS, Phases
from fednar_ray.execution.serial import SerialPool
from fednar_ray.experiments.iter_rounds import build_initial_state, build_round_plan
from fednar_ray.experiments.placement import open_pool, plan_execution
from fednar_ray.experiments.prepare import prepare
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.federated.collection import RoundStart, start_round
from fednar_ray.federated.masked_vector import decode_sum, encode_update
from fednar_ray.federated.secure_round import SecureSums, train_securely
from fednar_ray.secure.messages import (
    MaskedBroadcast,
    MaskedUpdate,
    Reveal,
    UnmaskRequest,
    UnmaskTask,
    Withheld,
)
from tests.conftest import build_small_federation
from tests.support.faulty_models import BAD, Trap, build_federation

SIZES = (7, 30, 12, 21)


def build_experiment(directory: Path | None = None, **changes: Any) -> fr.Experiment:
    secure = None if directory is None else {"directory": str(directory)}
    base: dict[str, Any] = {
        "federation": {"rounds": 3, "local_steps": 4, "batch_size": 4},
        "algorithm": {"local_lr": 0.1, "local_lr_anneal": 0.9},
        "regularizer": {"weight_decay": 0.1, "clip_bound": 0.5, "clip_bound_anneal": 0.8},
        "execution": {"placement": "serial", "vectorize": 1},
        "secure_aggregation": secure,
    }
    merged = {key: {**(base.get(key) or {}), **value} for key, value in changes.items()}
    return fr.Experiment.model_validate({**base, **merged})


def build_model() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def train(experiment: fr.Experiment, **given: Any) -> list[fr.RoundReport]:
    federation = given.pop("federation", None) or build_small_federation(SIZES)
    return list(fr.iter_rounds(experiment, federation=federation, **{"model": build_model(), **given}))


class LosingPool:
    """A pool in this process that loses the results of some clients, as actors lose them with their nodes."""

    def __init__(
        self, pool: SerialPool, before: Collection[int], after: Collection[int], keys: Collection[int]
    ) -> None:
        self._pool, self._before, self._after, self._keys = pool, before, after, keys

    @property
    def run(self) -> str:
        return self._pool.run

    def list_public_keys(self, client_ids: Sequence[int]) -> Mapping[int, bytes]:
        return {i: key for i, key in self._pool.list_public_keys(client_ids).items() if i not in self._keys}

    def train_masked(
        self, request: MaskedBroadcast, tasks: Sequence[GroupTask]
    ) -> Iterator[MaskedUpdate | Withheld | ClientsLost]:
        for task, update in zip(tasks, self._pool.train_masked(request, tasks), strict=True):
            lost = task.client_ids[0] in self._before
            yield ClientsLost(client_ids=task.client_ids, reason="its node was lost") if lost else update

    def reveal(self, request: UnmaskRequest, tasks: Sequence[UnmaskTask]) -> Iterator[Reveal | ClientsLost]:
        for task, answer in zip(tasks, self._pool.reveal(request, tasks), strict=True):
            lost = task.client_ids[0] in self._after
            yield ClientsLost(client_ids=task.client_ids, reason="its node was lost") if lost else answer


@contextmanager
def open_serial(experiment: fr.Experiment) -> Iterator[tuple[Prepared, SerialPool, RoundStart]]:
    prepared = prepare(experiment, build_small_federation(SIZES), build_model())
    session = fr.RaySession()
    plan = plan_execution(prepared, session)
    with open_pool(prepared, plan, session) as pool:
        assert isinstance(pool, SerialPool)
        yield prepared, pool, start_round(build_round_plan(prepared, plan), build_initial_state(prepared))


def run_round(
    experiment: fr.Experiment,
    before: Collection[int] = (),
    after: Collection[int] = (),
    keys: Collection[int] = (),
) -> tuple[SecureSums, bytes]:
    """Runs a round, and returns its sums, and the mean update that the survivors' words give without any mask."""
    with open_serial(experiment) as (prepared, pool, start):
        plan = prepared.build_secure_plan()
        assert plan is not None
        losing = LosingPool(pool, before, after, keys)
        sums = train_securely(plan, losing, start.broadcast, start.tasks, (), Phases())
        total = np.zeros(1, dtype=np.uint32)
        for task in start.tasks:
            if task.client_ids[0] not in {*before, *keys}:
                trained = pool.trainer.train_rows(start.broadcast, task)
                total = total + encode_update(plan, trained, start.broadcast)
        return sums, decode_sum(plan, total, start.scalars).compute_mean().tobytes()


@pytest.mark.parametrize(
    "lost", [{}, {"before": {1}}, {"after": {2}}, {"keys": {0}}], ids=["none", "before", "while", "key"]
)
def test_the_sum_is_that_of_the_survivors_bit_for_bit(tmp_path: Path, lost: dict[str, Any]) -> None:
    sums, expected = run_round(build_experiment(tmp_path), **lost)
    assert sums.decoded is not None
    assert sums.decoded.compute_mean().tobytes() == expected
    gone = {*lost.get("before", ()), *lost.get("keys", ())}
    assert set(sums.exclusions) == gone
    assert sums.arrived == tuple(sorted(set(range(4)) - gone))
    assert sums.decoded.weight == sum(SIZES[i] for i in sums.arrived)  # decoded exactly


@pytest.mark.parametrize(
    ("lost", "text"),
    [
        (
            {"before": {1, 2}},
            "masked updates of 2 of 4 clients arrived, secure_aggregation.threshold requires 3; client",
        ),
        ({"after": {1, 2}}, "answers to unmask the sum of 2 of 4 clients arrived"),
        ({"before": {1}, "after": {2}}, "answers to unmask the sum of 2 of 4 clients arrived"),
        ({"keys": {1, 2}}, "public keys of 2 of 4 clients arrived"),
    ],
)
def test_the_round_is_aborted_with_fewer_than_t(tmp_path: Path, lost: dict[str, Any], text: str) -> None:
    with pytest.raises(RoundAborted, match=text):
        run_round(build_experiment(tmp_path), **lost)


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"scaffold", "scaffold+exp", "feddyn"}))
def test_a_run_is_that_of_plain_updates_up_to_the_quantizer(tmp_path: Path, preset: str) -> None:
    algorithm = {"algorithm": {"name": preset}}
    plain, secure = train(build_experiment(**algorithm)), train(build_experiment(tmp_path, **algorithm))
    names = set(plain[-1].metrics) - {*DURATIONS, "bytes_up", "bytes_down", "step_norm_p10", "step_norm_p90"}
    for a, b in zip(plain, secure, strict=True):
        assert {name: b.metrics[name] for name in names} == pytest.approx(
            {name: a.metrics[name] for name in names}, rel=1e-3, abs=1e-5
        )
        assert b.metrics["test_accuracy"] == pytest.approx(a.metrics["test_accuracy"], abs=0.001)
        assert (b.metrics["secure/survivors"], b.metrics["secure/saturated"]) == (4, 0)
    assert secure[-1].parameters == pytest.approx(plain[-1].parameters, abs=1e-4)


def test_nothing_of_a_single_client_is_in_a_report(tmp_path: Path) -> None:
    for report in train(build_experiment(tmp_path)):
        assert report.step_norms == {}
        assert report.norm_quantiles == ()
        assert not {"step_norm_p10", "step_norm_p90"} & set(report.metrics)


def test_fewer_bits_are_less_exact_and_the_error_is_within_one_step(tmp_path: Path) -> None:
    plain = train(build_experiment(federation={"rounds": 1}))[0].parameters
    errors = []
    for bits in (8, 12, 16, 20):
        experiment = build_experiment(tmp_path, federation={"rounds": 1}, secure_aggregation={"bits": bits})
        found = train(experiment)[0].parameters
        step = 4 * 0.1 * 0.5 * max(SIZES) / (2 ** (bits - 1) - 1)  # K·η·A·n_max / L
        errors.append(float(np.abs(found - plain).max()))
        assert errors[-1] <= 4 * step / sum(SIZES) + 1e-6
    assert errors == sorted(errors, reverse=True)


def test_a_clip_bounds_updates_where_the_regularizer_does_not(tmp_path: Path) -> None:
    loose = {"regularizer": {"name": "none"}, "federation": {"rounds": 1}, "secure_aggregation": {"clip": 50.0}}
    plain = train(build_experiment(regularizer={"name": "none"}, federation={"rounds": 1}))[0]
    (found,) = train(build_experiment(tmp_path, **loose))
    assert found.parameters == pytest.approx(plain.parameters, abs=1e-5)
    assert found.metrics["secure/clipped_updates"] == 0
    (short,) = train(build_experiment(tmp_path, **{**loose, "secure_aggregation": {"clip": 0.01}}))
    assert short.metrics["secure/clipped_updates"] == 4
    assert short.metrics["secure/saturated"] == 0
    assert 0 < short.metrics["update_norm"] <= 0.01 * (1 + 1e-6)


def test_what_is_beyond_the_range_is_clamped_and_counted(tmp_path: Path) -> None:
    # an attacker multiplies its update by 1,000, which no honest client can
    attack = {"scaled": 0.25, "factor": 1000.0}
    (report,) = train(build_experiment(tmp_path, attacks=attack, federation={"rounds": 1}))
    assert report.metrics["secure/saturated"] > 0
    assert report.metrics["update_norm"] < 4 * 0.1 * 0.5 * np.sqrt(33)  # each coordinate is at most K·η·A


def test_a_client_whose_update_is_not_finite_takes_no_part(tmp_path: Path) -> None:
    reports = train(build_experiment(tmp_path, attacks={"nan": 0.25}))
    for report in reports:
        assert [exclusion.reason for exclusion in report.exclusions.values()] == [ExclusionReason.NOT_FINITE]
        assert report.metrics["secure/survivors"] == 3
        assert np.isfinite(report.parameters).all()


def test_a_client_that_fails_in_every_attempt_is_left_out(tmp_path: Path) -> None:
    experiment = build_experiment(tmp_path, federation={"rounds": 1})
    (report,) = train(experiment, federation=build_federation(), model=Trap("raise", None))
    reason = "ArithmeticError: this client cannot be trained"
    assert report.exclusions == {BAD: Exclusion(ExclusionReason.FAILED, reason)}
    assert report.metrics["secure/survivors"] == 6


def test_a_client_that_fails_once_is_trained_again_with_the_same_masks(tmp_path: Path) -> None:
    experiment, marker = build_experiment(tmp_path, federation={"rounds": 2}), tmp_path / "sprung"
    disturbed = train(experiment, federation=build_federation(), model=Trap("raise", marker))
    assert marker.exists()
    undisturbed = train(experiment, federation=build_federation(), model=Trap("", None))
    assert disturbed[-1].parameters.tobytes() == undisturbed[-1].parameters.tobytes()


def test_a_run_leaves_no_keys_behind(tmp_path: Path) -> None:
    train(build_experiment(tmp_path / "keys"))
    assert list((tmp_path / "keys").iterdir()) == []


def test_bytes_are_at_most_a_tenth_more_for_a_large_model(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(2, 3000), torch.nn.Tanh(), torch.nn.Linear(3000, 3))
    (plain,) = train(build_experiment(federation={"rounds": 1}), model=model)
    (secure,) = train(build_experiment(tmp_path, federation={"rounds": 1}), model=model)
    for name in ("bytes_up", "bytes_down"):
        assert plain.metrics[name] < secure.metrics[name] < 1.1 * plain.metrics[name]
