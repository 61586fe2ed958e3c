"""Custom models that deepcopy or pickle refuse: they train nevertheless, or are refused by name before Ray starts."""

import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune

import fednar_ray as fr
from fednar_ray.config import AnyModel, read_model
from fednar_ray.core.errors import ModelError
from fednar_ray.core.flat_params import flatten
from fednar_ray.core.module_state import copy_model
from fednar_ray.models import build_model
from tests.conftest import build_small_federation

SERIAL = {"placement": "serial"}


def build_model_settings(**values: Any) -> AnyModel:
    return read_model(values)


def train(model: nn.Module, execution: dict[str, Any] | None = None, rounds: int = 1) -> list[fr.RoundReport]:
    experiment = fr.Experiment.model_validate(
        {
            "federation": {"rounds": rounds, "local_steps": 2, "batch_size": 100},
            "algorithm": {"local_lr": 0.1},
            "regularizer": {"name": "none"},
            "execution": execution or SERIAL,
        }
    )
    return list(fr.iter_rounds(experiment, federation=build_small_federation((8, 24)), model=model))


def train_by_hand(model: nn.Module) -> np.ndarray:
    """Returns the mean of both clients after two full-batch steps of plain SGD, in order of ``parameters()``."""
    start, results = flatten(model), []
    for client_id in range(2):
        pair = build_small_federation((8, 24)).shards.only(client_id).examples
        nn.utils.vector_to_parameters(torch.from_numpy(start.copy()), model.parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            cross_entropy(model(torch.tensor(pair.x)), torch.tensor(pair.y)).backward()
            optimizer.step()
        results.append(flatten(model))
    nn.utils.vector_to_parameters(torch.from_numpy(start.copy()), model.parameters())
    return 0.25 * results[0] + 0.75 * results[1]


def build_weight_normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 4)), nn.ReLU(), nn.Linear(4, 3))


def build_pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


class Remembers(nn.Linear):
    """A model that keeps its outputs in a list."""

    def __init__(self) -> None:
        super().__init__(2, 3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [super().forward(x)]
        return self.seen[0]


def build_used() -> nn.Module:
    model = nn.Sequential(Remembers())
    model(torch.ones(1, 2))
    return model


def build_sparse_embedding() -> nn.Module:
    class Bins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bins, self.head = nn.Embedding(8, 4, sparse=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.bins((x.clamp(-1.9, 1.9) + 2).long()).sum(dim=1))

    return Bins()


@pytest.mark.parametrize("build", [build_weight_normed, build_pruned, build_used, build_sparse_embedding])
def test_a_custom_model_trains_as_in_plain_torch_and_is_not_changed(build: Any) -> None:
    torch.manual_seed(0)
    model = build()
    before = flatten(model)
    (report,) = train(model)
    np.testing.assert_array_equal(flatten(model), before)
    np.testing.assert_allclose(report.parameters, train_by_hand(model), rtol=1e-4, atol=1e-6)


def test_old_weight_norm_has_the_same_parameters_as_the_new_one() -> None:
    model = build_weight_normed()
    new = nn.utils.parametrizations.weight_norm(nn.Linear(2, 4))
    with torch.no_grad():
        for parameter, name in zip(new.parameters(), ("bias", "weight_g", "weight_v"), strict=True):
            parameter.copy_(model[0].get_parameter(name))
    twin = nn.Sequential(new, nn.ReLU(), model[2])
    np.testing.assert_allclose(train(twin)[0].parameters, train(model)[0].parameters, rtol=1e-6, atol=1e-7)


# ——— lazy layers ———


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_are_initialized_from_the_seed_alone() -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))

    first, second = train(lazy()), train(lazy())
    np.testing.assert_array_equal(first[0].parameters, second[0].parameters)
    assert first[0].parameters.shape == (2 * 4 + 4 + 4 + 4 + 4 * 3 + 3,)
    assert first[0].buffers[-1] == 2  # batches tracked, without the batch that determined the shapes


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_train_as_ordinary_layers_with_the_same_initial_weights() -> None:
    from fednar_ray.experiments.prepare import prepare

    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(3))
    experiment = fr.Experiment.model_validate({"execution": SERIAL})
    start = prepare(experiment, build_small_federation((8, 24)), model).model
    assert [type(layer).__name__ for layer in start] == ["Linear", "ReLU", "Linear"]
    assert start.training
    np.testing.assert_allclose(train(model)[0].parameters, train_by_hand(copy_model(start)), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_an_unused_lazy_layer_is_named() -> None:
    class Unused(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 3)
            self.extra = nn.LazyLinear(3)

    with pytest.raises(ModelError, match=r"lazy layers of 0\.extra.weight, 0.extra.bias"):
        train(nn.Sequential(Unused()))


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_loads_weights_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lazy_model_of_a_user.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.LazyLinear(3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = nn.Sequential(nn.Linear(2, 3))
    torch.save(source.state_dict(), tmp_path / "start.pt")
    settings = build_model_settings(function="lazy_model_of_a_user.build", weights=str(tmp_path / "start.pt"))
    np.testing.assert_array_equal(flatten(build_model(settings, (2,), 3, seed=0)), flatten(source))


# ——— models that cannot be copied or sent ———


def build_holding(attribute: str, value: object) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3)))
    setattr(model[1][0], attribute, value)
    return model


UNCOPYABLE = {
    "lock": (lambda: threading.Lock(), "cannot pickle '_thread.lock' object"),
    "log": (lambda: open(__file__, encoding="utf-8"), "cannot pickle '_io.TextIOWrapper' object"),  # noqa: SIM115
    "stream": (lambda: (i for i in range(3)), "cannot pickle 'generator' object"),
}


@pytest.mark.parametrize("attribute", UNCOPYABLE)
@pytest.mark.parametrize("placement", ["serial", "pooled"])
def test_a_model_that_cannot_be_copied_is_refused_with_module_and_attribute(attribute: str, placement: str) -> None:
    value, message = UNCOPYABLE[attribute]
    model = build_holding(attribute, value())
    place = rf"module '1.0' \(Linear\) has an attribute '{attribute}' that cannot be copied"
    with pytest.raises(ModelError, match=f"{place}, .*: {message}"):
        train(model, {"placement": placement})
    getattr(getattr(model[1][0], attribute), "close", lambda: None)()


def test_a_model_with_a_lambda_is_accepted() -> None:
    model = build_holding("activation", lambda x: x.relu())
    (report,) = train(model)
    assert report.metrics["clients_failed"] == 0


def test_a_model_that_can_be_copied_but_not_sent_is_refused_only_on_actors() -> None:
    """A function is copied by reference, but sent together with the values that it closes over."""
    lock = threading.Lock()

    def activation(x: Tensor) -> Tensor:
        with lock:
            return x.relu()

    model = build_holding("activation", activation)
    assert train(model)[0].metrics["clients_failed"] == 0
    started = ray.is_initialized()
    with pytest.raises(ModelError, match=r"module '1.0' \(Linear\) has an attribute 'activation' that cannot be sent"):
        train(model, {"placement": "pooled"})
    assert ray.is_initialized() == started


# ——— integer inputs ———


@pytest.mark.parametrize("kind", ["int64", "uint8", "int16", "uint16", "uint32"])
@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_integer_tables_train_as_their_float32_values(kind: str, name: str) -> None:
    def last(dtype: str) -> fr.RoundReport:
        rng = np.random.default_rng(0)

        def pair(n: int) -> tuple[np.ndarray, np.ndarray]:
            return rng.integers(0, 50, size=(n, 4)).astype(dtype), rng.integers(3, size=n)

        federation = fr.Federation([pair(8), pair(6)], test=pair(9))
        sections = {"model": {"name": name}, "federation": {"rounds": 2, "local_steps": 1}, "execution": SERIAL}
        return list(fr.iter_rounds(fr.Experiment.model_validate(sections), federation=federation))[-1]

    whole, real = last(kind), last("float32")
    np.testing.assert_array_equal(whole.parameters, real.parameters)
    names = {f"test_{name}" for name in ("accuracy", "loss", "log_loss", "macro_f1", "calibration_error")}
    assert {
        key for key in whole.metrics if key.startswith("test_")
    } == names  # no perplexity, since the inputs are not text
    assert {key: whole.metrics[key] for key in names} == {key: real.metrics[key] for key in names}


@pytest.mark.parametrize("settings", [{"name": "cnn", "hidden": 4}, {"name": "cnn_femnist", "hidden": 4}], ids=str)
def test_image_models_accept_integers_too(settings: dict[str, Any]) -> None:
    model = build_model(build_model_settings(**settings), (1, 8, 8), 3, seed=0).eval()
    images = torch.randint(0, 255, (2, 1, 8, 8))
    torch.testing.assert_close(model(images), model(images.float()), rtol=0, atol=0)
    assert model.double()(images.double()).dtype == torch.float64


def test_a_custom_model_that_computes_with_integers_is_advised_to_use_float32() -> None:
    rng = np.random.default_rng(0)
    pair = rng.integers(0, 9, size=(6, 4)), rng.integers(3, size=6)
    with pytest.raises(ModelError, match="the inputs are int64 and reach the model as such; give float32 inputs"):
        next(
            fr.iter_rounds(
                fr.Experiment.model_validate({"execution": SERIAL}),
                federation=fr.Federation([pair], test=pair),
                model=nn.Linear(4, 3),
            )
        )
