"""What a model's outputs mean: the loss that training lowers, and the metrics that evaluation reports."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from fednar_ray.core.messages import Scores
from fednar_ray.core.metric_sums import LabelMoments, MetricSums
from fednar_ray.models import metrics

Numbers = npt.NDArray[Any]
Metrics = dict[str, float]
NO_CLASSES = np.zeros((3, 0), dtype=np.int64)


def _report_nothing(y: Numbers, scores: Scores) -> Metrics:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the outputs [n, o] of a model mean for labels y [n].

    Attributes:
        outputs: o; None: at least one per class.
        losses: (outputs, y) → the losses [n] that evaluation reports.
        mean_loss: (outputs, y) → the mean of the losses that training lowers, [].
        weighted_loss: (outputs, y, weights [n]) → Σ weight·loss of the same losses, []. It works under ``vmap``.
        predictions: (outputs) → the predictions [n].
        is_correct: (predictions, y) → which predictions are correct, [n]. None in regression.
        confidences: (outputs) → the probability of the predicted class, [n]; None if it follows from the prediction.
        log_losses: (outputs, y) → the cross-entropies [n]; None if they are the losses, or in regression.
        metric_sums: (y, scores) of some examples → their sums.
        metrics: (the sums of a split) → metrics by name.
        exact_metrics: (y, scores of a split) → the metrics of which the sums give only an approximation.
    """

    outputs: int | None
    losses: Callable[[Tensor, Tensor], Tensor]
    mean_loss: Callable[[Tensor, Tensor], Tensor]
    weighted_loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    predictions: Callable[[Tensor], Tensor]
    is_correct: Callable[[Tensor, Tensor], Tensor] | None
    confidences: Callable[[Tensor], Tensor] | None = None
    log_losses: Callable[[Tensor, Tensor], Tensor] | None = None
    metric_sums: Callable[[Numbers, Scores], MetricSums]
    metrics: Callable[[MetricSums], Metrics]
    exact_metrics: Callable[[Numbers, Scores], Metrics] = _report_nothing

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers."""
        return self.is_correct is None


def _sum_losses(losses: Numbers) -> float:
    return float(losses.sum(dtype=np.float64))


# ——— classification: one of several classes ———


def _weighted_cross_entropy(outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    # cross-entropy in fewer operators, along the first axis: torch's softmax along a short last one is slow
    log_likelihoods = outputs.t().log_softmax(0).gather(0, y.unsqueeze(0)).squeeze(0)
    return -(log_likelihoods * weights).sum()


def _cross_entropies(outputs: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(outputs, y, reduction="none")


def _find_likeliest(outputs: Tensor) -> Tensor:
    return outputs.argmax(dim=-1).to(torch.int32)


def _find_top_probability(outputs: Tensor) -> Tensor:
    return outputs.softmax(dim=-1).amax(dim=-1)


def _is_equal(predictions: Tensor, y: Tensor) -> Tensor:
    return predictions == y


def _classification_sums(y: Numbers, scores: Scores) -> MetricSums:
    assert scores.confidences is not None
    return _sum_class_scores(scores, metrics.count_by_class(y, scores.predictions), scores.confidences)


def _sum_class_scores(
    scores: Scores, classes: Numbers, confidences: Numbers, logits: Numbers = NO_CLASSES[:2]
) -> MetricSums:
    """Returns the sums that classification and binary labels share."""
    assert scores.correct is not None
    return MetricSums(
        examples=len(scores.losses),
        losses=_sum_losses(scores.losses),
        log_losses=_sum_losses(scores.losses if scores.log_losses is None else scores.log_losses),
        correct=int(np.count_nonzero(scores.correct)),
        classes=classes,
        overconfidence=metrics.sum_overconfidence(confidences, scores.correct),
        logits=logits,
    )


def _classification_metrics(sums: MetricSums) -> Metrics:
    return {
        "accuracy": sums.correct / sums.examples,
        "loss": sums.losses / sums.examples,
        "log_loss": sums.log_losses / sums.examples,
        "macro_f1": metrics.compute_macro_f1(sums.classes),
        "calibration_error": metrics.compute_calibration_error(sums.overconfidence, sums.examples),
    }


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
    logits = scores.predictions
    with np.errstate(over="ignore"):
        confidences = 1 / (1 + np.exp(-np.abs(logits.astype(np.float64))))
    classes = metrics.count_by_class(y, (logits > 0).astype(np.int32))
    return _sum_class_scores(scores, classes, confidences, metrics.count_by_logit_bin(y, logits))


def _binary_metrics(sums: MetricSums) -> Metrics:
    return _classification_metrics(sums) | _rank_metrics(sums.logits, is_nan=bool(np.isnan(sums.log_losses)))


def _exact_rank_metrics(y: Numbers, scores: Scores) -> Metrics:
    logits = scores.predictions
    return _rank_metrics(metrics.count_by_logit(y, logits), is_nan=bool(np.isnan(logits).any()))


def _rank_metrics(counts: Numbers, *, is_nan: bool) -> Metrics:
    """Returns the metrics of the order of logits; none if one of the labels does not occur."""
    if not counts.any(axis=1).all():
        return {}
    if is_nan:
        return {"auc": np.nan, "average_precision": np.nan}
    return {"auc": metrics.compute_auc(counts), "average_precision": metrics.compute_average_precision(counts)}


# ——— regression: a number ———


def _squared_errors(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs.squeeze(-1) - y).square()


def _squared_mean(outputs: Tensor, y: Tensor) -> Tensor:
    return _squared_errors(outputs, y).mean()


def _squared_weighted(outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return (_squared_errors(outputs, y) * weights).sum()


def _regression_sums(y: Numbers, scores: Scores) -> MetricSums:
    errors = scores.errors
    assert errors is not None
    return MetricSums(
        examples=len(scores.losses),
        losses=_sum_losses(scores.losses),
        correct=0,
        classes=NO_CLASSES,
        squares=_sum_losses(np.square(errors)),
        absolutes=_sum_losses(np.abs(errors)),
        labels=LabelMoments.of(y),
    )


def _regression_metrics(sums: MetricSums) -> Metrics:
    """Returns the metrics; r2 only if labels differ."""
    found = {
        "rmse": float(np.sqrt(sums.squares / sums.examples)),
        "mae": sums.absolutes / sums.examples,
        "loss": sums.losses / sums.examples,
    }
    spread = sums.labels.squares
    return found | {"r2": 1 - sums.squares / spread} if spread > 0 else found


CLASSIFICATION = Task(
    outputs=None,
    losses=_cross_entropies,
    mean_loss=cross_entropy,
    weighted_loss=_weighted_cross_entropy,
    predictions=_find_likeliest,
    is_correct=_is_equal,
    confidences=_find_top_probability,
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
    exact_metrics=_exact_rank_metrics,
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
"""The tasks by name. Losses are cross-entropies in nats, or squared errors. ``losses.build_task`` changes them."""
