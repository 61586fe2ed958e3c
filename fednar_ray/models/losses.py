"""Changes the loss of a task: class weights, a user's own loss, and targets that are scaled inside."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.core.errors import ModelError
from fednar_ray.core.exits import exits_as_errors
from fednar_ray.core.import_path import import_callable
from fednar_ray.core.postprocessing import TargetScale, scale_targets, unscale_outputs
from fednar_ray.models.tasks import TASKS, Task

LossFunction = Callable[[Tensor, Tensor], Tensor]
TRIED = 4  # examples on which an own loss is tried before training


def build_task(
    name: str,
    *,
    class_weights: Sequence[float] | None = None,
    loss: str | None = None,
    target_scale: TargetScale | None = None,
    classes: int = 2,
) -> Task:
    """Builds the task that an experiment trains.

    Args:
        name: classification, binary or regression.
        class_weights: The factor of an example's training loss by its class. Evaluation does not use it.
        loss: The path of a function (outputs, y) → losses [n], in place of the task's loss. In classification it gets
            outputs [n, classes] and y [n] of int64; in other tasks both are floats [n], of scaled targets if there is a
            scale.
        target_scale: Mean and scale of a regression's labels.
        classes: How many classes the labels have, to try an own loss.

    Returns:
        The task; one of ``TASKS`` itself if nothing is changed.

    Raises:
        ModelError: The function of ``loss`` cannot be imported, or does not return n finite, differentiable losses.
    """
    base = TASKS[name]
    if class_weights is None and loss is None and target_scale is None:
        return base
    if target_scale is not None:
        predict = partial(_predict_in_unit, target_scale)
        base = replace(base, predictions=predict)
    evaluated: LossFunction = base.losses
    if loss is not None:
        evaluated = _OwnLoss(loss, flat=name != "classification")
        _check_loss(loss, evaluated, base.outputs or classes, classes, name)
        base = replace(base, log_losses=None if base.is_regression else base.losses)
    if target_scale is not None:
        evaluated = partial(_compute_scaled, evaluated, target_scale)
    trained = evaluated if class_weights is None else partial(_weight_by_class, evaluated, tuple(class_weights))
    return replace(
        base, losses=evaluated, mean_loss=partial(_average, trained), weighted_loss=partial(_add_weighted, trained)
    )


def compute_class_weights(
    setting: Literal["balanced"] | Sequence[float] | None, task: str, counts: npt.NDArray[np.int64]
) -> tuple[float, ...] | None:
    """Computes the factor of each class in the training loss.

    Args:
        setting: ``balanced``: n/(k·n_c) for class c with n_c of the n training examples, where k classes occur. A list
            is taken as it is.
        task: The name of the task.
        counts: The number of training examples by class, over all clients, [classes].

    Raises:
        ModelError: The task has no classes, or the list does not have one weight per class.
    """
    if setting is None:
        return None
    place = f"model.class_weights: {setting if isinstance(setting, str) else list(setting)}"
    if task == "regression":
        raise ModelError(f"{place}: a regression has no classes; remove it")
    if setting == "balanced":
        occurring = counts > 0
        weights = np.where(occurring, counts.sum() / (occurring.sum() * np.maximum(counts, 1)), 1.0)
        return tuple(weights.tolist())
    if len(setting) != len(counts):
        raise ModelError(f"{place}: {len(setting)} weights, but the labels have {len(counts)} classes; give one each")
    return tuple(float(weight) for weight in setting)


@dataclass(frozen=True, slots=True)
class _OwnLoss:
    """A user's loss. It is sent to actors as its path, and imported there."""

    path: str
    flat: bool  # whether outputs [n, 1] are passed as [n], and labels as floats

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        function = import_callable(self.path)
        losses: Tensor = function(outputs.squeeze(-1), y.to(outputs.dtype)) if self.flat else function(outputs, y)
        return losses


def _predict_in_unit(target_scale: TargetScale, outputs: Tensor) -> Tensor:
    return unscale_outputs(outputs.squeeze(-1), *target_scale)


def _compute_scaled(losses: LossFunction, target_scale: TargetScale, outputs: Tensor, y: Tensor) -> Tensor:
    return losses(outputs, scale_targets(y, target_scale, outputs.dtype))


def _weight_by_class(losses: LossFunction, weights: tuple[float, ...], outputs: Tensor, y: Tensor) -> Tensor:
    factors = torch.tensor(weights, dtype=outputs.dtype, device=outputs.device)
    return losses(outputs, y) * factors[y]


def _average(losses: LossFunction, outputs: Tensor, y: Tensor) -> Tensor:
    return losses(outputs, y).mean()


def _add_weighted(losses: LossFunction, outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return (losses(outputs, y) * weights).sum()


def _check_loss(path: str, losses: LossFunction, outputs: int, classes: int, task: str) -> None:
    """Tries an own loss on a few artificial outputs. Raises ModelError."""
    key = f"model.loss: {path}"
    given = torch.linspace(-1, 1, TRIED * outputs).view(TRIED, outputs).requires_grad_()
    y = torch.arange(TRIED) % max(classes, 1)
    what = f"called with outputs {[TRIED, outputs] if task == 'classification' else [TRIED]} and y [{TRIED}], it"
    try:
        with exits_as_errors(), torch.enable_grad():
            found = losses(given, y if task != "regression" else torch.linspace(-1, 1, TRIED))
    except ImportError as error:
        raise ModelError(f"{key}: {error}") from error
    except Exception as error:
        raise ModelError(f"{key}: {what} fails: {type(error).__name__}: {error}") from error
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != [TRIED]:
        raise ModelError(f"{key}: {what} returns {shape}; one loss per example is needed, [{TRIED}]")
    if not found.requires_grad:
        raise ModelError(f"{key}: {what} returns losses without a gradient; compute them with torch")
    gradient = torch.autograd.grad(found.sum(), given)[0]
    if not (found.isfinite().all() and gradient.isfinite().all()):
        raise ModelError(f"{key}: {what} returns a loss or a gradient that is not finite")
