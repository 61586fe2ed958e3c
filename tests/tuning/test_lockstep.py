"""Trials that are trained together end in the bytes of their own runs."""

import json
import logging
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch

import fednar_ray as fr
from fednar_ray.algorithms.presets import PRESETS
from fednar_ray.algorithms.regularizers import REGULARIZERS
from fednar_ray.config import Experiment
from fednar_ray.core.timing import DURATIONS
from fednar_ray.execution.session import RaySession
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.collection import RoundStart, start_round
from fednar_ray.federated.gradients import GroupGradient
from fednar_ray.federated.pack_trainer import MATRIX_ROWS, PackTrainer
from fednar_ray.federated.round_plan import RoundPlan
from fednar_ray.federated.server_state import FederationState
from fednar_ray.tuning.lockstep import train_together
from fednar_ray.tuning.trial_federation import TrialFederation

pytestmark = pytest.mark.usefixtures("long_computation")

ROUNDS = 3
BOUND, DECAY, RATE = "regularizer.clip_bound", "regularizer.weight_decay", "algorithm.local_lr"
SMALL = (
    f"federation.rounds={ROUNDS}", "federation.local_steps=3", "data.partition.clients=12", "model.hidden=16",
    "federation.clients_per_round=6", "execution.placement=serial", "execution.vectorize=3",
    "algorithm.local_lr_anneal=0.9", "regularizer.weight_decay_anneal=0.8", "regularizer.clip_bound_anneal=0.7",
)  # fmt: skip
POINTS: Sequence[Mapping[str, Any]] = (
    {BOUND: 0.5, DECAY: 0.03}, {BOUND: 5.0, DECAY: 0.001}, {BOUND: 0.1, DECAY: 0.3}, {BOUND: 2.0, DECAY: 0.0},
)  # fmt: skip


def build(*overrides: str, **values: Any) -> Experiment:
    return fr.load("digits", [*SMALL, *overrides, *(f"{key}={value}" for key, value in values.items())])


def build_all(*overrides: str, points: Iterable[Mapping[str, Any]] = POINTS) -> list[Experiment]:
    return [build(*overrides, **point) for point in points]


def open_all(experiments: Iterable[Experiment], device: torch.device | None = None) -> list[TrialFederation]:
    return [TrialFederation(experiment, RaySession(), "trial", device=device) for experiment in experiments]


def read(federation: TrialFederation) -> tuple[bytes, list[str]]:
    """Returns a federation's parameters, and its metrics but for times."""
    kept = [{k: v for k, v in r.metrics.items() if k not in DURATIONS} for r in federation.records]
    return federation.parameters.tobytes(), [json.dumps(metrics) for metrics in kept]


def check_same_as_alone(
    experiments: Sequence[Experiment], monkeypatch: pytest.MonkeyPatch, *, packed: bool = True
) -> None:
    """Trains the experiments together and alone, and compares. ``packed``: no trial trains a client group itself."""
    alone = open_all(experiments)
    for federation in alone:
        federation.train(ROUNDS)
    own_work: list[int] = []
    together, train = open_all(experiments), GroupTrainer._train

    def count(self: GroupTrainer, *args: Any) -> Any:
        own_work.append(1)
        return train(self, *args)

    monkeypatch.setattr(GroupTrainer, "_train", count)
    assert train_together(together, [ROUNDS] * len(together), PackTrainer()) == [None] * len(together)
    assert [read(each) for each in together] == [read(each) for each in alone]
    assert bool(own_work) != packed


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_and_regularizer_gives_the_bytes_of_its_own_run(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments = [
        build("algorithm.local_lr_anneal=0.9", f"regularizer.name={name}", f"algorithm.name={preset}", **point)
        for name in REGULARIZERS
        for point in POINTS[:2]
    ]
    check_same_as_alone(experiments, monkeypatch)


CIRCUMSTANCES: Mapping[str, Sequence[str]] = {
    "random layers": ["model.dropout=0.3"],
    "epochs, and shards below the batch size": [
        "federation.local_steps=null", "federation.local_epochs=2", "federation.batch_size=64",
    ],
    "clients drop out and are late": [
        "availability={dropout: 0.3, over_sampling: 1.5, speed: {jitter: 0.5}, deadline_seconds: 0.4}",
    ],
    "screening": ["screening.max_deviation=2.0"],
    "a median": ["aggregation={name: median}"],
    "a bound on updates": ["aggregation={name: norm_bound, bound: 0.05}"],
    "attackers": ["attacks={scaled: 0.2, nan: 0.1}", "aggregation={name: krum, byzantine: 0.2}"],
    "bfloat16": ["execution.precision=bfloat16"],
    "differential privacy": [
        "federation.sampling=poisson", "privacy={noise_multiplier: 1.0, bound: {name: adaptive, norm: 0.05}}",
    ],
    "differential privacy within FedNAR's bound": [
        "federation.sampling=poisson", "privacy={noise_multiplier: 1.0, bound: fednar, secret: false}",
    ],
}  # fmt: skip


@pytest.mark.parametrize("overrides", CIRCUMSTANCES.values(), ids=CIRCUMSTANCES)
def test_no_circumstance_changes_the_bytes(overrides: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    check_same_as_alone(build_all(*overrides), monkeypatch)


def test_a_process_with_a_device_trains_there_whatever_the_placement() -> None:
    serial = open_all(build_all())
    pooled = open_all(build_all("execution.placement=pooled"), torch.device("cpu"))  # it starts no actors
    for federations in (serial, pooled):
        train_together(federations, [ROUNDS] * len(federations), PackTrainer.on(torch.device("cpu")))
    assert [read(each) for each in pooled] == [read(each) for each in serial]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
@pytest.mark.parametrize("overrides", [[], ["model.dropout=0.3"], ["algorithm.name=scaffold"]])
def test_a_pack_on_a_gpu_gives_the_bytes_of_its_trials_own_runs(overrides: Sequence[str]) -> None:
    device, experiments = torch.device("cuda:0"), build_all("execution.placement=pooled", *overrides)
    alone, together = (open_all(experiments, device) for _ in range(2))
    for federation in alone:
        federation.train(ROUNDS)
    train_together(together, [ROUNDS] * len(together), PackTrainer.on(device))
    assert [read(each) for each in together] == [read(each) for each in alone]


def test_seeds_and_searched_algorithms_share_a_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [
        {"seed": 0},
        {"seed": 1},
        {"algorithm.name": "fedprox", "algorithm.mu": 0.1},
        {"federation.batch_size": 8},
    ]
    points = [{**point, **value} for value in values for point in POINTS[:2]]
    check_same_as_alone(build_all(points=points), monkeypatch)


def test_a_client_that_trains_alone_is_trained_by_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["federation.clients_per_round=5", "execution.vectorize=2"]  # two groups of two, and one of one
    check_same_as_alone(build_all(*overrides), monkeypatch, packed=False)


def test_a_diverging_trial_harms_no_neighbor(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [*POINTS, {BOUND: 1e30, RATE: 1e30}]
    alone = open_all(build_all(points=POINTS))
    for federation in alone:
        federation.train(ROUNDS)
    together = open_all(build_all(points=points))
    *failures, diverged = train_together(together, [ROUNDS] * len(points), PackTrainer())
    assert failures == [None] * len(POINTS)
    assert diverged is not None
    assert "finite" in diverged
    assert together[-1].rounds < ROUNDS
    assert [read(each) for each in together[:-1]] == [read(each) for each in alone]


def test_trials_may_be_in_different_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = (open_all(build_all(points=POINTS[:2])) for _ in range(2))
    for federation in alone:
        federation.train(ROUNDS)
    together[0].train(1)
    pack = PackTrainer()
    assert train_together(together, [2, 1], pack) == [None, None]
    assert [each.rounds for each in together] == [2, 1]
    train_together(together, [ROUNDS, ROUNDS], pack)
    assert [read(each) for each in together] == [read(each) for each in alone]


def test_a_model_whose_rows_depend_on_their_number_is_left_to_its_trials(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    call = GroupGradient.__call__

    def disturb(self: GroupGradient, plan: Any, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        grad, loss = call(self, plan, step)
        return grad * (1 + 1e-6 * len(self.params)), loss

    monkeypatch.setattr(GroupGradient, "__call__", disturb)
    with caplog.at_level(logging.INFO, "fednar_ray"):
        check_same_as_alone(build_all(), monkeypatch, packed=False)
    assert sum("one after another" in each.getMessage() for each in caplog.records) == 1


def test_a_pack_without_memory_trains_in_smaller_matrices(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    call = GroupGradient.__call__

    def take_memory(self: GroupGradient, plan: Any, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if len(self.params) > MATRIX_ROWS // 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(self, plan, step)

    monkeypatch.setattr(GroupGradient, "__call__", take_memory)
    check_same_as_alone(build_all(points=[*POINTS] * 4), monkeypatch, packed=False)
    found = [each.getMessage() for each in caplog.records if "out of memory" in each.getMessage()]
    assert [each.split("at most ")[1].split()[0] for each in found] == ["39", "19"]  # 78 rows are 26 groups of three


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_a_matrix_uses_the_memory_of_the_step_before() -> None:
    steps, rounds = 10, 4
    settings = ["model.hidden=64", "federation.clients_per_round=10", f"federation.local_steps={steps}"]
    federations = open_all([build(*settings, f"federation.rounds={2 * rounds}", **{BOUND: 1 + i}) for i in range(8)])
    pack = PackTrainer()
    train_together(federations, [rounds] * 8, pack)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    train_together(federations, [2 * rounds] * 8, pack)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    pages = 4 * MATRIX_ROWS * len(federations[0].parameters) // resource.getpagesize()
    assert faults < pages * steps * rounds / 4  # a vector of the matrix that is new in every step takes all its pages


def test_a_round_that_is_trained_ahead_is_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def start(plan: RoundPlan, state: FederationState) -> RoundStart:
        started.append(state.now.next_round)
        return start_round(plan, state)

    for module in ("fednar_ray.experiments.pack_member", "fednar_ray.federated.round_loop"):
        monkeypatch.setattr(f"{module}.start_round", start)
    federations = open_all(build_all())
    train_together(federations, [ROUNDS] * len(federations), PackTrainer())
    assert sorted(started) == sorted([*range(ROUNDS)] * len(federations))
