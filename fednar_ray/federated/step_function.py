"""One local step of a client group as one function of tensors: gather, gradient, correction, regularizer and update."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fednar_ray.algorithms.client_corrections import LocalRound
from fednar_ray.core.flat_params import ParameterLayout
from fednar_ray.data.batches import gather_inputs
from fednar_ray.data.transforms import Transform
from fednar_ray.federated.addressed_draws import AddressedDraws
from fednar_ray.federated.precision import autocast, restore_float32
from fednar_ray.federated.training_plan import TrainingPlan

Tensors = Mapping[str, Tensor]
StepFunction = Callable[[Tensors], Tensor]

SHARED, CONSTANT = "shared.", "constant."
"""Prefixes of the names of a correction's shared vectors, and of the model's frozen parameters and buffers."""


def list_constants(module: nn.Module) -> dict[str, Tensor]:
    """Returns the module's tensors that training does not change, by name: frozen parameters and buffers."""
    frozen = {name: each.detach() for name, each in module.named_parameters() if not each.requires_grad}
    return frozen | {name: each.detach() for name, each in module.named_buffers()}


def build_step_function(
    plan: TrainingPlan, module: nn.Module, layout: ParameterLayout, transform: Transform | None
) -> StepFunction:
    """Builds the function that takes one local step of C clients. It uses no Python state, so it can be traced.

    Args:
        plan: The loss, the correction and the regularizer.
        module: The model in training mode.
        layout: Where its parameters lie in a row of ``params``.
        transform: How inputs are normalized and augmented.

    Returns:
        A function that overwrites ``params`` and returns what ``StepSums.of`` reads of each client, [4, C]. It takes
        these tensors by name: ``params`` [C, d]; ``x`` [N, …] and ``y`` [N], the examples of all clients; ``index`` and
        ``weights`` [C, B]; ``rate``, ``weight_decay`` and ``clip_bound`` [C, 1]; ``global_params`` [d]; ``state``
        [C, d] or [C, 0]; where there are any, ``moves`` [C, B, 3], ``keys`` [C, 1], the shared vectors [d], and the
        constants. A client whose rate is 0 takes no step.
    """

    def step(tensors: Tensors) -> Tensor:
        params, index = tensors["params"], tensors["index"]
        flat, moves = index.reshape(-1), tensors.get("moves")
        x = gather_inputs(tensors["x"], flat, transform, None if moves is None else moves.reshape(-1, 3))
        y = tensors["y"].index_select(0, flat).view(index.shape)
        gradient = _build_gradient(plan, module, layout, _select(tensors, CONSTANT), len(params))
        draws = AddressedDraws(tensors["keys"]) if "keys" in tensors else nullcontext()
        with draws:
            grad, loss = gradient(params, x.view(*index.shape, *x.shape[1:]), y, tensors["weights"])
        round_ = LocalRound(
            global_params=tensors["global_params"],
            shared=_select(tensors, SHARED),
            state=tensors["state"],
            local_lr=tensors["rate"],
        )
        corrected = plan.correction.correction(round_)(grad, params)
        direction = plan.regularizer(corrected, params, tensors["weight_decay"], tensors["clip_bound"])
        columns = (loss.view(-1, 1), (direction.scale < 1).to(params.dtype), direction.decay, direction.norm)
        params.copy_(params - tensors["rate"] * direction.step)
        return torch.cat(columns, dim=1).t()

    return step


def _select(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def _build_gradient(
    plan: TrainingPlan, module: nn.Module, layout: ParameterLayout, constants: Tensors, rows: int
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Returns a function of (params [C, d], x [C, B, …], y [C, B], weights [C, B]) → gradients [C, d], losses [C]."""

    def compute_loss(vector: Tensor, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        with autocast(plan.precision, x.device):
            outputs = functional_call(module, {**layout.unflatten(vector), **constants}, (x,))
        return plan.task.weighted_loss(restore_float32(outputs), y, weights)

    if rows > 1:
        return vmap(grad_and_value(compute_loss), randomness="different")

    def compute_only_row(params: Tensor, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        grad, loss = grad_and_value(compute_loss)(params[0], x[0], y[0], weights[0])
        return grad.unsqueeze(0), loss.unsqueeze(0)

    return compute_only_row
