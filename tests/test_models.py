"""Models by name; what a trial batch shows of any module; cohorts; modules as flat vectors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fednar_ray as fr
from fednar_ray.cohorts import CPU, WIDEST, ModelTraits, StepCosts, cohort_width, form_cohorts, probe
from fednar_ray.config import ModelSettings
from fednar_ray.data.federation import Examples
from fednar_ray.errors import ModelError
from fednar_ray.models import build_model
from fednar_ray.vectors import ParameterLayout, flatten, flatten_buffers, load_buffers, load_parameters

from .conftest import small_federation

drawn = settings(max_examples=100, deadline=None)

# ——— models by name ———


@pytest.mark.parametrize(
    ("settings", "shape", "dimension"),
    [
        ({"name": "mlp", "hidden": 8}, (1, 8, 8), 64 * 8 + 8 + 8 * 10 + 10),
        ({"name": "mlp", "hidden": 8}, (5,), 5 * 8 + 8 + 8 * 10 + 10),
        ({"name": "cnn", "hidden": 6}, (1, 8, 8), 160 + 32 + 4640 + 64 + (32 * 2 * 2 * 6 + 6) + 70),
        ({"name": "cnn", "hidden": 6}, (3, 9, 5), 448 + 32 + 4640 + 64 + (32 * 3 * 2 * 6 + 6) + 70),
        ({"name": "cnn", "hidden": 6}, (1, 1, 1), 160 + 32 + 4640 + 64 + (32 * 6 + 6) + 70),
    ],
    ids=str,
)
def test_a_model_is_sized_to_its_data(settings, shape, dimension):
    for dropout in (0.0, 0.5):
        model = build_model(ModelSettings(**settings, dropout=dropout), shape, classes=10, seed=0)
        assert model(torch.zeros(2, *shape)).shape == (2, 10)
        assert ParameterLayout.of(model).dimension == dimension
        assert any(isinstance(layer, nn.Dropout) for layer in model) == bool(dropout)


def test_a_cnn_refuses_what_is_no_image():
    with pytest.raises(ModelError, match=r"cnn takes images \[channels, height, width\], not \[64\]"):
        build_model(ModelSettings(name="cnn"), (64,), classes=10, seed=0)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_initialisation_follows_from_the_seed_alone_and_disturbs_nobody(name):
    def built(seed: int) -> np.ndarray:
        return flatten(build_model(ModelSettings(name=name, hidden=4), (1, 8, 8), classes=3, seed=seed))

    torch.manual_seed(1)
    first = built(0)
    after = torch.rand(3)
    torch.manual_seed(1)
    torch.testing.assert_close(torch.rand(3), after, rtol=0, atol=0)
    np.testing.assert_array_equal(built(0), first)
    assert not np.array_equal(built(1), first)


# ——— modules that cannot be trained ———


def failing(_: Tensor) -> Tensor:
    raise RuntimeError("no such layer")


class Calls(nn.Module):
    """A linear layer whose outputs go through ``function``."""

    def __init__(self, function=lambda outputs: outputs) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


def unfit(module: nn.Module, value: float) -> nn.Module:
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
    "its own error": (Calls(failing), "no such layer"),
    "float64": (nn.Linear(2, 3).double(), r"weight is torch\.float64"),
    "float64 inside": (
        nn.Sequential(Calls(Tensor.double), nn.Linear(3, 3).double()),
        r"1\.weight is torch\.float64",
    ),
    "no parameters": (nn.Softmax(dim=-1), "no trainable parameters"),
    "all frozen": (nn.Linear(2, 3).requires_grad_(False), "no trainable parameters"),
    "not finite": (unfit(nn.Linear(2, 3), float("nan")), "not finite"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_module_that_cannot_be_trained_is_refused_before_training(case):
    module, message = UNFIT[case]
    experiment = fr.Experiment.model_validate({"execution": {"placement": "serial"}})
    with pytest.raises(ModelError, match=message):
        next(fr.iter_rounds(experiment, federation=small_federation((4, 5)), model=module))


# ——— what a trial batch shows ———

POINTS = small_federation((20,)).shards.examples


def centred(outputs: Tensor) -> Tensor:
    return outputs - outputs.mean(dim=0)


def branching(outputs: Tensor) -> Tensor:
    return outputs if outputs.sum() > 0 else 2 * outputs


def with_item(outputs: Tensor) -> Tensor:
    return outputs * (1 + 0 * outputs.sum().item())


def tied() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    module[2].weight = module[1].weight
    return module


def partly_frozen() -> nn.Sequential:
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    module[0].requires_grad_(False)
    return module


NORMED = (nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
MIX = "examples of a batch influence each other"
VERDICTS = {  # tracks buffers, why alone
    "linear": (nn.Linear(2, 3), False, None),
    "wider than the classes": (nn.Linear(2, 7), False, None),
    "dropout": (nn.Sequential(nn.Linear(2, 9), nn.Dropout(0.5), nn.Linear(9, 3)), False, None),
    "tied": (tied(), False, None),
    "partly frozen": (partly_frozen(), False, None),
    "LayerNorm": (nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 3)), False, None),
    "BatchNorm": (nn.Sequential(*NORMED), True, "it keeps running statistics"),
    "BatchNorm without statistics": (
        nn.Sequential(NORMED[0], nn.BatchNorm1d(4, track_running_stats=False), NORMED[2]), False, MIX,
    ),
    "centred": (Calls(centred), False, MIX),
    "branching": (Calls(branching), False, ""),
    "item": (Calls(with_item), False, "vmap cannot batch it"),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_verdicts(case):
    module, tracks, alone = VERDICTS[case]
    traits = probe(module, POINTS, classes=3)
    assert traits.tracks_buffers == tracks
    assert (traits.alone_because is None) == (alone is None)
    assert alone is None or alone in traits.alone_because


def test_mixing_is_noticed_where_the_first_and_last_examples_are_alike():
    x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    x[-1] = x[0]
    assert probe(Calls(centred), Examples(x, np.zeros(9, np.int64)), classes=3).alone_because == MIX


def test_one_example_is_enough_for_a_trial():
    assert probe(nn.Linear(2, 3), Examples(POINTS.x[:1], POINTS.y[:1]), classes=3).alone_because is None


@pytest.mark.parametrize("case", VERDICTS)
def test_a_trial_leaves_module_and_generator_as_they_were(case):
    module = VERDICTS[case][0].eval()
    before = (flatten(module), flatten_buffers(module), torch.get_rng_state())
    probe(module, POINTS, classes=3)
    for kept, now in zip(before, (flatten(module), flatten_buffers(module), torch.get_rng_state()), strict=True):
        np.testing.assert_array_equal(now, kept)
    assert not module.training
    assert all(parameter.grad is None for parameter in module.parameters())


def test_flops_are_those_of_one_examples_forward():
    # 2 flops a multiplication and addition: 2·(2·4 + 4·3)
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    traits = probe(module, POINTS, classes=3)
    assert (traits.matmuls, traits.matmul_flops, traits.convolutions, traits.convolution_flops) == (2, 40, 0, 0)


def test_convolutions_are_counted_apart():
    # 3·3·1·2 multiplications and additions for each of 2·2 places; then 2·(2·4)·3
    images = Examples(np.zeros((3, 1, 4, 4), np.float32), np.array([0, 1, 2]))
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    traits = probe(module, images, classes=3)
    assert (traits.matmuls, traits.matmul_flops) == (1, 48)
    assert (traits.convolutions, traits.convolution_flops) == (1, 2 * 9 * 2 * 4)


def test_embeddings_take_integer_inputs():
    tokens = Examples(np.array([[0, 1], [2, 3], [1, 1]]), np.array([0, 1, 2]))
    module = nn.Sequential(nn.Embedding(4, 5), nn.Flatten(), nn.Linear(10, 3))
    assert probe(module, tokens, classes=3).alone_because is None


# ——— cohorts ———


def traits(alone: str | None = None, **figures: float) -> ModelTraits:
    nothing = {"parameters": 0, "matmuls": 0, "convolutions": 0, "matmul_flops": 0.0, "convolution_flops": 0.0}
    return ModelTraits(tracks_buffers=False, alone_because=alone, **{**nothing, **figures})  # type: ignore[arg-type]


def costs(**figures: object) -> StepCosts:
    free = {"step": 0, "matmul": (0, 0), "convolution": (0, 0), "flop": 0, "convolution_flop": 0, "parameter": (0, 0)}
    return StepCosts(**{**free, **figures})  # type: ignore[arg-type]


@pytest.mark.parametrize(("clients", "width"), [(1, 1), (2, 1), (4, 1), (5, 5), (20, 20)])
def test_what_a_cohort_pays_twice_is_worth_it_once_four_actors_would_take_two_turns(clients, width):
    # A step costs 1 alone and 2 in a cohort of any width: with 4 actors, width 1 takes ceil(S/4), one cohort 2.
    assert cohort_width(traits(matmuls=1), clients, 16, costs(matmul=(1, 2))) == width


def test_no_width_is_predicted_to_be_slower_than_one_client_at_a_time():
    arithmetic = costs(matmul=(1, 2), flop=1e-3)
    widths = [cohort_width(traits(matmuls=1, matmul_flops=f), 20, 1, arithmetic) for f in (0, 30, 300, 3e3, 3e4)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 1
    assert widths[-1] == 1  # 3·30 of arithmetic a client: sharing the dispatch gains less than an idle actor loses


def test_the_width_is_one_where_the_model_demands_it_and_never_above_the_widest():
    assert cohort_width(traits(matmuls=1), 10_000, 16, CPU) == WIDEST
    assert cohort_width(traits("it keeps running statistics", matmuls=1), 10_000, 16, CPU) == 1


@drawn
@given(
    clients=st.lists(
        st.tuples(st.integers(0, 500), st.integers(1, 6)), min_size=1, max_size=60, unique_by=lambda c: c[0]
    ),
    width=st.integers(1, 40),
)
def test_cohorts_are_near_equal_parts_with_most_steps_first(clients, width):
    ids, steps = zip(*clients, strict=True)
    cohorts = form_cohorts(ids, np.array(steps), width)
    in_order = [client for cohort in cohorts for client in cohort]
    assert in_order == [client for client, _ in sorted(clients, key=lambda c: (-c[1], c[0]))]
    sizes = [len(cohort) for cohort in cohorts]
    assert len(cohorts) == -(-len(clients) // width)
    assert max(sizes) <= width
    assert max(sizes) - min(sizes) <= 1


def test_cohorts_by_hand():
    assert form_cohorts([4, 7, 1, 9, 2], np.array([3, 5, 3, 1, 5]), 3) == [(2, 7, 1), (4, 9)]


# ——— modules as vectors ———


def test_the_vector_is_the_trainable_parameters_in_order():
    module = partly_frozen()
    expected = torch.cat([module[2].weight.flatten(), module[2].bias])
    np.testing.assert_array_equal(flatten(module), expected.detach())
    layout = ParameterLayout.of(module)
    assert (layout.names, layout.dimension) == (("2.weight", "2.bias"), 15)
    views = layout.unflatten(torch.arange(15.0))
    assert views["2.weight"].tolist() == torch.arange(12.0).view(3, 4).tolist()
    assert views["2.bias"].tolist() == [12, 13, 14]


def test_tied_parameters_are_one():
    module = tied()
    assert ParameterLayout.of(module).dimension == 9 + 9 + 3 + 3
    vector = np.arange(24, dtype=np.float32)
    load_parameters(module, vector)
    np.testing.assert_array_equal(flatten(module), vector)
    assert module[1].weight is module[2].weight


def test_parameters_survive_the_round_trip_and_frozen_ones_stay():
    module, frozen = partly_frozen(), partly_frozen()[0].weight.detach()
    with torch.no_grad():
        module[0].weight.copy_(frozen)
    vector = np.random.default_rng(0).normal(size=15).astype(np.float32)
    vector.flags.writeable = False  # as in a report
    load_parameters(module, vector)
    np.testing.assert_array_equal(flatten(module), vector)
    torch.testing.assert_close(module[0].weight, frozen, rtol=0, atol=0)
    flatten(module)[:] = 0  # a copy
    np.testing.assert_array_equal(flatten(module), vector)


def test_buffers_survive_the_round_trip_with_integers():
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    module.register_buffer("mask", torch.tensor([True, False]))
    vector = flatten_buffers(module)
    assert (vector.dtype, len(vector)) == (np.float64, 2 + 2 + 2 + 1)
    names = [name for name, _ in module.named_buffers()]
    values = {
        "mask": [0, 1],
        "0.running_mean": [0.25, -3],
        "0.running_var": [2, 4],
        "0.num_batches_tracked": [2**40 + 1],
    }
    load_buffers(module, np.concatenate([np.array(values[name], np.float64) for name in names]))
    for name, buffer in module.named_buffers():
        assert buffer.flatten().tolist() == values[name]
    assert module[0].num_batches_tracked.dtype == torch.int64


def test_averaged_counters_are_rounded():
    module = nn.BatchNorm1d(1)
    load_buffers(module, np.array([0.5, 1.5, 6.6]))
    assert (module.running_mean.item(), module.num_batches_tracked.item()) == (0.5, 7)


def test_without_buffers_there_is_an_empty_vector():
    module = nn.Linear(1, 1)
    assert flatten_buffers(module).shape == (0,)
    load_buffers(module, flatten_buffers(module))
