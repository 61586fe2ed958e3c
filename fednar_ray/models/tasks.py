"""What a model's outputs mean: the loss that training lowers, and the metrics that evaluation reports."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from fednar_ray.core.messages import Scores
from fednar_ray.core.metric_sums import MetricSums

Numbers = npt.NDArray[Any]
NO_CLASSES = np.zeros((3, 0), dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the outputs [n, o] of a model mean for labels y [n].

    Attributes:
        outputs: o; None: at least one per class.
        losses: (outputs, y) → the losses [n].
        mean_loss: (outputs, y) → their mean, [].
        weighted_loss: (outputs, y, weights [n]) → Σ weight·loss, []. It works under ``vmap``.
        predictions: (outputs) → the predictions [n].
        is_correct: (predictions, y) → which predictions are correct, [n]. None in regression.
        metric_sums: (y, scores) of some examples → their sums.
        metrics: (the sums of a split) → metrics by name.
    """

    outputs: int | None
    losses: Callable[[Tensor, Tensor], Tensor]
    mean_loss: Callable[[Tensor, Tensor], Tensor]
    weighted_loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    predictions: Callable[[Tensor], Tensor]
    is_correct: Callable[[Tensor, Tensor], Tensor] | None
    metric_sums: Callable[[Numbers, Scores], MetricSums]
    metrics: Callable[[MetricSums], dict[str, float]]


# ——— classification: one of several classes ———


def _weighted_cross_entropy(outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    # cross-entropy in fewer operators, along the first axis: torch's softmax along a short last one is slow
    log_likelihoods = outputs.t().log_softmax(0).gather(0, y.unsqueeze(0)).squeeze(0)
    return -(log_likelihoods * weights).sum()


def _cross_entropies(outputs: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(outputs, y, reduction="none")


def _find_likeliest(outputs: Tensor) -> Tensor:
    return outputs.argmax(dim=-1).to(torch.int32)


def _is_equal(predictions: Tensor, y: Tensor) -> Tensor:
    return predictions == y


def _classification_sums(y: Numbers, scores: Scores) -> MetricSums:
    return _sums(scores, count_by_class(y, scores.predictions))


def _classification_metrics(metric_sums: MetricSums) -> dict[str, float]:
    return _accuracy_and_loss(metric_sums) | {"macro_f1": compute_macro_f1(metric_sums.classes)}


def _sums(scores: Scores, classes: Numbers) -> MetricSums:
    correct = 0 if scores.correct is None else int(np.count_nonzero(scores.correct))
    losses = float(scores.losses.sum(dtype=np.float64))
    return MetricSums(examples=len(scores.losses), losses=losses, correct=correct, classes=classes)


def _accuracy_and_loss(metric_sums: MetricSums) -> dict[str, float]:
    return {"accuracy": metric_sums.correct / metric_sums.examples, "loss": metric_sums.losses / metric_sums.examples}


# ——— binary: positive or negative, from one logit ———


def _binary_losses(outputs: Tensor, y: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(outputs.squeeze(-1), y.to(outputs.dtype), reduction="none")


def _binary_mean(outputs: Tensor, y: Tensor) -> Tensor:
    return _binary_losses(outputs, y).mean()


def _binary_weighted(outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return (_binary_losses(outputs, y) * weights).sum()


def _get_only_output(outputs: Tensor) -> Tensor:
    return outputs.squeeze(-1)


def _has_right_sign(logits: Tensor, y: Tensor) -> Tensor:
    return (logits > 0) == y


def _binary_sums(y: Numbers, scores: Scores) -> MetricSums:
    positives = int(np.count_nonzero(y))
    pairs = positives * (len(y) - positives)
    return replace(
        _sums(scores, NO_CLASSES), pairs=pairs, ordered=count_ordered_pairs(y, scores.predictions) if pairs else 0.0
    )


def _binary_metrics(metric_sums: MetricSums) -> dict[str, float]:
    metrics = _accuracy_and_loss(metric_sums)
    return metrics | {"auc": metric_sums.ordered / metric_sums.pairs} if metric_sums.pairs else metrics


# ——— regression: a number ———


def _squared_errors(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs.squeeze(-1) - y).square()


def _squared_mean(outputs: Tensor, y: Tensor) -> Tensor:
    return _squared_errors(outputs, y).mean()


def _squared_weighted(outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return (_squared_errors(outputs, y) * weights).sum()


def _regression_sums(y: Numbers, scores: Scores) -> MetricSums:
    return _sums(scores, NO_CLASSES)


def _regression_metrics(metric_sums: MetricSums) -> dict[str, float]:
    loss = metric_sums.losses / metric_sums.examples
    return {"rmse": float(np.sqrt(loss)), "loss": loss}


CLASSIFICATION = Task(
    outputs=None,
    losses=_cross_entropies,
    mean_loss=cross_entropy,
    weighted_loss=_weighted_cross_entropy,
    predictions=_find_likeliest,
    is_correct=_is_equal,
    metric_sums=_classification_sums,
    metrics=_classification_metrics,
)
BINARY = Task(
    outputs=1,
    losses=_binary_losses,
    mean_loss=_binary_mean,
    weighted_loss=_binary_weighted,
    predictions=_get_only_output,
    is_correct=_has_right_sign,
    metric_sums=_binary_sums,
    metrics=_binary_metrics,
)
REGRESSION = Task(
    outputs=1,
    losses=_squared_errors,
    mean_loss=_squared_mean,
    weighted_loss=_squared_weighted,
    predictions=_get_only_output,
    is_correct=None,
    metric_sums=_regression_sums,
    metrics=_regression_metrics,
)
TASKS: Mapping[str, Task] = {"classification": CLASSIFICATION, "binary": BINARY, "regression": REGRESSION}
"""The tasks by name. Losses are cross-entropies in nats, or squared errors."""


# ——— metrics ———


def compute_perplexity(loss: float) -> float:
    """Computes e^loss for the cross-entropy of next tokens, in nats. It may be infinite.

    A perplexity of p means that the model is as uncertain as if it chose among p equally likely tokens.
    """
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


def count_by_class(y: Numbers, predictions: Numbers) -> Numbers:
    """Counts the labels, the predictions and the correct predictions of each class, [3, classes]."""
    classes = 1 + max(int(y.max()), int(predictions.max()))
    return np.stack([np.bincount(of, minlength=classes) for of in (y, predictions, y[predictions == y])])


def compute_macro_f1(classes: Numbers) -> float:
    """Computes the mean of 2·TP/(2·TP + FP + FN) over the classes that occur as a label or a prediction.

    Args:
        classes: Per class the labels, the predictions and the correct predictions, [3, classes].
    """
    labels, predictions, correct = classes
    occurs = labels + predictions > 0
    return float((2 * correct[occurs] / (labels + predictions)[occurs]).mean())


def count_ordered_pairs(y: Numbers, logits: Numbers) -> float:
    """Counts the pairs of a positive and a negative in which the positive is ranked above the negative.

    Args:
        y: Labels 1 (positive) and 0 (negative), [n].
        logits: [n].

    Returns:
        The number of such pairs, where ties count one half: Mann and Whitney's U. NaN if a logit is NaN.
    """
    from scipy.stats import rankdata  # takes half a second to import, and only binary tasks need it

    positives = np.count_nonzero(y)
    return float(rankdata(logits)[y == 1].sum() - positives * (positives + 1) / 2)
