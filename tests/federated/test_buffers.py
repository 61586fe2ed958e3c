"""Buffers that training changes are averaged over clients, and all others stay unchanged bit by bit."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fednar_ray as fr
from fednar_ray.core.buffers import find_changed_buffers, have_same_bits
from fednar_ray.core.errors import BuffersChanged, ModelError
from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.flat_params import flatten_buffers, load_buffers
from fednar_ray.federated.model_traits import probe
from tests.conftest import build_small_federation
from tests.support.stores import create_store

SIZES = (8, 24)
INFINITE = torch.triu(torch.full((3, 3), float("-inf")), 1)


class Net(nn.Module):
    """Two linear layers with a buffer. In training, ``change`` returns the buffer's next value, if it is given."""

    def __init__(
        self, buffer: Tensor, change: Callable[["Net", Tensor], Tensor] | None = None, *between: nn.Module
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(2, 4), *between)
        self.head = nn.Linear(4, 3)
        self.change = change
        self.register_buffer("kept", buffer)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.change is not None:
            self.kept = self.change(self, x)
        return self.head(self.body(x))


def build_experiment(**sections: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "federation": {"rounds": 1, "local_steps": 2, "batch_size": 100},
            "algorithm": {"local_lr": 0.1},
            "regularizer": {"name": "none"},
            "execution": {"placement": "serial"},
            **sections,
        }
    )


def train(model: nn.Module, **sections: Any) -> list[fr.RoundReport]:
    return list(fr.iter_rounds(build_experiment(**sections), federation=build_small_federation(SIZES), model=model))


def train_by_hand(model: nn.Module, steps: int = 2) -> list[nn.Module]:
    """Returns each client's model after plain SGD on its whole shard."""
    shards, clients = build_small_federation(SIZES).shards, []
    for client_id in range(len(SIZES)):
        pair, local = shards.only(client_id).examples, copy.deepcopy(model).train()
        for _ in range(steps):
            loss = cross_entropy(local(torch.tensor(pair.x)), torch.tensor(pair.y))
            grads = torch.autograd.grad(loss, list(local.parameters()))
            with torch.no_grad():
                for parameter, grad in zip(local.parameters(), grads, strict=True):
                    parameter -= 0.1 * grad
        clients.append(local)
    return clients


CONSTANT = {
    "infinite mask": INFINITE,
    "NaN": torch.tensor([1.0, float("nan")]),
    "complex": torch.polar(torch.ones(3), torch.tensor([0.1, 1.0, 3.0])),
    "int64 beyond 2^53": torch.tensor([2**60 + 1, -(2**62) - 3]),
    "uint64": torch.tensor([2**63 + 5], dtype=torch.uint64),
    "bool": torch.tensor([True, False, True]),
    "float64": torch.tensor([1 / 3], dtype=torch.float64),
    "bfloat16": torch.tensor([3.14], dtype=torch.bfloat16),
    "sparse": torch.tensor([[0, 2.5], [0, 0]]).to_sparse(),
    "empty": torch.empty(0),
}


def test_constant_buffers_stay_unchanged_next_to_running_statistics(uri: str) -> None:
    model = Net(INFINITE, None, nn.BatchNorm1d(4))
    for name, buffer in CONSTANT.items():
        if name != "sparse":  # the export of a graph does not accept sparse tensors
            model.head.register_buffer(f"kept as {name}", buffer)
    result = fr.run(build_experiment(tracking={"uri": uri}), federation=build_small_federation(SIZES), model=model)
    assert result.metrics["clients_failed"] == 0
    saved = torch.load(result.directory / "model.pt", weights_only=True)
    for name, buffer in model.head.named_buffers(prefix="head"):
        assert have_same_bits(result.model.get_buffer(name), buffer), name
        assert have_same_bits(saved[name], buffer), name
    assert not have_same_bits(result.model.get_buffer("body.1.running_mean"), model.get_buffer("body.1.running_mean"))


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return create_store(tmp_path / "mlflow.db")


def test_a_run_is_resumed_only_if_it_averages_the_same_buffers(uri: str) -> None:
    given: dict[str, Any] = {"federation": build_small_federation(SIZES)}
    fr.run(build_experiment(tracking={"uri": uri}), model=Net(torch.zeros(2), lambda m, x: average(x)), **given)
    longer = build_experiment(tracking={"uri": uri}, federation={"rounds": 2, "local_steps": 2, "batch_size": 100})
    message = "its checkpoint has 2 values of averaged buffers, and this model has 0"
    with pytest.raises(fr.ConfigError, match=message):
        fr.run(longer, model=Net(torch.zeros(2)), resume_newest=True, **given)


@pytest.mark.parametrize("name", CONSTANT)
def test_a_constant_buffer_does_not_reduce_the_group_size_and_is_not_sent(name: str) -> None:
    model = Net(CONSTANT[name])
    traits = probe(model, build_small_federation(SIZES).shards.examples, classes=3)
    assert traits.changed_buffers == ()
    (report,) = train(model)
    assert report.buffers.shape == (0,)
    assert report.metrics["bytes_up"] == 2 * report.parameters.nbytes


def test_only_changed_buffers_count_as_transferred_bytes() -> None:
    (report,) = train(Net(torch.zeros(1000), None, nn.BatchNorm1d(4)))
    assert report.metrics["bytes_down"] == 2 * (report.parameters.nbytes + 4 * (4 + 4 + 1))


def average(x: Tensor) -> Tensor:
    return x.mean(dim=0)


CHANGED = {  # the buffer as given, and its next value in a training step
    "float32": (torch.zeros(2), lambda m, x: 0.9 * m.kept + 0.1 * average(x)),
    "float64": (torch.zeros(2, dtype=torch.float64), lambda m, x: 0.9 * m.kept + 0.1 * average(x).double()),
    "complex64": (torch.zeros(2, dtype=torch.complex64), lambda m, x: m.kept + torch.complex(average(x), -average(x))),
    "complex128": (
        torch.ones(2, dtype=torch.complex128), lambda m, x: m.kept * torch.complex(x[0], x[-1]).to(torch.complex128),
    ),
    "conjugated": (torch.ones(2, dtype=torch.complex64) * 1j, lambda m, x: (m.kept + average(x)).conj()),
    "int32": (torch.tensor(4, dtype=torch.int32), lambda m, x: m.kept + len(x)),
    "int64 up to 2^53": (torch.tensor(2**53 - 100), lambda m, x: m.kept + len(x)),
    "bool": (torch.tensor([False, False]), lambda m, x: torch.tensor([True, len(x) > 10])),
    "in place": (torch.zeros(2), lambda m, x: m.kept.copy_(average(x))),
    "from the second step on": (torch.zeros(2), lambda m, x: torch.stack([m.kept[1] / 2, m.kept[1] * 0 + 3])),
    "infinite at first": (torch.full((2,), float("inf")), lambda m, x: torch.minimum(m.kept, x.amin(dim=0))),
    "follows the parameters": (torch.zeros(3), lambda m, x: m.head.bias.detach().clone()),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_buffer_becomes_the_mean_over_clients(name: str) -> None:
    given, change = CHANGED[name]
    model = Net(given, change)
    (report,) = train(model)
    weights = np.array(SIZES) / sum(SIZES)
    values = [local.get_buffer("kept").resolve_conj().numpy().ravel() for local in train_by_hand(model)]
    wide = np.complex128 if given.is_complex() else np.float64
    mean = sum(w * v.astype(wide) for w, v in zip(weights, values, strict=True))
    expected = mean.view(np.float64) if given.is_complex() else mean
    np.testing.assert_allclose(report.buffers, expected, rtol=1e-5, atol=1e-7)
    load_buffers(model, report.buffers, ["kept"])
    loaded = model.get_buffer("kept")
    assert loaded.dtype == given.dtype
    wanted = mean if given.is_floating_point() or given.is_complex() else np.round(mean)
    np.testing.assert_allclose(loaded.to(torch.complex128).numpy().ravel(), wanted, rtol=1e-5, atol=1e-7)


def test_a_buffer_that_follows_the_parameters_is_detected_without_a_training_step() -> None:
    """The buffer is a teacher that starts as a copy of the student."""
    model = Net(torch.zeros(3), lambda m, x: 0.9 * m.kept + 0.1 * m.head.bias.detach())
    model.get_buffer("kept").copy_(model.head.bias.detach())
    assert probe(model, build_small_federation(SIZES).shards.examples, classes=3).changed_buffers == ("kept",)


REFUSED = {
    "int64 beyond 2^53": (torch.tensor(2**53 + 1), lambda m, x: m.kept + 1, "buffer kept, .* exceed 2\\^53"),
    "a hash": (torch.tensor(7), lambda m, x: m.kept * 6364136223846793005, "buffer kept, .* exceed 2\\^53"),
    "uint64": (
        torch.tensor([5], dtype=torch.uint64),
        lambda m, x: torch.tensor([2**63 + 1], dtype=torch.uint64), "buffer kept, .* exceed 2\\^53",
    ),
    "growing": (torch.zeros(1), lambda m, x: torch.cat([m.kept, x[0]]), r"kept from torch.float32 \[1\] to"),
    "another type": (torch.tensor(0), lambda m, x: m.kept + 0.5, r"kept from torch.int64 \[\] to torch.float32 \[\]"),
    "sparse": (torch.eye(2).to_sparse(), lambda m, x: (2 * m.kept.to_dense()).to_sparse(), "kept, .*sparse"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_changed_buffer_without_a_mean_is_refused_by_name_before_training(name: str) -> None:
    given, change, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        train(Net(given, change))


def test_a_buffer_that_appears_in_the_forward_pass_is_refused_by_name() -> None:
    class Caches(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.register_buffer("cosines", x[0].detach().cos())
            return super().forward(x)

    with pytest.raises(ModelError, match=r"'0' \(Caches\) gets or loses a buffer in forward \(cosines\)"):
        train(nn.Sequential(Caches(2, 3)))


def test_a_client_with_a_buffer_that_is_not_finite_is_excluded_and_the_buffer_is_named() -> None:
    broken = Net(torch.zeros(2), lambda m, x: m.kept + (average(x) if len(x) > 10 or len(x) == 2 else float("inf")))
    (report,) = train(broken)
    assert report.exclusions == {0: Exclusion(ExclusionReason.BUFFER_NOT_FINITE, "kept")}
    (screened,) = train(broken, screening={"max_deviation": 50})
    assert screened.exclusions == report.exclusions
    counter = Net(torch.tensor(0), lambda m, x: m.kept + (1 if len(x) > 10 or len(x) == 2 else 2**60))
    (report,) = train(counter)
    assert report.exclusions == {0: Exclusion(ExclusionReason.BUFFER_TOO_LARGE, "kept")}


def change_after_calls(calls: int) -> Callable[[Net, Tensor], Tensor]:
    """Returns a change that leaves the buffer unchanged in the first ``calls`` calls."""
    made: list[int] = []

    def change(model: Net, x: Tensor) -> Tensor:
        made.append(1)
        return model.kept + (len(made) > calls)

    return change


def test_a_buffer_that_changes_unexpectedly_ends_the_run_and_is_named() -> None:
    with pytest.raises(BuffersChanged, match="training changed buffer kept, which it had not changed in the trial"):
        train(Net(torch.zeros(2), change_after_calls(50)), federation={"rounds": 60, "local_steps": 2})


def test_rewriting_the_same_values_is_not_a_change() -> None:
    (report,) = train(Net(INFINITE.clone(), lambda m, x: m.kept.clone()))
    assert report.metrics["clients_failed"] == 0


def test_an_error_of_changed_buffers_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(BuffersChanged(("a.b",))))  # noqa: S301 - ours
    assert error.names == ("a.b",)


def test_only_named_buffers_are_flattened_and_loaded() -> None:
    module = Net(torch.tensor([1 + 2j, 3 - 4j]), None, nn.BatchNorm1d(4))
    np.testing.assert_array_equal(flatten_buffers(module, ["kept"]), [1, 2, 3, -4])
    load_buffers(module, np.array([5.0, 6, 7, 8]), ["kept"])
    assert module.get_buffer("kept").tolist() == [5 + 6j, 7 + 8j]
    assert flatten_buffers(module, []).shape == (0,)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_buffers_are_compared_bit_by_bit() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    assert have_same_bits(nan, nan.clone())
    assert not have_same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert not have_same_bits(torch.tensor([1]), torch.tensor([1.0]))
    assert not have_same_bits(torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse())
    assert not have_same_bits(torch.eye(2).to_sparse_csr(), torch.eye(2))
    assert have_same_bits(torch.eye(2).to_sparse_csr(), torch.eye(2).to_sparse_csr())
    assert find_changed_buffers({}, nn.Linear(1, 1)) == ()
