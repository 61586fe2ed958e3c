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

from fednar_ray.federated.addressed_draws import AddressedDraws, build_keys
from fednar_ray.federated.recorder import CannotRecord, record
from fednar_ray.models.tasks import CLASSIFICATION
from tests.federated.test_tracing import MODELS, build_gradient


class Constant(nn.Module):
    """Makes tensors of numbers in its forward, reads one, and writes to another; two buffers share memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, table = nn.Linear(6, 3), torch.linspace(0.5, 1.0, 6).view(2, 3)
        self.register_buffer("scale", table[0])
        self.register_buffer("shift", table[1])
        self.register_buffer("temperature", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        factor = torch.tensor([1.0, 2.0, 3.0])
        factor.mul_(2)
        return self.layer(x) * factor * self.scale[:3] + self.shift * float(self.temperature) * torch.tensor(3.0).item()


RECORDED = {
    **MODELS,
    "constants": Constant,
    "frozen": lambda: nn.Sequential(nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3)),
}


def describe(module: fx.GraphModule) -> list[Any]:
    """Returns the operators, each with its arguments: those of the function, constants, or results by number."""
    module.graph.eliminate_dead_code()
    names: dict[fx.Node, str] = {}
    found: list[Any] = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            names[node] = f"argument {len(names)}"
        elif node.op == "get_attr":
            names[node] = "constant"
        elif node.target is operator.getitem:
            names[node] = f"{names[node.args[0]]}[{node.args[1]}]"
        elif node.op == "call_function":
            names[node] = f"result {len(found)}"
            found.append((node.target, str(fx.map_arg((node.args, node.kwargs), names.__getitem__))))
        else:
            found.append(str(fx.map_arg(node.args, names.__getitem__)))
    return found


def build_arguments(dimension: int) -> tuple[Tensor, ...]:
    weights = torch.full((3, 4), 0.25)
    return torch.randn(3, dimension), torch.randn(3, 4, 6), torch.randint(3, (3, 4)), weights


@pytest.mark.parametrize("name", RECORDED)
def test_the_graph_is_that_of_make_fx(name: str) -> None:
    function, layout = build_gradient(RECORDED[name](), CLASSIFICATION)
    arguments = build_arguments(layout.dimension)
    recorded = describe(record(function, *arguments))
    assert len(recorded) > 20
    assert recorded == describe(make_fx(function)(*arguments))


@pytest.mark.parametrize("name", RECORDED)
def test_each_call_computes_what_the_function_does(name: str) -> None:
    function, layout = build_gradient(RECORDED[name](), CLASSIFICATION)
    program = record(function, *build_arguments(layout.dimension))
    for _ in range(3):
        arguments = build_arguments(layout.dimension)
        for got, wanted in zip(program(*arguments), function(*arguments), strict=True):
            assert torch.equal(got, wanted)


def test_dropout_at_addresses_is_recorded() -> None:
    function, layout = build_gradient(
        nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)), CLASSIFICATION, "different"
    )

    def draw(params: Tensor, x: Tensor, y: Tensor, weights: Tensor, keys: Tensor) -> Any:
        with AddressedDraws(keys):
            return function(params, x, y, weights)

    keys = [torch.from_numpy(build_keys(0, each, (0, 1, 2), 1)[0]) for each in range(3)]
    arguments = build_arguments(layout.dimension)
    program = record(draw, *arguments, keys[0])
    gradients = [program(*arguments, each)[0] for each in keys]
    for got, each in zip(gradients, keys, strict=True):
        assert torch.equal(got, draw(*arguments, each)[0])
    assert not torch.equal(gradients[0], gradients[1])


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


def test_constants_that_share_memory_may_be_read_by_an_operator_that_writes() -> None:
    table = torch.tensor([2.0, 3.0])
    scale, shift = table[:1], table[1:]
    program = record(lambda x: (x * 1).mul_(scale) + shift + float(shift), torch.ones(1))
    assert program(torch.tensor([5.0])).item() == 16.0


def test_data_is_the_tensor_itself() -> None:
    assert record(lambda x: x + (x * 2).data + x.data, torch.ones(1))(torch.tensor([5.0])).item() == 20.0


def test_several_results_of_one_operator_are_told_apart() -> None:
    def spread(x: Tensor) -> Tensor:
        low, high = torch.aminmax(x)
        return high - low

    assert record(spread, torch.tensor([1.0, 5.0]))(torch.tensor([2.0, 9.0])).item() == 7.0


def _add_to_a_list(x: Tensor) -> Tensor:
    sums = [torch.tensor(0.0), torch.tensor(1.0)]
    torch._foreach_add_(sums, [x.sum(), x.max()])
    return x + float(sums[0])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2 if x.sum() > 0 else x,
        lambda x: x * float(x.max()),
        lambda x: x + (1 if torch.equal(x, x) else 2),
        lambda x: x + torch.from_numpy(x.numpy()),
        lambda x: torch.from_numpy((x * 2).numpy()) + x,
        lambda x: x + float(torch.tensor(0.0).add_(x.sum())),
        lambda x: x + float(torch.sum(x, 0, out=torch.tensor(0.0))),
        _add_to_a_list,
    ],
    ids=[
        "a condition",
        "a value",
        "a comparison",
        "an argument by way of NumPy",
        "a result by way of NumPy",
        "a written constant",
        "a constant for the result",
        "a written list",
    ],
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
    assert done.stdout.split() == ["False", "False", "True", "False", "True"], done.stderr


def test_a_mode_is_hidden_from_a_compiler_that_is_in_use() -> None:
    compiled: list[fx.GraphModule] = []

    def count(module: fx.GraphModule, example_inputs: list[Tensor]) -> Any:
        compiled.append(module)
        return module.forward

    layer = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), backend=count)
    keys = torch.from_numpy(build_keys(0, 0, (0,), 1)[0])
    with torch.no_grad(), AddressedDraws(keys):
        first = layer(torch.ones(3, 4))
    with torch.no_grad(), AddressedDraws(keys):
        assert torch.equal(layer(torch.ones(3, 4)), first)
    assert all("bitwise" not in module.code for module in compiled)  # the draws themselves
