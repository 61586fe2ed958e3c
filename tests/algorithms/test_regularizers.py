"""Co-clipping and its baselines on a client group, and the same step taken by a torch optimizer."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

import fednar_ray as fr
from fednar_ray.algorithms.regularizers import (
    CLIPPING,
    GRADIENT_ALONE,
    REGULARIZERS,
    clip_then_decay,
    co_clip,
    decay_only,
    no_regularization,
)
from fednar_ray.core.flat_params import ParameterLayout, flatten
from tests.support.drawn import draw

every_regularizer = pytest.mark.parametrize("name", REGULARIZERS)
drawn = draw(100)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 6))
floats = st.floats(-1e3, 1e3, width=32)
pairs = shapes.flatmap(lambda shape: st.tuples(*[arrays(np.float32, shape, elements=floats)] * 2))
decays = st.floats(0, 2)
bounds = st.floats(1e-3, 1e4)

G = torch.tensor([[3.0, 0.0]])
X = torch.tensor([[0.0, -80.0]])


def test_co_clipping_matches_numbers_by_hand():
    # v = [3, 0] + 0.05·[0, -80] = [3, -4]; ‖v‖ = 5; scale 2.5/5.  Clipping g alone would give [2.5, -4.0].
    step, scale, decay, norm = co_clip(G, X, 0.05, 2.5)
    torch.testing.assert_close(step, torch.tensor([[1.5, -2.0]]))
    torch.testing.assert_close(scale, torch.tensor([[0.5]]))
    torch.testing.assert_close(decay, torch.tensor([[0.025]]))
    torch.testing.assert_close(norm, torch.tensor([[5.0]]))


def test_decoupled_decay_matches_numbers_by_hand():
    step, scale, decay, norm = clip_then_decay(G, X, 0.05, 2.5)
    torch.testing.assert_close(step, torch.tensor([[2.5, -4.0]]))
    torch.testing.assert_close(scale, torch.tensor([[2.5 / 3]]))
    torch.testing.assert_close(decay, torch.tensor([[0.05]]))
    torch.testing.assert_close(norm, torch.tensor([[3.0]]))  # the norm of the gradient alone, which is what is clipped


def test_coupled_and_no_decay_match_numbers_by_hand():
    for rule, step, decay, norm in (
        (decay_only, [[3.0, -4.0]], 0.05, 5.0),
        (no_regularization, [[3.0, 0.0]], 0.0, 3.0),
    ):
        direction = rule(G, X, 0.05, 2.5)
        torch.testing.assert_close(direction.step, torch.tensor(step))
        torch.testing.assert_close(direction.scale, torch.ones(1, 1))
        torch.testing.assert_close(direction.decay, torch.tensor([[decay]]))
        torch.testing.assert_close(direction.norm, torch.tensor([[norm]]))


def test_the_authors_tiny_constant_is_in_the_denominator():
    # ‖v‖ = A = 1e-6: scale 1e-6/(1e-6 + 1e-6) = ½
    torch.testing.assert_close(
        co_clip(torch.tensor([[1e-6]]), torch.zeros(1, 1), 0.0, 1e-6).scale, torch.tensor([[0.5]])
    )


@drawn
@given(pair=pairs, decay=decays, bound=bounds)
def test_a_fednar_step_is_never_longer_than_the_bound(pair, decay, bound):
    grad, params = map(torch.from_numpy, pair)
    direction = co_clip(grad, params, decay, bound)
    assert (direction.step.norm(dim=-1) <= bound * (1 + 1e-5)).all()
    assert ((direction.scale > 0) & (direction.scale <= 1)).all()


@drawn
@given(pair=pairs, decay=decays, bound=bounds)
def test_fednar_equals_coupled_decay_without_clipping_and_is_shorter_otherwise(pair, decay, bound):
    grad, params = map(torch.from_numpy, pair)
    bounded, free = co_clip(grad, params, decay, bound), decay_only(grad, params, decay, bound)
    idle = (bounded.scale == 1).squeeze(-1)
    reach = free.step.norm(dim=-1) + 1e-6
    apart = (reach - bound).abs() > 1e-6 * bound  # at the bound itself, rounding decides
    np.testing.assert_array_equal(idle[apart], (reach <= bound)[apart])
    torch.testing.assert_close(bounded.step[idle], free.step[idle], rtol=0, atol=0)
    torch.testing.assert_close(bounded.step, bounded.scale * free.step)
    torch.testing.assert_close(bounded.decay, bounded.scale * decay)


@drawn
@given(pair=pairs, decay=decays, other=decays, bound=bounds)
def test_none_ignores_decay_and_bound(pair, decay, other, bound):
    grad, params = map(torch.from_numpy, pair)
    torch.testing.assert_close(no_regularization(grad, params, decay, bound).step, grad, rtol=0, atol=0)
    assert not no_regularization(grad, params, other, bound).decay.any()


@every_regularizer
@drawn
@given(pair=pairs, scalars=st.lists(st.tuples(decays, bounds), min_size=4, max_size=4))
def test_rows_with_their_own_scalars_equal_single_rows(name, pair, scalars):
    grad, params = map(torch.from_numpy, pair)
    decay, bound = torch.tensor(scalars[: len(grad)], dtype=torch.float32).split(1, dim=1)
    together = REGULARIZERS[name](grad, params, decay, bound)
    for row in range(len(grad)):
        one = slice(row, row + 1)
        alone = REGULARIZERS[name](grad[one], params[one], float(decay[row]), float(bound[row]))
        for rows, single in zip(together, alone, strict=True):
            torch.testing.assert_close(rows[one], single)


@every_regularizer
def test_which_regularizers_clip_and_what_they_measure_is_declared(name):
    tight, loose = (REGULARIZERS[name](G, X, 0.05, bound) for bound in (0.1, 1e6))
    assert (name in CLIPPING) == bool((tight.step != loose.step).any())
    assert (name in GRADIENT_ALONE) == (tight.norm.item() == 3.0)  # ‖g‖; ‖g + λ·x‖ is 5


@every_regularizer
def test_a_row_does_not_depend_on_other_rows(name):
    generator = torch.Generator().manual_seed(0)
    grad, params = torch.randn(2, 3, 50, generator=generator)
    before = REGULARIZERS[name](grad, params, 0.1, 1.0)
    grad[1], params[1] = torch.inf, torch.nan
    after = REGULARIZERS[name](grad, params, 0.1, 1.0)
    for kept, now in zip(before, after, strict=True):
        torch.testing.assert_close(now[[0, 2]], kept[[0, 2]], rtol=0, atol=0)


# ——— FedNARSGD ———


def build_two_layers() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


INPUTS = torch.linspace(-2, 2, 24).view(6, 4)


def compute_gradients(module: nn.Module) -> Tensor:
    module.zero_grad()
    loss = module(INPUTS).square().sum()
    loss.backward()
    return loss.detach()


def group_by_layer(module: nn.Sequential, **scalars: tuple[float, float]) -> list[dict[str, object]]:
    layers = (module[0], module[2])
    return [{"params": layers[i].parameters(), **{key: pair[i] for key, pair in scalars.items()}} for i in (0, 1)]


@pytest.mark.parametrize(("bound", "clips"), [(1.0, True), (1e4, False)])
def test_the_optimizer_takes_one_fednar_step_over_all_groups(bound, clips):
    module = build_two_layers()
    optimizer = fr.FedNARSGD(group_by_layer(module, lr=(0.1, 0.02), weight_decay=(0.5, 0.0)), clip_bound=bound)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in (module[0], module[2])]
    lr, decay = (
        torch.cat([torch.full((n,), v) for n, v in zip(sizes, pair, strict=True)]) for pair in ((0.1, 0.02), (0.5, 0))
    )
    for step in range(5):
        x = torch.from_numpy(flatten(module))
        compute_gradients(module)
        grad = torch.cat([p.grad.flatten() for p in module.parameters()])
        direction = co_clip(grad[None], x[None], decay, bound * 0.9**step)
        optimizer.step()
        torch.testing.assert_close(torch.from_numpy(flatten(module)), x - lr * direction.step[0])
        torch.testing.assert_close(optimizer.last_scale, direction.scale[0, 0])
        assert (optimizer.last_scale < 1) == clips
        for group in optimizer.param_groups:
            group["clip_bound"] *= 0.9


def test_annealing_is_set_through_param_groups():
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = fr.FedNARSGD([parameter], lr=1.0, weight_decay=0.5, clip_bound=10.0)
    for lr, decay, expected in ((1.0, 0.5, 0.5), (0.5, 0.2, 0.45)):  # x − η·λ·x, since the gradient is zero
        optimizer.param_groups[0].update(lr=lr, weight_decay=decay)
        parameter.grad = torch.zeros(1)
        optimizer.step()
        assert parameter.item() == pytest.approx(expected)


def test_parameters_that_are_frozen_or_without_gradient_are_neither_moved_nor_counted():
    module = build_two_layers()
    module[0].weight.requires_grad_(False)
    compute_gradients(module)
    module[2].bias.grad = None
    before = copy.deepcopy(module)
    optimizer = fr.FedNARSGD(module.parameters(), lr=1.0, weight_decay=0.5, clip_bound=2.0)
    optimizer.step()
    for untouched in (lambda m: m[0].weight, lambda m: m[2].bias):
        torch.testing.assert_close(untouched(module), untouched(before), rtol=0, atol=0)
    moved = torch.cat([(p - q).flatten() for p, q in zip(module.parameters(), before.parameters(), strict=True)])
    assert optimizer.last_scale < 1
    assert moved.norm().item() == pytest.approx(2.0, rel=1e-4)


def test_without_any_gradient_no_step_is_taken():
    module = build_two_layers()
    before = flatten(module)
    assert fr.FedNARSGD(module.parameters()).step() is None
    np.testing.assert_array_equal(flatten(module), before)


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    module, twin = build_two_layers(), build_two_layers()
    loss = fr.FedNARSGD(module.parameters(), lr=0.01, weight_decay=0.1).step(lambda: compute_gradients(module))
    torch.testing.assert_close(loss, compute_gradients(twin))
    fr.FedNARSGD(twin.parameters(), lr=0.01, weight_decay=0.1).step()
    np.testing.assert_array_equal(flatten(module), flatten(twin))


BAD = [{"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": -0.1}, {"clip_bound": 0.0}, {"clip_bound": -2}]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        fr.FedNARSGD(build_two_layers().parameters(), **bad)


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"weight_decay": -0.1}, {"clip_bound": 0.0}], ids=str)
def test_bad_arguments_of_a_group_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        fr.FedNARSGD([{"params": build_two_layers().parameters(), **bad}])


def test_groups_with_different_bounds_are_refused_and_nothing_moves():
    module = build_two_layers()
    compute_gradients(module)
    before = flatten(module)
    groups = group_by_layer(module, clip_bound=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"the same in all parameter groups, not \[1.0, 2.0\]"):
        fr.FedNARSGD(groups).step()
    np.testing.assert_array_equal(flatten(module), before)


def test_the_state_dict_carries_the_annealed_scalars():
    module = build_two_layers()
    optimizer = fr.FedNARSGD(module.parameters(), lr=0.1, weight_decay=0.2, clip_bound=3.0)
    optimizer.param_groups[0].update(lr=0.05, weight_decay=0.1, clip_bound=1.5)
    twin = copy.deepcopy(module)
    resumed = fr.FedNARSGD(twin.parameters())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, stepper in ((module, optimizer), (twin, resumed)):
        for _ in range(3):
            compute_gradients(model)
            stepper.step()
    np.testing.assert_array_equal(flatten(twin), flatten(module))
    assert [resumed.param_groups[0][key] for key in ("lr", "weight_decay", "clip_bound")] == [0.05, 0.1, 1.5]


def test_one_parameter_tied_in_two_places_counts_once():
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[1].weight = module[0].weight
    assert ParameterLayout.of(module).dimension == 16
    compute_gradients(module)
    before = flatten(module)
    fr.FedNARSGD(module.parameters(), lr=0.5, clip_bound=1e-3).step()
    assert np.linalg.norm(flatten(module) - before) == pytest.approx(0.5e-3, rel=1e-2)


# ——— FedNARSGD beyond float32 ———


def compute_step_in_float64(
    parameters: list[nn.Parameter], lr: float, decay: float, bound: float
) -> tuple[list[np.ndarray], float]:
    """Returns FedNAR's step and its scale, computed with NumPy."""

    def wide(tensor: Tensor) -> np.ndarray:
        dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
        return dense.to(torch.complex128 if dense.is_complex() else torch.float64).numpy()

    x, g = [wide(p) for p in parameters], [wide(p.grad) for p in parameters]
    v = [gradient + decay * value for gradient, value in zip(g, x, strict=True)]
    scale = min(1.0, bound / (np.sqrt(sum((np.abs(part) ** 2).sum() for part in v)) + 1e-6))
    return [value - lr * scale * part for value, part in zip(x, v, strict=True)], scale


@pytest.mark.parametrize("bound", [3.0, 1e6], ids=["clipped", "free"])
@pytest.mark.parametrize(
    ("types", "size"),
    [
        ([torch.float16], 60.0),  # a norm of 22,000 at most, whose square float16 cannot hold
        ([torch.float16], 6e4),
        ([torch.bfloat16], 50.0),
        ([torch.bfloat16], 1e30),
        ([torch.float32], 1e30),
        ([torch.float32], 3e38),  # the norm itself overflows float32
        ([torch.float64], 1e30),
        ([torch.complex64], 2.0),
        ([torch.complex64], 1e30),
        ([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64], 20.0),
        ([torch.float16], 1e-6),
    ],
    ids=str,
)
def test_a_step_in_any_type_equals_the_float64_step(types, size, bound):
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(1000, generator=generator).to(kind)) for kind in types]
    for parameter in parameters:
        signs = torch.randn(1000, generator=generator).clamp(-1, 1)
        parameter.grad = (signs * size).to(parameter.dtype)
    if bound > 10 and size > 1e9:
        bound = 10.0  # an unclipped step would overflow every type
    lr = 1e-3 if bound > 10 else 1.0
    expected, scale = compute_step_in_float64(parameters, lr=lr, decay=0.1, bound=bound)
    optimizer = fr.FedNARSGD(parameters, lr=lr, weight_decay=0.1, clip_bound=bound)
    optimizer.step()
    assert float(optimizer.last_scale) == pytest.approx(scale, rel=1e-5)
    for parameter, wanted in zip(parameters, expected, strict=True):
        # the step is computed in float32 at least, and rounds to the parameter's type once
        precision = max(torch.finfo(parameter.dtype).eps, 4 * torch.finfo(torch.float32).eps)
        wide = torch.complex128 if parameter.is_complex() else torch.float64
        np.testing.assert_allclose(parameter.detach().to(wide).numpy(), wanted, rtol=precision, atol=precision)


def test_the_norm_of_half_precision_gradients_is_not_computed_in_float16():
    parameter = nn.Parameter(torch.zeros(100_000, dtype=torch.float16))
    parameter.grad = torch.full_like(parameter, 300.0)  # ‖v‖ = 94,868, beyond 65,504
    fr.FedNARSGD([parameter], lr=1.0, clip_bound=10.0).step()
    assert parameter.detach().double().norm().item() == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("bound", [0.5, 1e6])
def test_sparse_gradients_give_the_same_step_as_dense_ones(decay, bound):
    torch.manual_seed(0)
    sparse = nn.Embedding(6, 3, sparse=True)
    dense = nn.Embedding(6, 3, _weight=sparse.weight.detach().clone())
    for table in (sparse, dense):
        table(torch.tensor([1, 1, 4])).square().sum().backward()  # row 1 occurs twice: uncoalesced
    assert sparse.weight.grad.is_sparse
    expected, _ = compute_step_in_float64([sparse.weight], lr=0.5, decay=decay, bound=bound)
    for table in (sparse, dense):
        fr.FedNARSGD(table.parameters(), lr=0.5, weight_decay=decay, clip_bound=bound).step()
    np.testing.assert_allclose(sparse.weight.detach(), expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sparse.weight, dense.weight)


def test_an_infinite_gradient_is_not_hidden():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, float("inf")])
    optimizer = fr.FedNARSGD([parameter])
    optimizer.step()
    assert optimizer.last_scale == 0
    assert parameter[1].isnan()
