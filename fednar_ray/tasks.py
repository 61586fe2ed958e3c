"""What a model's outputs mean: the loss that training lowers, and the metrics that evaluation reports."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from fednar_ray.messages import Scores

Numbers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """How outputs [n, o] of a model answer for labels y [n]."""

    outputs: int | None  # o; None: at least one a class
    losses: Callable[[Tensor, Tensor], Tensor]  # outputs, y → [n]
    mean_loss: Callable[[Tensor, Tensor], Tensor]  # outputs, y → [], the mean of the losses
    weighted_loss: Callable[[Tensor, Tensor, Tensor], Tensor]  # outputs, y, weights [n] → [], Σ weight·loss; for vmap
    answers: Callable[[Tensor], Tensor]  # outputs → [n], what the metrics are taken of
    right: Callable[[Tensor, Tensor], Tensor] | None  # answers, y → [n] bool; None: answers are near or far
    metrics: Callable[[Numbers, Scores], dict[str, float]]  # y and scores of a split → figures by name


# ——— classification: one of several classes ———


def _weighted_cross_entropy(outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    # cross-entropy in fewer operators, along the first axis: torch's softmax along a short last one is slow
    log_likelihoods = outputs.t().log_softmax(0).gather(0, y.unsqueeze(0)).squeeze(0)
    return -(log_likelihoods * weights).sum()


def _cross_entropies(outputs: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(outputs, y, reduction="none")


def _likeliest(outputs: Tensor) -> Tensor:
    return outputs.argmax(dim=-1).to(torch.int32)


def _same(answers: Tensor, y: Tensor) -> Tensor:
    return answers == y


def _classification_metrics(y: Numbers, scores: Scores) -> dict[str, float]:
    return _accuracy_and_loss(scores) | {"macro_f1": macro_f1(y, scores.answers)}


def _accuracy_and_loss(scores: Scores) -> dict[str, float]:
    assert scores.right is not None
    return {"accuracy": float(scores.right.mean()), "loss": mean_loss(scores)}


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


def _binary_metrics(y: Numbers, scores: Scores) -> dict[str, float]:
    figures = _accuracy_and_loss(scores)
    return figures | {"auc": auc(y, scores.answers)} if 0 < np.count_nonzero(y) < len(y) else figures


# ——— regression: a number ———


def _squared_errors(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs.squeeze(-1) - y).square()


def _squared_mean(outputs: Tensor, y: Tensor) -> Tensor:
    return _squared_errors(outputs, y).mean()


def _squared_weighted(outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return (_squared_errors(outputs, y) * weights).sum()


def _regression_metrics(y: Numbers, scores: Scores) -> dict[str, float]:
    loss = mean_loss(scores)
    return {"rmse": float(np.sqrt(loss)), "loss": loss}


CLASSIFICATION = Task(
    outputs=None,
    losses=_cross_entropies,
    mean_loss=cross_entropy,
    weighted_loss=_weighted_cross_entropy,
    answers=_likeliest,
    right=_same,
    metrics=_classification_metrics,
)
BINARY = Task(
    outputs=1,
    losses=_binary_losses,
    mean_loss=_binary_mean,
    weighted_loss=_binary_weighted,
    answers=_only_output,
    right=_on_its_side,
    metrics=_binary_metrics,
)
REGRESSION = Task(
    outputs=1,
    losses=_squared_errors,
    mean_loss=_squared_mean,
    weighted_loss=_squared_weighted,
    answers=_only_output,
    right=None,
    metrics=_regression_metrics,
)
TASKS: Mapping[str, Task] = {"classification": CLASSIFICATION, "binary": BINARY, "regression": REGRESSION}
"""By the name that a federation gives. Losses are cross-entropies in nats, and squared errors."""


# ——— figures ———


def mean_loss(scores: Scores) -> float:
    """The mean of the losses, added up in float64."""
    return float(scores.losses.mean(dtype=np.float64))


def perplexity(loss: float) -> float:
    """e to the cross-entropy of next tokens: among how many the model is as unsure as a fair die; may be infinite."""
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


def macro_f1(y: Numbers, answers: Numbers) -> float:
    """The mean over classes of 2·TP/(2·TP + FP + FN); a class that is neither label nor answer does not count."""
    classes = 1 + max(int(y.max()), int(answers.max()))
    labelled, answered = np.bincount(y, minlength=classes), np.bincount(answers, minlength=classes)
    found = np.bincount(y[answers == y], minlength=classes)
    occurs = labelled + answered > 0
    return float((2 * found[occurs] / (labelled + answered)[occurs]).mean())


def auc(y: Numbers, logits: Numbers) -> float:
    """The probability that a random yes (1) of y has a higher logit than a random no (0), ties counting half.

    From the ranks: Mann and Whitney, 1947. Both must occur; NaN where a logit is.
    """
    if np.isnan(logits).any():
        return float("nan")
    _, which, counts = np.unique(logits, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]  # those of ties are their mean
    positives, negatives = np.count_nonzero(y), np.count_nonzero(y == 0)
    return float((ranks[y == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))
