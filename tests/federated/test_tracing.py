"""A traced function computes the same bits as the function, also once the parameters have changed in place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fednar_ray.core.flat_params import ParameterLayout
from fednar_ray.federated.tracing import trace
from fednar_ray.models.tasks import BINARY, CLASSIFICATION, REGRESSION, Task


class Twice(nn.Module):
    """Uses a layer's output more than once, and its weight outside of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h.relu() + h + (h + h.relu()) @ self.layer.weight


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
    "bare bias": lambda: nn.Sequential(nn.Linear(6, 3, bias=False), nn.Softplus(), nn.Linear(3, 3)),
    "twice": Twice,
    "convolutions": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 3)
    ),
    "residual": lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU(inplace=True), nn.Linear(6, 3)),
}


def build_gradient(
    model: nn.Module, task: Task, randomness: str = "error"
) -> tuple[Callable[..., Any], ParameterLayout]:
    layout = ParameterLayout.of(model)

    def loss(vector: Tensor, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        return task.weighted_loss(functional_call(model, layout.unflatten(vector), (x,)), y, weights)

    return vmap(grad_and_value(loss), randomness=randomness), layout


@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize("name", MODELS)
def test_a_traced_gradient_has_the_same_bits(name: str, rows: int) -> None:
    torch.manual_seed(0)
    function, layout = build_gradient(MODELS[name](), CLASSIFICATION)
    params = torch.randn(rows, layout.dimension)
    x, y = torch.randn(rows, 4, 6), torch.randint(3, (rows, 4))
    weights = torch.full((rows, 4), 0.25)
    traced = trace(function, params, x, y, weights)
    given = [each.clone() for each in (x, y, weights)]
    for _ in range(3):
        before = params.clone()
        wanted_grad, wanted_loss = function(params, x, y, weights)
        grad, loss = traced(params, x, y, weights)
        assert torch.equal(grad, wanted_grad)
        assert torch.equal(loss, wanted_loss)
        assert torch.equal(params, before)  # a program does not change its arguments
        assert all(torch.equal(now, then) for now, then in zip((x, y, weights), given, strict=True))
        params.sub_(grad, alpha=0.5)


@pytest.mark.parametrize("task", [BINARY, REGRESSION], ids=["binary", "regression"])
def test_one_output_is_traced_as_well(task: Task) -> None:
    torch.manual_seed(0)
    function, layout = build_gradient(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)), task)
    params, x, y = torch.randn(3, layout.dimension), torch.randn(3, 4, 6), torch.rand(3, 4).round()
    weights = torch.full((3, 4), 0.25)
    traced = trace(function, params, x, y, weights)
    for got, wanted in zip(traced(params, x, y, weights), function(params, x, y, weights), strict=True):
        assert torch.equal(got, wanted)
