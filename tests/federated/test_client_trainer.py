"""Models that cannot train as a client group train one by one correctly; clients that are not finite are excluded."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import fednar_ray as fr
from tests.conftest import build_small_federation


def build_experiment(width: int | str = "auto", **sections: Any) -> fr.Experiment:
    values = {
        "federation": {"rounds": 2, "local_steps": 3, "batch_size": 100},
        "algorithm": {"local_lr": 0.1},
        "regularizer": {"name": "none"},
        "execution": {"placement": "serial", "vectorize": width},
    }
    return fr.Experiment.model_validate({**values, **sections})


def build_seeded(*layers: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(*(layer() for layer in layers))


def test_batch_norm_trains_one_by_one_with_its_buffers_averaged(caplog: pytest.LogCaptureFixture) -> None:
    model = build_seeded(lambda: torch.nn.Linear(2, 4), lambda: torch.nn.BatchNorm1d(4), lambda: torch.nn.Linear(4, 3))
    federation = build_small_federation((6, 18))
    with caplog.at_level(logging.WARNING):
        report = next(fr.iter_rounds(build_experiment(4), federation=federation, model=model))
    assert [r.message for r in caplog.records if "one by one" in r.message] == [
        "clients train one by one (group size 1): it keeps running statistics"
    ]
    parameters, buffers = [], []
    for client_id in range(2):
        shard, local = federation.shards.only(client_id).examples, copy_seeded(model)
        for _ in range(3):
            loss = cross_entropy(local(torch.tensor(shard.x)), torch.tensor(shard.y))
            grads = torch.autograd.grad(loss, list(local.parameters()))
            with torch.no_grad():
                for p, g in zip(local.parameters(), grads, strict=True):
                    p -= 0.1 * g
        parameters.append(torch.cat([p.detach().reshape(-1) for p in local.parameters()]).numpy())
        buffers.append(torch.cat([b.double().reshape(-1) for b in local.buffers()]).numpy())
    weights = [0.25, 0.75]
    np.testing.assert_allclose(report.parameters, np.average(parameters, axis=0, weights=weights), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(report.buffers, np.average(buffers, axis=0, weights=weights), rtol=1e-5)


def copy_seeded(model: torch.nn.Module) -> torch.nn.Module:
    import copy

    return copy.deepcopy(model).train()


class Switch(torch.nn.Module):
    """A model with control flow that depends on the data, which functorch cannot batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 1e9 else self.layer(x) * 1.5


def test_a_model_that_vmap_cannot_batch_trains_one_by_one_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    federation = build_small_federation((6, 18, 4))
    with caplog.at_level(logging.WARNING):
        wanted_wide = list(fr.iter_rounds(build_experiment(3), federation=federation, model=Switch()))
    assert sum("torch.func.vmap cannot batch it" in r.message for r in caplog.records) == 1
    single = list(fr.iter_rounds(build_experiment(1), federation=federation, model=Switch()))
    np.testing.assert_array_equal(wanted_wide[-1].parameters, single[-1].parameters)


def test_dropout_differs_between_the_clients_of_a_group_and_between_steps() -> None:
    model = build_seeded(lambda: torch.nn.Linear(2, 64), lambda: torch.nn.Dropout(0.5), lambda: torch.nn.Linear(64, 3))
    x, y = np.ones((4, 2), dtype=np.float32), np.zeros(4, dtype=np.int64)
    twins = fr.Federation([(x, y), (x, y)], test=(x, y))
    one_step = {"rounds": 1, "local_steps": 1, "batch_size": 100}

    def update(federation: dict[str, Any], width: int, clients: list[int]) -> np.ndarray:
        settings = build_experiment(width, federation={**federation, "participation": [clients]})
        return next(fr.iter_rounds(settings, federation=twins, model=model)).parameters

    together, first = update(one_step, 2, [0, 1]), update(one_step, 1, [0])
    assert not np.allclose(together, first)  # the mean of two equal draws would equal one of them


def test_frozen_parameters_are_unchanged_and_in_neither_vector_nor_norm() -> None:
    model = build_seeded(lambda: torch.nn.Linear(2, 4), lambda: torch.nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    settings = build_experiment(2, regularizer={"name": "fednar", "weight_decay": 0.5, "clip_bound": 0.1})
    *_, last = fr.iter_rounds(settings, federation=build_small_federation((6, 8)), model=model)
    assert len(last.parameters) == 4 + 4 * 3 + 3
    assert last.metrics["update_norm"] <= 3 * 0.1 * 0.1 * (1 + 1e-5)


def poison(sizes: tuple[int, ...], bad: int) -> fr.Federation:
    """Builds a federation in which one client's examples are huge, equal and differently labeled: it diverges."""
    federation = build_small_federation(sizes)
    shards = [federation.shards.only(i).examples for i in range(len(sizes))]
    clients = [(shard.x, shard.y) for shard in shards]
    clients[bad] = (np.full_like(shards[bad].x, 1e38), np.arange(sizes[bad]) % 3)
    return fr.Federation(clients, test=(federation.test.x, federation.test.y))


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("preset", ["fedavg", "scaffold", "feddyn"])
def test_a_client_that_is_not_finite_never_reaches_the_aggregate(
    preset: str, width: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_seeded(lambda: torch.nn.Linear(2, 4), lambda: torch.nn.Linear(4, 3))
    settings = build_experiment(width, algorithm={"name": preset, "local_lr": 0.1})
    with caplog.at_level(logging.WARNING):
        reports = list(fr.iter_rounds(settings, federation=poison((6, 8, 10), bad=1), model=model))
    for report in reports:
        assert np.isfinite(report.parameters).all()
        assert report.metrics["clients_failed"] == 1
        assert report.metrics["clients_trained"] == 2
        assert list(report.exclusions) == [1]
        assert np.isfinite(list(report.metrics.values())).all()
    assert any("client 1" in record.message for record in caplog.records)


def test_the_aggregate_equals_that_without_the_excluded_client() -> None:
    model = build_seeded(lambda: torch.nn.Linear(2, 4), lambda: torch.nn.Linear(4, 3))
    federation = poison((6, 8, 10), bad=1)
    settings = build_experiment(
        1, federation={"rounds": 1, "local_steps": 3, "batch_size": 100, "participation": [[0, 2]]}
    )
    without = next(fr.iter_rounds(settings, federation=federation, model=model))
    with_it = next(fr.iter_rounds(build_experiment(1), federation=federation, model=model))
    np.testing.assert_array_equal(with_it.parameters, without.parameters)


def test_a_round_without_any_finite_client_ends_the_run() -> None:
    settings = build_experiment(2, algorithm={"local_lr": 1e30})
    with pytest.raises(fr.RoundAborted, match=r"round 0 aborted: "):
        list(
            fr.iter_rounds(
                settings, federation=build_small_federation((6, 8)), model=build_seeded(lambda: torch.nn.Linear(2, 3))
            )
        )
