"""Computes metrics from counts and sums over examples."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.core.metric_sums import CALIBRATION_BINS, LOGIT_BINS, LOGITS_PER_UNIT, Counts

Numbers = npt.NDArray[Any]


def compute_perplexity(log_loss: float) -> float:
    """Computes e^loss for the cross-entropy of next tokens, in nats. It may be infinite.

    A perplexity of p means that the model is as uncertain as if it chose among p equally likely tokens.
    """
    with np.errstate(over="ignore"):
        return float(np.exp(log_loss))


def count_by_class(y: Numbers, predictions: Numbers) -> Counts:
    """Counts the labels, the predictions and the correct predictions of each class, [3, classes]."""
    classes = 1 + max(int(y.max()), int(predictions.max()))
    return np.stack([np.bincount(of, minlength=classes) for of in (y, predictions, y[predictions == y])])


def compute_macro_f1(classes: Counts) -> float:
    """Computes the mean of 2·TP/(2·TP + FP + FN) over the classes that occur as a label or a prediction.

    Args:
        classes: Per class the labels, the predictions and the correct predictions, [3, classes].
    """
    labels, predictions, correct = classes
    occurs = labels + predictions > 0
    return float((2 * correct[occurs] / (labels + predictions)[occurs]).mean())


def sum_overconfidence(confidences: Numbers, correct: Numbers) -> npt.NDArray[np.float64]:
    """Sums the predicted class's probability minus 1 for each correct prediction, by bin of the probability, [15].

    Bin b holds the probabilities from b/15 up to, but not including, (b+1)/15; the last one includes 1.

    Args:
        confidences: The probability of the predicted class, [n].
        correct: Whether the prediction is correct, [n].
    """
    confidences = confidences.astype(np.float64)
    bins = np.nan_to_num(confidences * CALIBRATION_BINS, nan=0.0).astype(np.int64).clip(0, CALIBRATION_BINS - 1)
    return np.bincount(bins, weights=confidences - correct, minlength=CALIBRATION_BINS).astype(np.float64)


def compute_calibration_error(overconfidence: npt.NDArray[np.float64], examples: int) -> float:
    """Computes the expected calibration error from the sums by bin: Σ_b |Σ_{i in b} (p_i − correct_i)| / n.

    Source: Guo et al., ICML 2017, equation 3.
    """
    return float(np.abs(overconfidence).sum() / examples)


def count_by_logit(y: Numbers, logits: Numbers) -> Counts:
    """Counts positives and negatives at each logit that occurs, ascending, [2, distinct logits]."""
    distinct, places = np.unique(logits, return_inverse=True)
    return np.stack([np.bincount(places[y == label], minlength=len(distinct)) for label in (1, 0)])


def count_by_logit_bin(y: Numbers, logits: Numbers) -> Counts:
    """Counts positives and negatives by bin of the logit, [2, 512]; see ``metric_sums.LOGIT_BINS``."""
    limit = LOGIT_BINS // 2
    scaled = np.floor(np.nan_to_num(logits.astype(np.float64), nan=0.0) * LOGITS_PER_UNIT)
    bins = scaled.clip(-limit, limit - 1).astype(np.int64) + limit
    return np.stack([np.bincount(bins[y == label], minlength=LOGIT_BINS) for label in (1, 0)])


def compute_auc(counts: Counts) -> float:
    """Computes the share of the pairs of a positive and a negative in which the positive has the higher logit.

    Args:
        counts: Positives and negatives at ascending logits, or by bin of the logit, [2, k]. Pairs at the same place
            count one half, so the AUC of bins differs from that of the logits by at most half the share of such pairs.
    """
    positives, negatives = counts
    below = np.cumsum(negatives) - negatives
    ordered = (positives * (below + negatives / 2)).sum()
    return float(ordered / (positives.sum() * negatives.sum()))


def compute_average_precision(counts: Counts) -> float:
    """Computes Σ_k (R_k − R_{k−1})·P_k, where P_k and R_k are precision and recall at the k-th highest threshold.

    Args:
        counts: As in ``compute_auc``.
    """
    positives, negatives = counts[:, ::-1]
    found = np.cumsum(positives)
    precision = found / np.maximum(found + np.cumsum(negatives), 1)
    return float((positives * precision).sum() / positives.sum())
