"""The recorder gives the graph of torch's own ``make_fx``, without torch's compiler, or says that it cannot."""

import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fednar_ray.federated.recorder import CannotRecord, record
from fednar_ray.models.tasks import CLASSIFICATION
from tests.federated.test_tracing import MODELS, build_gradient


def list_operators(module: fx.GraphModule) -> list[Any]:
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    return [node.target for node in nodes if node.target is not operator.getitem]


def build_arguments(dimension: int) -> tuple[Tensor, ...]:
    weights = torch.full((3, 4), 0.25)
    return torch.randn(3, dimension), torch.randn(3, 4, 6), torch.randint(3, (3, 4)), weights


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_is_that_of_make_fx(name: str) -> None:
    function, layout = build_gradient(MODELS[name](), CLASSIFICATION)
    arguments = build_arguments(layout.dimension)
    assert list_operators(record(function, *arguments)) == list_operators(make_fx(function)(*arguments))


def test_a_program_follows_its_arguments_and_keeps_its_constants() -> None:
    frozen = nn.Linear(6, 6).requires_grad_(False)
    function, layout = build_gradient(nn.Sequential(frozen, nn.Linear(6, 3)), CLASSIFICATION)
    program = record(function, *build_arguments(layout.dimension))
    arguments = build_arguments(layout.dimension)
    for got, wanted in zip(program(*arguments), function(*arguments), strict=True):
        assert torch.equal(got, wanted)
    with torch.no_grad():
        frozen.weight.add_(1.0)
    for got, wanted in zip(program(*arguments), function(*arguments), strict=True):
        assert torch.equal(got, wanted)  # the constant is the tensor itself


def test_a_write_into_an_argument_is_recorded() -> None:
    def add(x: Tensor, y: Tensor) -> Tensor:
        x.add_(y)
        return x * 2

    program, x = record(add, torch.ones(2), torch.ones(2)), torch.zeros(2)
    assert program(x, torch.full((2,), 3.0)).tolist() == [6.0, 6.0]
    assert x.tolist() == [3.0, 3.0]


def test_data_is_the_tensor_itself() -> None:
    assert record(lambda x: x + (x * 2).data + x.data, torch.ones(1))(torch.tensor([5.0])).item() == 20.0


def test_several_results_of_one_operator_are_told_apart() -> None:
    def spread(x: Tensor) -> Tensor:
        low, high = torch.aminmax(x)
        return high - low

    assert record(spread, torch.tensor([1.0, 5.0]))(torch.tensor([2.0, 9.0])).item() == 7.0


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2 if x.sum() > 0 else x,
        lambda x: x * float(x.max()),
        lambda x: x + (1 if torch.equal(x, x) else 2),
        lambda x: x + torch.from_numpy(x.numpy()),
        lambda x: torch.from_numpy((x * 2).numpy()) + x,
    ],
    ids=["a condition", "a value", "a comparison", "an argument by way of NumPy", "a result by way of NumPy"],
)
def test_what_would_be_another_program_for_other_values_cannot_be_recorded(function: Any) -> None:
    with pytest.raises(CannotRecord):
        record(function, torch.ones(3))


TRAINING = """
import sys, numpy as np, torch, fednar_ray as fr
rng = np.random.default_rng(0)
clients = [(rng.random((40, 4), dtype=np.float32), rng.integers(2, size=40)) for _ in range(4)]
settings = fr.Experiment.model_validate({
    "federation": {"rounds": 2, "local_steps": 2, "batch_size": 8},
    "model": {"name": "mlp", "hidden": 8, "dropout": 0.1},
    "execution": {"placement": "serial"},
})
for _ in fr.iter_rounds(settings, federation=fr.Federation(clients, test=clients[0])):
    pass
print("torch._dynamo" in sys.modules, "sympy" in sys.modules)
from fednar_ray.federated.recorder import without_compiler
with without_compiler():
    state = torch._dynamo.config.cache_size_limit is not None, torch._dynamo.compiled_autograd.compiled_autograd_enabled
print(*state, sys.modules["torch._dynamo"] is torch._dynamo)
"""


@pytest.mark.usefixtures("processes")
def test_training_does_not_import_the_compiler_and_others_still_can(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TRAINING], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["False", "False", "True", "False", "True"]
