"""Random numbers of layers follow from their addresses alone, and have the distributions of torch's own."""

from collections.abc import Callable
from math import erf, exp, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

import fednar_ray as fr
from fednar_ray.federated.addressed_draws import DRAWS, STEP, AddressedDraws, UnaddressedDraw, _mix, build_keys
from tests.conftest import build_small_federation

COUNT = 50_000


def build_tensor_keys(clients: tuple[int, ...], steps: int = 1, round_index: int = 0, seed: int = 0) -> Tensor:
    return torch.from_numpy(build_keys(seed, round_index, clients, steps))


def test_the_generator_is_splitmix64() -> None:
    # the first outputs of the published generator for the seed 1234567
    counters = torch.arange(1, 6) * STEP
    assert _mix(counters + 1234567).numpy().view(np.uint64).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


KEY = torch.zeros(1, 1, dtype=torch.int64) + 7

DISTRIBUTIONS: dict[str, tuple[Callable[[], Tensor], Callable[[float], float]]] = {
    "rand": (lambda: torch.rand(COUNT), lambda x: x),
    "uniform_": (lambda: (torch.empty(COUNT).uniform_(-2, 6) + 2) / 8, lambda x: x),
    "rand_like": (lambda: torch.rand_like(torch.empty(COUNT)), lambda x: x),
    "randn": (lambda: torch.randn(COUNT), lambda x: (1 + erf(x / sqrt(2))) / 2),
    "randn_like": (lambda: torch.randn_like(torch.empty(COUNT)), lambda x: (1 + erf(x / sqrt(2))) / 2),
    "normal_": (lambda: (torch.empty(COUNT).normal_(3, 2) - 3) / 2, lambda x: (1 + erf(x / sqrt(2))) / 2),
    "normal": (lambda: torch.normal(torch.zeros(COUNT), 1.0), lambda x: (1 + erf(x / sqrt(2))) / 2),
    "exponential_": (lambda: torch.empty(COUNT).exponential_(2.0) * 2, lambda x: 1 - exp(-x)),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_numbers_have_the_distribution_that_the_operator_promises(name: str) -> None:
    draw, cumulative = DISTRIBUTIONS[name]
    with AddressedDraws(KEY):
        values = np.sort(draw().numpy().astype(np.float64))
    ranks = np.arange(COUNT) / COUNT
    # Kolmogorov's distance; beyond 1.95/√n in one of a thousand samples
    assert np.abs(np.array([cumulative(x) for x in values]) - ranks).max() < 1.95 / sqrt(COUNT)


def test_integers_and_coins_have_their_frequencies() -> None:
    with AddressedDraws(KEY):
        integers, coins = torch.randint(2, 9, (COUNT,)), torch.empty(COUNT).bernoulli_(0.3)
        by_place = torch.bernoulli(torch.tensor([0.0, 1.0]).repeat(100))
    assert integers.dtype == torch.int64
    np.testing.assert_allclose(np.bincount(integers, minlength=9)[2:] / COUNT, 1 / 7, atol=0.01)
    assert abs(float(coins.mean()) - 0.3) < 0.01
    np.testing.assert_array_equal(by_place.view(-1, 2).numpy(), np.tile([0.0, 1.0], (100, 1)))


def test_addresses_that_differ_in_anything_have_unrelated_numbers() -> None:
    keys = [
        *build_tensor_keys((4, 5), steps=2).view(4, 1),
        build_tensor_keys((4,), round_index=1).view(1),
        build_tensor_keys((4,), seed=1).view(1),
    ]
    rows = []
    for key in keys:
        with AddressedDraws(key.view(1, 1)):
            rows += [torch.rand(COUNT), torch.rand(COUNT), torch.randn(COUNT)]  # three calls
    off = np.abs(np.corrcoef(torch.stack(rows).numpy()) - np.eye(len(rows)))
    assert off.max() < 5 / sqrt(COUNT)


@pytest.mark.parametrize("clients", [(3,), (3, 8), (8, 3, 5, 1, 0)])
def test_a_client_has_the_same_masks_in_a_group_of_any_size(clients: tuple[int, ...]) -> None:
    x, row = torch.ones(len(clients), 6, 5), clients.index(3)
    with AddressedDraws(build_tensor_keys((3,))[0]):
        alone = dropout(x[row], 0.4)
    with AddressedDraws(build_tensor_keys(clients)[0]):
        group = vmap(lambda each: dropout(each, 0.4), randomness="different")(x)
    assert torch.equal(group[row], alone)
    kept = set(alone.unique().tolist())
    assert kept == {0.0, float(torch.tensor(1.0) / 0.6)}


def test_fewer_steps_have_the_first_keys_and_empty_rows_do_not_matter() -> None:
    keys = build_keys(0, 2, (4, 9), 5)
    np.testing.assert_array_equal(build_keys(0, 2, (4,), 3), keys[:3, :1])
    np.testing.assert_array_equal(build_keys(0, 2, (4, 9), 5, height=4)[:, :2], keys)


@pytest.mark.parametrize("draw", [lambda x: x * torch.randperm(x.numel()), lambda x: torch.multinomial(x.exp(), 1)])
def test_an_operator_without_addresses_is_refused_by_name(draw: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnaddressedDraw, match=r"randperm|multinomial"), AddressedDraws(KEY):
        draw(torch.ones(4))


def test_a_generator_of_its_own_is_not_replaced() -> None:
    with pytest.raises(UnaddressedDraw, match="rand"), AddressedDraws(KEY):
        torch.rand(3, generator=torch.Generator())


def test_recomputed_activations_are_refused_since_their_masks_would_differ() -> None:
    x = torch.ones(4, requires_grad=True)
    with pytest.raises(UnaddressedDraw, match="backward"), AddressedDraws(KEY):
        checkpoint(lambda each: dropout(each, 0.5), x, use_reentrant=False).sum().backward()


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.3),
    "dropout of channels": lambda: nn.Sequential(nn.Unflatten(1, (4, 2)), nn.Dropout1d(0.3), nn.Flatten()),
    "alpha dropout": lambda: nn.AlphaDropout(0.3),
    "noise": lambda: Noise(),
    "dropout of attention": lambda: Attention(),
}


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(x.shape[1]) + 0.1 * torch.randn_like(x) + torch.empty_like(x).exponential_()


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, 1, 4, 2)
        return nn.functional.scaled_dot_product_attention(rows, rows, rows, dropout_p=0.3).reshape(x.shape)


def build_experiment(vectorize: int, **federation: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "federation": {"rounds": 2, "local_steps": 3, "batch_size": 8, **federation},
            "algorithm": {"local_lr": 0.1},
            "execution": {"placement": "serial", "vectorize": vectorize},
        }
    )


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize("name", LAYERS)
def test_training_with_random_layers_does_not_depend_on_the_groups(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), LAYERS[name](), nn.Linear(8, 3))
    federation = build_small_federation((8, 30, 12, 9, 21))
    runs = [
        list(fr.iter_rounds(build_experiment(size), federation=federation, model=model))[-1].parameters
        for size in (1, 2, 5)
    ]
    for parameters in runs[1:]:
        np.testing.assert_allclose(parameters, runs[0], rtol=1e-4, atol=2e-6)
    other = fr.iter_rounds(build_experiment(5, local_steps=2), federation=federation, model=model)
    assert np.abs(list(other)[-1].parameters - runs[0]).max() > 1e-3  # such differences would show


def test_the_masks_that_training_uses_are_those_of_the_addresses() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    federation = build_small_federation((8,))
    settings = build_experiment(1, rounds=1, local_steps=2)
    report = next(fr.iter_rounds(settings, federation=federation, model=model))
    vector = torch.cat([each.detach().reshape(-1) for each in model.parameters()]).clone()
    x, y = (torch.from_numpy(each) for each in (federation.shards.examples.x, federation.shards.examples.y))
    regularizer = settings.regularizer
    for key in build_tensor_keys((0,), steps=2):
        uniform = (_mix((_mix(key + _CALL_ONE) + torch.arange(1, 25)) * STEP).numpy().view(np.uint64) >> 40) / 2**24
        mask = torch.from_numpy((uniform < 0.5).astype(np.float32)).view(8, 3) * 2

        def loss(v: Tensor, mask: Tensor = mask) -> Tensor:
            return nn.functional.cross_entropy((x @ v[:6].view(3, 2).T + v[6:]) * mask, y)

        grad, _ = grad_and_value(loss)(vector)
        step = grad + regularizer.weight_decay * vector
        vector = vector - 0.1 * step * min(1.0, regularizer.clip_bound / (float(step.norm()) + 1e-6))
    np.testing.assert_allclose(report.parameters, vector.numpy(), rtol=1e-4, atol=1e-6)


_CALL_ONE = -0x4B47D0C5F6C9A1D5


def test_a_model_whose_numbers_have_no_addresses_trains_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Permuted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * torch.randperm(3)

    federation = build_small_federation((8, 9))
    torch.manual_seed(0)
    next(fr.iter_rounds(build_experiment(2), federation=federation, model=Permuted()))
    assert "randperm draws random numbers that have no address" in caplog.text


@pytest.mark.parametrize("operator", DRAWS, ids=str)
def test_a_draw_has_the_shape_and_the_type_of_torchs_own(operator: Any) -> None:
    size, x = [3, 4], torch.full((3, 4), 0.5)
    arguments: dict[str, tuple[Any, ...]] = {
        "aten.rand.default": (size,),
        "aten.randn.default": (size,),
        "aten.normal.float_float": (0.0, 1.0, size),
        "aten.normal.Tensor_float": (x, 1.0),
        "aten.normal.float_Tensor": (0.0, x),
        "aten.normal.Tensor_Tensor": (x, x),
        "aten.bernoulli.p": (x, 0.5),
        "aten.bernoulli_.Tensor": (x.clone(), x),
        "aten.randint.default": (5, size),
        "aten.randint.low": (2, 5, size),
        "aten.native_dropout.default": (x, 0.5, True),
    }
    given = arguments.get(str(operator), (x.clone(),))
    wanted = operator(*given)
    with AddressedDraws(KEY):
        got, again = operator(*given), operator(*given)
    for one, other in zip(*(each if isinstance(each, tuple) else (each,) for each in (got, wanted)), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert again is not None
