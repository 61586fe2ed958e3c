"""The trial of a module on two examples: what is refused, what must train one by one, and what is counted."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fednar_ray as fr
from fednar_ray.config import read_model
from fednar_ray.core.errors import ModelError
from fednar_ray.core.flat_params import flatten, flatten_buffers
from fednar_ray.data.examples import Examples
from fednar_ray.federated.model_traits import ModelTraits, probe
from fednar_ray.federated.vectorization import CPU, choose_group_size
from fednar_ray.models import build_model
from fednar_ray.models.tasks import BINARY, REGRESSION
from tests.conftest import build_small_federation
from tests.support.modules import build_partly_frozen, build_tied


def fail(_: Tensor) -> Tensor:
    raise RuntimeError("no such layer")


class Calls(nn.Module):
    """A linear layer whose outputs go through ``function``."""

    def __init__(self, function=lambda outputs: outputs) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


def build_unfit(module: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        next(module.parameters()).fill_(value)
    return module


UNFIT = {
    "too narrow": (nn.Linear(2, 2), "2 outputs, and the labels run to 2"),
    "one output": (nn.Linear(2, 1), "1 outputs"),
    "rank 1": (Calls(lambda outputs: outputs.sum(dim=-1)), r"gives \[2\] for 2 examples"),
    "rank 3": (Calls(lambda outputs: outputs[:, None]), r"gives \[2, 1, 3\] for 2 examples"),
    "another batch": (Calls(lambda outputs: outputs[:1]), r"gives \[1, 3\] for 2 examples"),
    "a tuple": (Calls(lambda outputs: (outputs, outputs)), "gives tuple"),
    "other features": (nn.Linear(5, 3), r"fails on a batch of shape \[2, 2\]: .*"),
    "its own error": (Calls(fail), "no such layer"),
    "float64": (nn.Linear(2, 3).double(), r"weight is torch\.float64"),
    "float64 inside": (
        nn.Sequential(Calls(Tensor.double), nn.Linear(3, 3).double()),
        r"1\.weight is torch\.float64",
    ),
    "no parameters": (nn.Softmax(dim=-1), "no trainable parameters"),
    "all frozen": (nn.Linear(2, 3).requires_grad_(False), "no trainable parameters"),
    "not finite": (build_unfit(nn.Linear(2, 3), float("nan")), "not finite"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_module_that_cannot_be_trained_is_refused_before_training(case):
    module, message = UNFIT[case]
    experiment = fr.Experiment.model_validate({"execution": {"placement": "serial"}})
    with pytest.raises(ModelError, match=message):
        next(fr.iter_rounds(experiment, federation=build_small_federation((4, 5)), model=module))


# ——— the inspection with a trial batch ———

POINTS = build_small_federation((20,)).shards.examples


def center(outputs: Tensor) -> Tensor:
    return outputs - outputs.mean(dim=0)


def branch(outputs: Tensor) -> Tensor:
    return outputs if outputs.sum() > 0 else 2 * outputs


def scale_by_item(outputs: Tensor) -> Tensor:
    return outputs * (1 + 0 * outputs.sum().item())


NORMED = (nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
MIX = "examples of a batch influence each other"
VERDICTS = {  # whether it tracks buffers, and why it must train one by one
    "linear": (nn.Linear(2, 3), False, None),
    "wider than the classes": (nn.Linear(2, 7), False, None),
    "dropout": (nn.Sequential(nn.Linear(2, 9), nn.Dropout(0.5), nn.Linear(9, 3)), False, None),
    "tied": (build_tied(), False, None),
    "partly frozen": (build_partly_frozen(), False, None),
    "LayerNorm": (nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 3)), False, None),
    "BatchNorm": (nn.Sequential(*NORMED), True, "it keeps running statistics"),
    "BatchNorm without statistics": (
        nn.Sequential(NORMED[0], nn.BatchNorm1d(4, track_running_stats=False), NORMED[2]), False, MIX,
    ),
    "centered": (Calls(center), False, MIX),
    "branching": (Calls(branch), False, ""),
    "item": (Calls(scale_by_item), False, "vmap cannot batch it"),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_a_trial_batch_detects_what_a_model_does(case):
    module, tracks, alone = VERDICTS[case]
    traits = probe(module, POINTS, classes=3)
    assert traits.tracks_buffers == tracks
    assert (traits.alone_because is None) == (alone is None)
    assert alone is None or alone in traits.alone_because


def test_mixing_of_examples_is_detected_if_the_first_and_last_ones_are_equal():
    x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    x[-1] = x[0]
    assert probe(Calls(center), Examples(x, np.zeros(9, np.int64)), classes=3).alone_because == MIX


def test_a_trial_works_with_one_example():
    assert probe(nn.Linear(2, 3), Examples(POINTS.x[:1], POINTS.y[:1]), classes=3).alone_because is None


@pytest.mark.parametrize("case", VERDICTS)
def test_a_trial_changes_neither_module_nor_generator(case):
    module = VERDICTS[case][0].eval()
    before = (flatten(module), flatten_buffers(module), torch.get_rng_state())
    probe(module, POINTS, classes=3)
    for kept, now in zip(before, (flatten(module), flatten_buffers(module), torch.get_rng_state()), strict=True):
        np.testing.assert_array_equal(now, kept)
    assert not module.training
    assert all(parameter.grad is None for parameter in module.parameters())


def test_flops_are_counted_for_the_forward_pass_of_one_example():
    # 2 flops per multiplication and addition: 2·(2·4 + 4·3)
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    traits = probe(module, POINTS, classes=3)
    assert (traits.matmuls, traits.matmul_flops, traits.convolutions, traits.convolution_flops) == (2, 40, 0, 0)


def test_convolutions_are_counted_separately():
    # 3·3·1·2 multiplications and additions for each of 2·2 places; then 2·(2·4)·3
    images = Examples(np.zeros((3, 1, 4, 4), np.float32), np.array([0, 1, 2]))
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    traits = probe(module, images, classes=3)
    assert (traits.matmuls, traits.matmul_flops) == (1, 48)
    assert (traits.convolutions, traits.convolution_flops) == (1, 2 * 9 * 2 * 4)


def test_embeddings_accept_integer_inputs():
    tokens = Examples(np.array([[0, 1], [2, 3], [1, 1]]), np.array([0, 1, 2]))
    module = nn.Sequential(nn.Embedding(4, 5), nn.Flatten(), nn.Linear(10, 3))
    assert probe(module, tokens, classes=3).alone_because is None


def inspect_named_model(name: str, **settings: object) -> ModelTraits:
    tokens = np.random.default_rng(0).integers(80, size=(3, 80), dtype=np.uint8)
    model = build_model(read_model({"name": name, **settings}), (80,), 80, seed=0)
    return probe(model, Examples(tokens, np.zeros(3, np.int64)), classes=80)


def test_a_small_transformer_may_train_in_groups():
    small = inspect_named_model("char_transformer", layers=1, hidden=8)
    assert small.alone_because is None
    # query 128·128 and the rest of the layer for one position, keys and values for 80; 32·80 per head, twice; the head
    flops = 128 * 128 + 80 * 128 * 256 + 2 * 4 * 80 * 32 + 128 * 128 + 2 * 128 * 8 + 128 * 80
    assert (small.matmuls, small.matmul_flops) == (8, 2 * flops)
    assert (
        choose_group_size(inspect_named_model("char_transformer"), 20, 100, CPU) == 1
    )  # 179 million flops per example


def test_an_lstm_trains_one_by_one_since_vmap_would_only_loop():
    traits = inspect_named_model("char_lstm", hidden=4)
    assert "vmap cannot batch it" in traits.alone_because
    assert "batching rule" in traits.alone_because
    assert choose_group_size(traits, 20, 16, CPU) == 1


@pytest.mark.parametrize("task", [BINARY, REGRESSION], ids=["binary", "regression"])
def test_tasks_of_one_output_refuse_more(task):
    assert probe(nn.Linear(2, 1), POINTS, classes=2, task=task).alone_because is None
    with pytest.raises(ModelError, match="the model has 2 outputs; these labels need 1"):
        probe(nn.Linear(2, 2), POINTS, classes=2, task=task)
    with pytest.raises(ModelError, match=r"gives \[2\] for 2 examples; outputs \[2, 1\] are needed"):
        probe(Calls(lambda outputs: outputs.sum(dim=-1)), POINTS, classes=2, task=task)
