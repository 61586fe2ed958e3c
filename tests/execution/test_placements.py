"""One configuration gives the same bytes in every placement."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import fednar_ray as fr
from fednar_ray.core.errors import CapacityError, ConfigError, DeviceError
from fednar_ray.data.examples import Shards
from fednar_ray.execution import streams
from fednar_ray.execution.actor_pool import ActorPool
from fednar_ray.experiments.placement import open_pool, plan_execution
from fednar_ray.experiments.prepare import prepare
from tests.conftest import build_small_federation
from tests.data.test_table_kinds import WARDS, build_ward


def build_dropout_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Dropout(0.4), torch.nn.GroupNorm(2, 8), torch.nn.Linear(8, 3)
    )


def build_batch_norm_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def build_experiment(preset: str, execution: dict[str, Any], **federation: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "federation": {"rounds": 4, "local_epochs": 1, "batch_size": 4, **federation},
            "algorithm": {"name": preset, "local_lr": 0.1},
            "regularizer": {"name": "fednar", "weight_decay": 0.1, "clip_bound": 0.5},
            "execution": {"gpus_per_actor": 0, "cpus_per_actor": 0.5, **execution},
        }
    )


def train_to_bytes(settings: fr.Experiment, model: torch.nn.Module, session: fr.RaySession | None = None) -> bytes:
    federation = build_small_federation((7, 30, 12, 3, 21, 9, 16))
    *_, last = fr.iter_rounds(settings, federation=federation, model=model, session=session)
    assert np.isfinite(last.parameters).all()
    return last.parameters.tobytes() + last.buffers.tobytes()


@pytest.mark.parametrize("preset", ["fedavg", "scaffold", "feddyn", "fedavgm+exp"])
def test_training_on_any_number_of_actors_gives_the_same_bytes(preset: str, session: fr.RaySession) -> None:
    model = build_dropout_model()
    pinned = {"vectorize": 2}
    serial = train_to_bytes(build_experiment(preset, {"placement": "serial", **pinned}, clients_per_round=5), model)
    for actors in (1, 2, 3):
        execution = {"placement": "pooled", "actors": actors, **pinned}
        assert train_to_bytes(build_experiment(preset, execution, clients_per_round=5), model, session) == serial, (
            actors
        )


@pytest.mark.parametrize("make_model", [build_dropout_model, build_batch_norm_model])
@pytest.mark.parametrize("preset", ["fedavg", "scaffold"])
def test_training_on_dedicated_actors_gives_the_same_bytes(
    preset: str, make_model: Any, session: fr.RaySession
) -> None:
    model, batches = make_model(), {"batch_size": 100}  # BatchNorm does not accept a batch of one
    serial = train_to_bytes(build_experiment(preset, {"placement": "serial", "vectorize": 1}, **batches), model)
    for execution in ({"placement": "dedicated"}, {"placement": "pooled", "actors": 2, "vectorize": 1}):
        assert train_to_bytes(build_experiment(preset, execution, **batches), model, session) == serial, execution


@pytest.mark.parametrize("preset", ["fedavg", "scaffold"])
def test_a_large_model_whose_updates_are_added_on_actors_gives_the_same_bytes(
    preset: str, session: fr.RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 50_000), torch.nn.ReLU(), torch.nn.Linear(50_000, 3))

    def train(**execution: Any) -> bytes:
        settings = build_experiment(preset, {"vectorize": 1, **execution}, rounds=2, clients_per_round=6)
        return train_to_bytes(settings, model, session)

    serial = train(placement="serial")
    assert train(placement="pooled", actors=2) == serial
    if preset == "fedavg":
        assert train(placement="pooled", actors=3) == serial  # one of four terms is trained group by group
        assert train(placement="pooled", actors=2, client_timeout_seconds=600) == serial  # all of them are
        return
    assert train(placement="dedicated") == serial
    assert train(placement="serial", state_memory_bytes=10**9) == serial  # client states in memory, not in a file
    monkeypatch.setattr(streams, "identify_machine", lambda: "another machine")
    assert train(placement="pooled", actors=2) == serial


def test_bfloat16_gives_the_same_bytes_in_every_placement(session: fr.RaySession) -> None:
    model, precise = build_dropout_model(), {"vectorize": 1, "precision": "bfloat16"}
    results = {
        placement: train_to_bytes(build_experiment("scaffold", {"placement": placement, **precise}), model, session)
        for placement in ("serial", "pooled", "dedicated")
    }
    assert results["pooled"] == results["dedicated"] == results["serial"]
    single = build_experiment("scaffold", {"placement": "serial", "vectorize": 1})
    assert results["serial"] != train_to_bytes(single, model)


def test_tf32_without_a_gpu_is_refused_before_ray_starts() -> None:
    settings = build_experiment("fedavg", {"placement": "pooled"})
    without_gpu = settings.execution.model_copy(update={"precision": "tf32"})
    settings = settings.model_copy(update={"execution": without_gpu})
    prepared = prepare(settings, build_small_federation((5, 6)), build_dropout_model())
    with pytest.raises(ConfigError, match=r"execution\.precision: tf32 needs a GPU.*; use float32 or bfloat16"):
        plan_execution(prepared, fr.RaySession())


def test_one_table_gives_the_same_bytes_in_every_placement(session: fr.RaySession, tmp_path: Path) -> None:
    table = pd.concat([build_ward(seed, 30 - seed).assign(ward=name) for seed, name in enumerate(WARDS)])
    table.to_csv(tmp_path / "patients.csv", index=False)
    data = {"source": "table", "path": str(tmp_path / "patients.csv"), "groups": "ward", "label": "ill",
            "task": "binary", "missing": "mean"}  # fmt: skip
    final = []
    for execution in (
        {"placement": "serial", "vectorize": 1},
        {"placement": "pooled", "actors": 2, "vectorize": 1},
        {"placement": "dedicated"},
    ):
        settings = build_experiment("scaffold", execution, rounds=2).model_dump(exclude_none=True)
        experiment = fr.Experiment.model_validate({**settings, "data": data, "model": {"name": "logistic"}})
        *_, last = fr.iter_rounds(experiment, session=session)
        assert np.isfinite(last.parameters).all()
        final.append((last.parameters.tobytes(), last.metrics["test_loss"]))
    assert final[0] == final[1] == final[2]


def test_a_run_neither_depends_on_global_generators_nor_changes_them() -> None:
    settings, model = build_experiment("fedavg", {"placement": "serial", "vectorize": 2}), build_dropout_model()
    first = train_to_bytes(settings, model)
    torch.manual_seed(99)
    np.random.seed(99)
    before = torch.get_rng_state()
    assert train_to_bytes(settings, model) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_other_bytes() -> None:
    settings, model = build_experiment("fedavg", {"placement": "serial"}), build_dropout_model()
    other = settings.model_copy(update={"seed": 1})
    assert train_to_bytes(settings, model) != train_to_bytes(other, model)


def test_a_dedicated_actor_holds_only_its_client(session: fr.RaySession) -> None:
    prepared = prepare(
        build_experiment("fedavg", {"placement": "dedicated"}), build_small_federation((5, 6, 7)), build_dropout_model()
    )
    with open_pool(prepared, plan_execution(prepared, session), session) as pool:
        assert isinstance(pool, ActorPool)
        assert len({p.process_id for p in pool.list_actors()}) == 3
    for client_id, size in enumerate((5, 6, 7)):
        shard = prepared.federation.shards.only(client_id)
        assert len(shard.examples) == size
        assert shard.examples.x.base is None  # its own memory, not a view of all shards


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine whose GPU torch can use raises nothing")
def test_an_assigned_gpu_that_torch_cannot_use_is_an_error(session: fr.RaySession) -> None:
    settings = build_experiment("fedavg", {"placement": "pooled", "gpus_per_actor": "auto", "actors": 2})
    with pytest.raises(DeviceError, match="sees no CUDA device"):
        train_to_bytes(settings, build_dropout_model(), session)


def test_more_dedicated_actors_than_fit_are_refused_before_any_starts(session: fr.RaySession) -> None:
    settings = build_experiment("fedavg", {"placement": "dedicated", "cpus_per_actor": 1})
    with pytest.raises(CapacityError, match=r"7 actors .* 4 would fit.*pooled"):
        train_to_bytes(settings, build_dropout_model(), session)


def test_a_dedicated_actor_may_have_a_client_without_examples(session: fr.RaySession) -> None:
    whole = build_small_federation((5, 7))
    shards = Shards(whole.shards.examples, np.array([0, 5, 5, 12]))
    federation = fr.Federation.from_shards("three", shards, whole.test, None, 0)
    model, final = build_dropout_model(), []
    for execution in ({"placement": "serial", "vectorize": 1}, {"placement": "dedicated"}):
        *_, last = fr.iter_rounds(
            build_experiment("fedavg", execution), federation=federation, model=model, session=session
        )
        final.append(last.parameters.tobytes())
    assert final[0] == final[1]


@pytest.mark.parametrize("bound", ["adaptive", "fednar"])
def test_private_rounds_give_the_same_bytes_and_epsilon_on_any_number_of_actors(
    bound: str, session: fr.RaySession
) -> None:
    def train(**execution: Any) -> list[tuple[bytes, float, float]]:
        settings = build_experiment(
            "fedavgm", execution, clients_per_round=5, sampling="poisson", local_epochs=None, local_steps=3
        )
        privacy = {"noise_multiplier": 1.0, "delta": 0.01, "bound": bound}
        settings = fr.Experiment.model_validate({**settings.model_dump(exclude_none=True), "privacy": privacy})
        federation = build_small_federation((7, 30, 12, 3, 21, 9, 16))
        reports = fr.iter_rounds(settings, federation=federation, model=build_dropout_model(), session=session)
        return [
            (each.parameters.tobytes(), each.metrics["privacy/epsilon"], each.metrics["privacy/bound"])
            for each in reports
        ]

    serial = train(placement="serial", vectorize=2)
    for actors in (1, 3):
        assert train(placement="pooled", actors=actors, vectorize=2) == serial, actors
    alone = train(placement="serial", vectorize=1)
    assert train(placement="dedicated", vectorize=1) == alone
