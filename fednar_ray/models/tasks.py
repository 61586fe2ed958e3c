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
    """How outputs [n, o] of a model answer for labels y [n]."""

    outputs: int | None  # o; None: at least one a class
    losses: Callable[[Tensor, Tensor], Tensor]  # outputs, y → [n]
    mean_loss: Callable[[Tensor, Tensor], Tensor]  # outputs, y → [], the mean of the losses
    weighted_loss: Callable[[Tensor, Tensor, Tensor], Tensor]  # outputs, y, weights [n] → [], Σ weight·loss; for vmap
    predictions: Callable[[Tensor], Tensor]  # outputs → [n], what the metrics are taken of
    is_correct: Callable[[Tensor, Tensor], Tensor] | None  # answers, y → [n] bool; None: answers are near or far
    metric_sums: Callable[[Numbers, Scores], MetricSums]  # y and scores of some examples → their sums
    metrics: Callable[[MetricSums], dict[str, float]]  # the sums of a split → figures by name


# ——— classification: one of several classes ———


def _weighted_cross_entropy(outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    # cross-entropy in fewer operators, along the first axis: torch's softmax along a short last one is slow
    log_likelihoods = outputs.t().log_softmax(0).gather(0, y.unsqueeze(0)).squeeze(0)
    return -(log_likelihoods * weights).sum()


def _cross_entropies(outputs: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(outputs, y, reduction="none")


def _likeliest(outputs: Tensor) -> Tensor:
    return outputs.argmax(dim=-1).to(torch.int32)


def _same(predictions: Tensor, y: Tensor) -> Tensor:
    return predictions == y


def _classification_tally(y: Numbers, scores: Scores) -> MetricSums:
    return _sums(scores, by_class(y, scores.predictions))


def _classification_metrics(metric_sums: MetricSums) -> dict[str, float]:
    return _accuracy_and_loss(metric_sums) | {"macro_f1": macro_f1(metric_sums.classes)}


def _sums(scores: Scores, classes: Numbers) -> MetricSums:
    correct = 0 if scores.correct is None else int(np.count_nonzero(scores.correct))
    losses = float(scores.losses.sum(dtype=np.float64))
    return MetricSums(examples=len(scores.losses), losses=losses, correct=correct, classes=classes)


def _accuracy_and_loss(metric_sums: MetricSums) -> dict[str, float]:
    return {"accuracy": metric_sums.correct / metric_sums.examples, "loss": metric_sums.losses / metric_sums.examples}


# ——— binary: yes or no, from one logit ———


def _binary_losses(outputs: Tensor, y: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(outputs.squeeze(-1), y.to(outputs.dtype), reduction="none")


def _binary_mean(outputs: Tensor, y: Tensor) -> Tensor:
    return _binary_losses(outputs, y).mean()


def _binary_weighted(outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return (_binary_losses(outputs, y) * weights).sum()


def _only_output(outputs: Tensor) -> Tensor:
    return outputs.squeeze(-1)


def _on_its_side(logits: Tensor, y: Tensor) -> Tensor:
    return (logits > 0) == y


def _binary_tally(y: Numbers, scores: Scores) -> MetricSums:
    yes = int(np.count_nonzero(y))
    pairs = yes * (len(y) - yes)
    return replace(
        _sums(scores, NO_CLASSES), pairs=pairs, ordered=ordered_pairs(y, scores.predictions) if pairs else 0.0
    )


def _binary_metrics(metric_sums: MetricSums) -> dict[str, float]:
    figures = _accuracy_and_loss(metric_sums)
    return figures | {"auc": metric_sums.ordered / metric_sums.pairs} if metric_sums.pairs else figures


# ——— regression: a number ———


def _squared_errors(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs.squeeze(-1) - y).square()


def _squared_mean(outputs: Tensor, y: Tensor) -> Tensor:
    return _squared_errors(outputs, y).mean()


def _squared_weighted(outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return (_squared_errors(outputs, y) * weights).sum()


def _regression_tally(y: Numbers, scores: Scores) -> MetricSums:
    return _sums(scores, NO_CLASSES)


def _regression_metrics(metric_sums: MetricSums) -> dict[str, float]:
    loss = metric_sums.losses / metric_sums.examples
    return {"rmse": float(np.sqrt(loss)), "loss": loss}


CLASSIFICATION = Task(
    outputs=None,
    losses=_cross_entropies,
    mean_loss=cross_entropy,
    weighted_loss=_weighted_cross_entropy,
    predictions=_likeliest,
    is_correct=_same,
    metric_sums=_classification_tally,
    metrics=_classification_metrics,
)
BINARY = Task(
    outputs=1,
    losses=_binary_losses,
    mean_loss=_binary_mean,
    weighted_loss=_binary_weighted,
    predictions=_only_output,
    is_correct=_on_its_side,
    metric_sums=_binary_tally,
    metrics=_binary_metrics,
)
REGRESSION = Task(
    outputs=1,
    losses=_squared_errors,
    mean_loss=_squared_mean,
    weighted_loss=_squared_weighted,
    predictions=_only_output,
    is_correct=None,
    metric_sums=_regression_tally,
    metrics=_regression_metrics,
)
TASKS: Mapping[str, Task] = {"classification": CLASSIFICATION, "binary": BINARY, "regression": REGRESSION}
"""By the name that a federation gives. Losses are cross-entropies in nats, and squared errors."""


# ——— figures ———


def perplexity(loss: float) -> float:
    """e to the cross-entropy of next tokens: among how many the model is as unsure as a fair die; may be infinite."""
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


def by_class(y: Numbers, predictions: Numbers) -> Numbers:
    """Of each class the labels, the answers, and the right answers, [3, classes]; classes as far as any occurs."""
    classes = 1 + max(int(y.max()), int(predictions.max()))
    return np.stack([np.bincount(of, minlength=classes) for of in (y, predictions, y[predictions == y])])


def macro_f1(classes: Numbers) -> float:
    """The mean over classes of 2·TP/(2·TP + FP + FN); a class that is neither label nor answer does not count."""
    labeled, answered, found = classes
    occurs = labeled + answered > 0
    return float((2 * found[occurs] / (labeled + answered)[occurs]).mean())


def ordered_pairs(y: Numbers, logits: Numbers) -> float:
    """In how many pairs of a yes (1) of y and a no (0) the yes has the higher logit, ties counting half.

    From the ranks: Mann and Whitney, 1947. NaN where a logit is.
    """
    if np.isnan(logits).any():
        return float("nan")
    _, which, counts = np.unique(logits, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]  # those of ties are their mean
    yes = np.count_nonzero(y)
    return float(ranks[y == 1].sum() - yes * (yes + 1) / 2)
