"""The metrics of evaluated examples by name: which direction is better, which task has them, and which one counts."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

HIGHER_IS_BETTER: Mapping[str, bool] = {
    "accuracy": True,
    "macro_f1": True,
    "auc": True,
    "average_precision": True,
    "r2": True,
    "loss": False,
    "log_loss": False,
    "calibration_error": False,
    "perplexity": False,
    "rmse": False,
    "mae": False,
}
"""Each metric of a split, without the split's name → whether a higher value is better. This is the only such table."""

CLIENT_METRICS: Mapping[str, bool] = {
    "client_accuracy_mean": True,
    "client_accuracy_worst_decile": True,
    "client_rmse_mean": False,
    "client_rmse_worst_decile": False,
}
"""The same for the metrics over clients, which have no split."""

METRICS_BY_TASK: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy", "loss", "log_loss", "macro_f1", "calibration_error", "perplexity"),
    "binary": ("accuracy", "loss", "log_loss", "macro_f1", "calibration_error", "auc", "average_precision"),
    "regression": ("rmse", "mae", "r2", "loss"),
}
"""The metrics of each task. Not all of them are defined for all data, such as the AUC if only one label occurs."""

SHARES = frozenset({"accuracy", "macro_f1", "auc", "average_precision", "calibration_error"})
"""The metrics that lie between 0 and 1."""

LARGE = 1e9  # larger numbers are written with an exponent
SPLITS = ("validation", "test")
RARE = 0.2
"""A binary task whose rarer label has a smaller share of the training labels is judged by its AUC."""


def is_higher_better(name: str) -> bool:
    """Returns whether a higher value of a metric is better.

    Args:
        name: The name with or without its split, such as ``test_accuracy`` or ``accuracy``. Unknown names are those of
            a user's own metrics, of which higher values are better by definition.
    """
    split, _, bare = name.partition("_")
    if split in (*SPLITS, "train"):
        return HIGHER_IS_BETTER.get(bare, True)
    return {**HIGHER_IS_BETTER, **CLIENT_METRICS}.get(name, True)


def choose_primary(task: str, label_counts: "npt.NDArray[np.int64]") -> str:
    """Chooses the metric that counts if the settings name none.

    Args:
        task: classification, binary or regression.
        label_counts: The number of training examples by class, [classes].

    Returns:
        ``rmse`` in regression; ``auc`` for binary labels of which one has a share below ``RARE``; else ``accuracy``.
    """
    if task == "regression":
        return "rmse"
    both_occur = len(label_counts) == 2 and label_counts.min() > 0
    rare = task == "binary" and both_occur and label_counts.min() < RARE * label_counts.sum()
    return "auc" if rare else "accuracy"


def find_primary_problem(primary: str | None, own: Collection[str], task: str | None = None) -> str | None:
    """Returns what is wrong with ``evaluation.primary``; None if nothing is.

    Args:
        primary: The metric that the settings name, if any.
        own: The names of the user's own metrics.
        task: The task of the data; None: not known before they are loaded, so that a metric of any task is accepted.
    """
    metrics = HIGHER_IS_BETTER if task is None else METRICS_BY_TASK[task]
    known = (*metrics, *own)
    if primary is None or primary in known:
        return None
    of = "" if task is None else f" of task {task}"
    listed = f"use one of {', '.join(known)}, or name your own in evaluation.metrics (in Python also metrics=)"
    return f"evaluation.primary: {primary!r} is not a metric{of}; {listed}"


def find_judged(names: Collection[str], primary: str | None = None) -> str:
    """Returns the metric by which evaluated rounds are judged on the test set, without its split.

    Args:
        names: The metrics that the rounds have.
        primary: The primary metric of the run; None: not known. Rounds that do not have it, because the test set has
            only one label, are judged by their accuracy or RMSE.
    """
    if primary is not None and f"test_{primary}" in names:
        return primary
    return "rmse" if "test_rmse" in names else "accuracy"


def format_metric_value(name: str, value: float) -> str:
    """Formats a value of a metric: those between 0 and 1 with three decimals, others with four digits at least."""
    return f"{value:.3f}" if name in SHARES else format_digits(value, 4)


def format_spread(name: str, value: float) -> str:
    """Formats a difference or a spread of values of a metric, with two digits unless the metric is a share."""
    return f"{value:.3f}" if name in SHARES else format_digits(value, 2)


def format_digits(value: float, digits: int) -> str:
    """Formats a number with so many significant digits; of larger numbers, all digits before the point: 32350."""
    return f"{value:.0f}" if 10**digits <= abs(value) < LARGE else f"{value:.{digits}g}"
