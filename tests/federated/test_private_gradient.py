"""DP-SGD's gradient against one plain backward pass per example, and its limits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fednar_ray.core.flat_params import ParameterLayout, flatten
from fednar_ray.data.batches import BatchPlan
from fednar_ray.federated.private_gradient import PrivateGradient
from fednar_ray.models.tasks import CLASSIFICATION
from tests.support.drawn import draw

FEATURES, CLASSES = 5, 3
CPU = torch.device("cpu")


def build_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES))


def build_batch(examples: int, seed: int = 1) -> BatchPlan:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((max(examples, 1), FEATURES), dtype=np.float32))
    y = torch.from_numpy(rng.integers(0, CLASSES, max(examples, 1)))
    index = torch.arange(examples).view(1, 1, examples)
    return BatchPlan(x, y, index, torch.ones(1, 1, examples), np.array([[examples]]))


def build_gradient(model: nn.Module, norm: float, physical_batch: int = 8, noise: float = 0.0, expected: float = 1.0):
    layout = ParameterLayout.of(model)
    gradient = PrivateGradient(model, layout, CLASSIFICATION, CPU, norm=norm, physical_batch=physical_batch)
    gradient.params.copy_(torch.from_numpy(flatten(model)))
    gradient.begin(np.random.default_rng(7), noise, expected)
    return gradient


def compute_each(model: nn.Module, batch: BatchPlan) -> Tensor:
    """Computes the gradient of each example by itself, [n, d]."""
    rows = []
    for x, y in zip(batch.x, batch.y, strict=True):
        model.zero_grad()
        cross_entropy(model(x[None]), y[None]).backward()
        rows.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    return torch.stack(rows)


@pytest.mark.parametrize("examples", [1, 3, 8, 9, 20])
@pytest.mark.parametrize("norm", [0.3, 1.0, 100.0])
def test_it_is_the_mean_of_clipped_gradients_with_the_stated_noise(examples: int, norm: float) -> None:
    model, batch = build_model(), build_batch(examples)
    rows = compute_each(model, batch)
    clipped = rows * (norm / rows.norm(dim=1, keepdim=True)).clamp(max=1)
    noise = np.random.default_rng(7).standard_normal(rows.shape[1], dtype=np.float32) * 1.5 * norm
    got, loss = build_gradient(model, norm, noise=1.5, expected=6.0)(batch, 0)
    torch.testing.assert_close(got[0], (clipped.sum(dim=0) + torch.from_numpy(noise)) / 6.0, rtol=1e-4, atol=1e-5)
    assert loss.tolist() == [0.0]  # a mean of losses would be released without noise


def test_without_noise_and_clipping_it_is_the_plain_gradient() -> None:
    model, batch = build_model(), build_batch(20)
    got, _ = build_gradient(model, 1e6, expected=20.0)(batch, 0)
    torch.testing.assert_close(got[0], compute_each(model, batch).mean(dim=0), rtol=1e-4, atol=1e-6)


def test_an_empty_draw_is_noise_alone() -> None:
    model = build_model()
    got, _ = build_gradient(model, 0.5, noise=2.0, expected=4.0)(build_batch(0), 0)
    noise = np.random.default_rng(7).standard_normal(got.shape, dtype=np.float32)
    np.testing.assert_allclose(got.numpy(), noise * 2.0 * 0.5 / 4.0, rtol=1e-6)


@pytest.mark.parametrize("physical_batch", [1, 3, 64])
def test_a_draw_is_split_and_padded_and_never_truncated(physical_batch: int) -> None:
    model, batch = build_model(), build_batch(10)
    whole, _ = build_gradient(model, 0.5, physical_batch=10)(batch, 0)
    got, _ = build_gradient(model, 0.5, physical_batch=physical_batch)(batch, 0)
    torch.testing.assert_close(got, whole, rtol=1e-5, atol=1e-6)


@draw(30)
@given(seed=st.integers(0, 1000), norm=st.sampled_from([1e-3, 0.1, 1.0, 30.0]), scale=st.sampled_from([1e-3, 1.0, 1e4]))
def test_no_single_example_changes_the_sum_by_more_than_the_bound(seed: int, norm: float, scale: float) -> None:
    model, batch = build_model(seed), build_batch(1, seed)
    batch.x.mul_(scale)
    got, _ = build_gradient(model, norm, physical_batch=2)(batch, 0)
    assert float(got.double().norm()) <= norm


def test_the_gradient_of_a_large_model_is_not_longer_than_the_bound() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1000, 2000), nn.Linear(2000, CLASSES))
    x = torch.full((1, 1000), 1e-2)
    batch = BatchPlan(x, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, 1, dtype=torch.int64),
                      torch.ones(1, 1, 1), np.array([[1]]))  # fmt: skip
    got, _ = build_gradient(model, 1e-3, physical_batch=1)(batch, 0)
    assert 0.99e-3 < float(got.double().norm()) <= 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_example_whose_gradient_is_not_finite_counts_as_zero(value: float) -> None:
    model, batch = build_model(), build_batch(6)
    batch.x[2] = value
    kept = [0, 1, 3, 4, 5]
    rest = BatchPlan(batch.x[kept], batch.y[kept], torch.arange(5).view(1, 1, 5), torch.ones(1, 1, 5), np.array([[5]]))
    got, _ = build_gradient(model, 0.5)(batch, 0)
    torch.testing.assert_close(got, build_gradient(model, 0.5)(rest, 0)[0], rtol=1e-5, atol=1e-6)
