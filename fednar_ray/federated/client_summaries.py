"""Summarizes the metrics of single clients: their mean, and the mean of the worst tenth."""

import numpy as np
import numpy.typing as npt

from fednar_ray.data.examples import Array
from fednar_ray.federated.scoring import Offsets


def summarize_accuracies(accuracies: npt.NDArray[np.float64]) -> dict[str, float]:
    """Returns the mean of the clients' accuracies, and the mean of the worst tenth (at least one client)."""
    ordered = np.sort(accuracies)
    return {
        "client_accuracy_mean": float(ordered.mean()),
        "client_accuracy_worst_decile": _average_first_tenth(ordered),
    }


def summarize_errors(mean_squares: npt.NDArray[np.float64]) -> dict[str, float]:
    """Returns the same of the clients' root mean squared errors, of which the highest are the worst."""
    errors = np.sort(np.sqrt(mean_squares))[::-1]
    return {"client_rmse_mean": float(errors.mean()), "client_rmse_worst_decile": _average_first_tenth(errors)}


def compute_client_means(values: Array, offsets: Offsets) -> npt.NDArray[np.float64]:
    """Computes the mean of each client that has examples, in the order of clients.

    Args:
        values: One value per example, clients one after the other, [Σ n_i].
        offsets: Where each client's values start, [N + 1].
    """
    sizes = np.diff(offsets)
    starts = offsets[:-1][sizes > 0]
    sums: npt.NDArray[np.float64] = np.add.reduceat(values, starts, dtype=np.float64)
    return sums / sizes[sizes > 0]


def _average_first_tenth(ordered: npt.NDArray[np.float64]) -> float:
    return float(ordered[: max(1, len(ordered) // 10)].mean())
