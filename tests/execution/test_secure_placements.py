"""Secure aggregation on Ray: the same bytes as in one process, whichever actor is lost."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fednar_ray as fr
from fednar_ray.core.exclusion import ExclusionReason
from fednar_ray.core.messages import ClientsLost, GroupTask
from fednar_ray.core.timing import DURATIONS
from fednar_ray.execution.actor_pool import ActorPool
from fednar_ray.experiments.iter_rounds import build_initial_state, train_rounds
from fednar_ray.experiments.placement import open_pool, plan_execution
from fednar_ray.experiments.prepare import prepare
from fednar_ray.secure.messages import MaskedBroadcast, MaskedUpdate, Reveal, UnmaskRequest, UnmaskTask, Withheld
from tests.support.faulty_models import BAD, Trap, build_experiment, build_federation, train

SECURE = {"federation": {"local_epochs": None, "local_steps": 3, "rounds": 2}}


def build(directory: Path, placement: str = "dedicated", *, threshold: float = 0.67, **execution: Any) -> fr.Experiment:
    secure = {"directory": str(directory), "threshold": threshold}
    return build_experiment({"placement": placement, **execution}, **SECURE, secure_aggregation=secure)


def train_serial(directory: Path, **secure: Any) -> list[fr.RoundReport]:
    return train(build(directory, "serial", **secure), Trap("", None))


def summarize(reports: Sequence[fr.RoundReport]) -> list[Any]:
    return [
        (r.parameters.tobytes(), {name: value for name, value in r.metrics.items() if name not in DURATIONS})
        for r in reports
    ]


def test_actors_give_the_same_bytes_as_one_process(session: fr.RaySession, tmp_path: Path) -> None:
    found = train(build(tmp_path / "keys"), Trap("", None), session)
    assert summarize(found) == summarize(train_serial(tmp_path))
    assert list((tmp_path / "keys").iterdir()) == []  # the actors have deleted their keys


def test_actors_of_private_clients_give_the_same_bytes_as_one_process(session: fr.RaySession, tmp_path: Path) -> None:
    privacy = {"privacy": {"noise_multiplier": 1.0, "delta": 0.01, "bound": {"norm": 0.5}}}

    def build_private(placement: str) -> fr.Experiment:
        federation = {**SECURE["federation"], "sampling": "poisson", "clients_per_round": None}
        secure = {"directory": str(tmp_path)}
        return build_experiment({"placement": placement}, federation=federation, secure_aggregation=secure, **privacy)

    found = train(build_private("dedicated"), Trap("die", tmp_path / "sprung"), session)
    assert (tmp_path / "sprung").exists()
    assert summarize(found) == summarize(train(build_private("serial"), Trap("", None)))


def test_an_actor_that_dies_in_mid_round_changes_nothing(session: fr.RaySession, tmp_path: Path) -> None:
    found = train(build(tmp_path), Trap("die", tmp_path / "sprung"), session)
    assert (tmp_path / "sprung").exists()
    assert summarize(found) == summarize(train_serial(tmp_path))


def test_a_client_whose_actor_always_dies_is_left_out(session: fr.RaySession, tmp_path: Path) -> None:
    found = train(build(tmp_path, retries=0), Trap("die", None), session)
    expected = train(build(tmp_path, "serial", retries=0), Trap("raise", None))
    assert [{i: e.reason for i, e in report.exclusions.items()} for report in found] == [
        {BAD: ExclusionReason.FAILED}
    ] * 2
    assert [r.parameters.tobytes() for r in found] == [r.parameters.tobytes() for r in expected]


class KillingPool:
    """A pool of actors of which one is killed when the masked updates have arrived."""

    def __init__(self, pool: ActorPool, victim: int) -> None:
        self._pool, self._victim, self.answers = pool, victim, list[Reveal | ClientsLost]()
        self.score, self.take_seconds_ahead = pool.score, pool.take_seconds_ahead
        self.train, self.measure, self.close = pool.train, pool.measure, pool.close

    @property
    def run(self) -> str:
        return self._pool.run

    def list_public_keys(self, client_ids: Sequence[int]) -> Any:
        return self._pool.list_public_keys(client_ids)

    def train_masked(
        self, request: MaskedBroadcast, tasks: Sequence[GroupTask]
    ) -> Iterator[MaskedUpdate | Withheld | ClientsLost]:
        return self._pool.train_masked(request, tasks)

    def reveal(self, request: UnmaskRequest, tasks: Sequence[UnmaskTask]) -> Iterator[Reveal | ClientsLost]:
        if request.round_index == 0:
            os.kill(self._pool.list_actors()[self._victim].process_id, signal.SIGKILL)
        for answer in self._pool.reveal(request, tasks):
            self.answers.append(answer)
            yield answer


@pytest.mark.parametrize("threshold", [0.67, 1.0], ids=["not needed", "needed"])
def test_an_actor_that_dies_while_the_sum_is_unmasked_changes_nothing(
    session: fr.RaySession, tmp_path: Path, threshold: float
) -> None:
    prepared = prepare(build(tmp_path, threshold=threshold), build_federation(), Trap("", None))
    plan = plan_execution(prepared, session)
    with open_pool(prepared, plan, session) as pool:
        assert isinstance(pool, ActorPool)
        killing = KillingPool(pool, victim=2)
        found = list(train_rounds(prepared, plan, killing, build_initial_state(prepared)))
    lost = [answer for answer in killing.answers if isinstance(answer, ClientsLost)]
    if threshold == 1.0:  # every share is needed: the new actor reads its keys from the disk, and answers
        assert lost == []
    else:
        assert [answer.client_ids for answer in lost] == [(2,)]
    assert summarize_training(found) == summarize_training(train_serial(tmp_path, threshold=threshold))


def summarize_training(reports: Sequence[fr.RoundReport]) -> list[Any]:
    """Like ``summarize``, without what was sent to unmask the sums."""
    sent = {"bytes_up", "bytes_down"}
    return [
        (parameters, {name: value for name, value in metrics.items() if name not in sent})
        for parameters, metrics in summarize(reports)
    ]


def test_the_driver_receives_no_update_of_a_client(session: fr.RaySession, tmp_path: Path) -> None:
    prepared = prepare(build(tmp_path), build_federation(), Trap("", None))
    plan = plan_execution(prepared, session)
    received: list[MaskedUpdate] = []

    class Watched(KillingPool):
        def train_masked(
            self, request: MaskedBroadcast, tasks: Sequence[GroupTask]
        ) -> Iterator[MaskedUpdate | Withheld | ClientsLost]:
            for update in super().train_masked(request, tasks):
                assert isinstance(update, MaskedUpdate)
                received.append(update)
                yield update

        def reveal(self, request: UnmaskRequest, tasks: Sequence[UnmaskTask]) -> Iterator[Reveal | ClientsLost]:
            return self._pool.reveal(request, tasks)

    with open_pool(prepared, plan, session) as pool:
        assert isinstance(pool, ActorPool)
        list(train_rounds(prepared, plan, Watched(pool, 0), build_initial_state(prepared)))
    words = np.concatenate([update.vector for update in received])
    small = np.abs(words.view(np.int32).astype(np.float64)) < 2**24
    assert len(received) == 2 * prepared.federation.num_clients
    assert small.mean() < 0.02  # 24 of 32 bits: a share of 2^-7 of uniform words, and all words without masks


def test_silos_with_their_own_files_give_the_same_bytes_as_one_process(session: fr.RaySession, tmp_path: Path) -> None:
    silos, rng = {}, np.random.default_rng(5)
    for name, size in {"north": 40, "south": 31, "west": 25}.items():
        x, file = rng.normal(size=(size, 2)), tmp_path / f"{name}.npz"
        np.savez(file, age=x[:, 0], dose=x[:, 1], ill=(x @ [1.0, -1.0] > 0).astype(int))
        silos[name] = {"data": str(file), "resources": {}}

    def run(placement: str) -> list[fr.RoundReport]:
        experiment = fr.Experiment.model_validate(
            {
                "data": {"source": "folder", "label": "ill", "task": "binary", "features": ["age", "dose"]},
                "model": {"name": "logistic"},
                "federation": {"rounds": 2, "local_steps": 4, "batch_size": 8},
                "execution": {"gpus_per_actor": 0, "cpus_per_actor": 0.5, "silos": silos, "placement": placement},
                "secure_aggregation": {"threshold": 0.6, "directory": str(tmp_path / "keys")},
            }
        )
        return list(fr.iter_rounds(experiment, session=session))

    on_actors, in_one_process = run("auto"), run("serial")
    assert [r.metrics["secure/survivors"] for r in on_actors] == [3, 3]
    assert summarize(on_actors) == summarize(in_one_process)
