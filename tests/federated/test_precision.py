"""float32, TF32 and bfloat16: what torch's flags say meanwhile and afterwards, and what is computed."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch.backends import cuda, cudnn
from torch.nn.functional import cross_entropy

import fednar_ray as fr
from fednar_ray.federated.precision import use_precision
from tests.conftest import build_small_federation

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def read_flags() -> tuple[Any, ...]:
    flags = torch.get_float32_matmul_precision(), cuda.matmul.allow_tf32, cudnn.allow_tf32
    return *flags, cudnn.deterministic, cudnn.benchmark


@pytest.mark.parametrize(
    ("precision", "device", "wanted"),
    [
        ("float32", GPU, ("highest", False, False, True, False)),
        ("bfloat16", GPU, ("highest", False, False, True, False)),
        ("tf32", GPU, ("high", True, True, True, False)),
        ("float32", CPU, ("highest", False, True, False, False)),
    ],
)
@pytest.mark.parametrize("before", ["highest", "medium"])
def test_the_flags_are_set_for_the_time_of_training_and_restored_after_an_error(precision, device, wanted, before):
    torch.set_float32_matmul_precision(before)
    given, seen = read_flags(), []
    try:
        with suppress(ZeroDivisionError), use_precision(precision, device):
            seen.append(read_flags())
            with use_precision("float32", device):
                assert not cuda.matmul.allow_tf32
            seen.append(read_flags())
            raise ZeroDivisionError
        assert read_flags() == given
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [wanted, wanted]


@pytest.mark.skipif(not hasattr(cuda.matmul, "fp32_precision"), reason="this torch has only the older flags")
def test_flags_that_someone_has_set_under_their_new_names_are_set_and_restored():
    places = (cuda.matmul, cudnn.conv, cudnn.rnn)
    given = [place.fp32_precision for place in places]
    try:
        for place, value in zip(places, ("tf32", "ieee", "ieee"), strict=True):
            place.fp32_precision = value
        with use_precision("float32", GPU):
            assert not cuda.matmul.allow_tf32
            assert not cudnn.allow_tf32
            assert "tf32" not in [place.fp32_precision for place in places]
        assert [place.fp32_precision for place in places] == ["tf32", "ieee", "ieee"]
    finally:
        for place, value in zip(places, given, strict=True):
            place.fp32_precision = value


def train(precision: str, width: int, rounds: int = 1) -> fr.RoundReport:
    values = {
        "federation": {"rounds": rounds, "local_steps": 3, "batch_size": 100},
        "algorithm": {"local_lr": 0.5},
        "regularizer": {"name": "none"},
        "execution": {"placement": "serial", "vectorize": width, "precision": precision},
    }
    experiment = fr.Experiment.model_validate(values)
    return [*fr.iter_rounds(experiment, federation=build_small_federation((6, 18)), model=build_model())][-1]


def build_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def test_bfloat16_is_an_autocast_forward_with_float32_parameters_and_updates():
    """The same steps written with torch alone give the same parameters and test loss."""
    federation, finals = build_small_federation((6, 18)), []
    for client_id in range(2):
        model, shard = build_model(), federation.shards.only(client_id).examples
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                outputs = model(torch.tensor(shard.x))
                loss = cross_entropy(outputs, torch.tensor(shard.y))
            loss.backward()
            optimizer.step()
        finals.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy())
    report, exact = train("bfloat16", 1), train("float32", 1)
    assert report.parameters.dtype == np.float32
    wanted = np.average(finals, axis=0, weights=[0.25, 0.75])
    np.testing.assert_allclose(report.parameters, wanted, rtol=1e-5, atol=1e-6)
    assert np.abs(exact.parameters - wanted).max() > 1e-4  # the precision shows, far above the tolerance
    torch.nn.utils.vector_to_parameters(torch.tensor(report.parameters), model.parameters())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        outputs = model(torch.tensor(federation.test.x))
        loss = cross_entropy(outputs, torch.tensor(federation.test.y))
    assert report.metrics["test_loss"] == pytest.approx(float(loss), rel=1e-6)


def test_a_group_in_bfloat16_differs_from_single_clients_by_the_rounding_of_bfloat16():
    alone, group = train("bfloat16", 1, rounds=3).parameters, train("bfloat16", 2, rounds=3).parameters
    assert np.linalg.norm(group - alone) < 2**-7 * np.linalg.norm(alone)
    assert not np.array_equal(group, train("float32", 2, rounds=3).parameters)
