"""The names of metrics in MLflow, where they are grouped; everywhere else they have the names of ``RoundReport``.

MLflow's UI draws one group of charts per prefix, in alphabetical order. So the metrics of held-out examples come first
(``accuracy/test``), then the clients, what the run cost, what FedNAR did, and how long it took.
"""

from collections.abc import Mapping

from fednar_ray.core.metric_names import CLIENT_METRICS, SPLITS
from fednar_ray.core.timing import PHASES

START_UP = "start_up_seconds"
"""How long a run waited for its actors before its first round."""

TOTALS: Mapping[str, tuple[str, ...]] = {
    "cost/total_bytes": ("bytes_down", "bytes_up"),
    "cost/total_client_seconds": ("client_seconds",),
}
"""What a trial cost in all its rounds: names in MLflow → the metrics of a round that are added up."""

IN_MLFLOW: Mapping[str, str] = {
    **{name: f"clients/{name.removeprefix('client_')}" for name in CLIENT_METRICS},
    **{f"clients_{what}": f"clients/{what}" for what in ("sampled", "dropped_out", "late", "trained", "failed")},
    **{name: f"cost/{name}" for name in ("bytes_down", "bytes_up", "client_seconds")},
    **{name: f"fednar/{name}" for name in ("clip_fraction", "effective_weight_decay", "weight_decay", "clip_bound")},
    **{name: f"fednar/{name}" for name in ("step_norm", "step_norm_p10", "step_norm_p90")},
    **{name: f"server/{name}" for name in ("update_norm", "parameter_norm", "server_lr")},
    **{f"seconds/{phase}": f"time/{phase}" for phase in PHASES},
    "round_seconds": "time/round",
    "virtual_seconds": "time/virtual_clock",
    START_UP: "time/start_up",
    "local_lr": "fednar/local_lr",
}
"""Each metric whose name in MLflow does not follow from its split → that name. This is the only such table."""


def name_in_mlflow(metric: str) -> str:
    """Returns the name of a metric in MLflow.

    Args:
        metric: The name in a round's report. That of a metric of a split, such as ``test_accuracy`` or one of a user's
            own, becomes ``accuracy/test``; a name that is not known stays as it is.
    """
    split, _, bare = metric.partition("_")
    if bare and split in (*SPLITS, "train"):
        return f"{bare}/{split}"
    return IN_MLFLOW.get(metric, metric)
