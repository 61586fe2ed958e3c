"""Metrics have names in MLflow whose alphabetical order puts what matters first."""

import pytest

from fednar_ray.core.metric_names import METRICS_BY_TASK
from fednar_ray.tracking.mlflow_names import IN_MLFLOW, name_in_mlflow

NAMES = {
    "test_accuracy": "accuracy/test",
    "validation_auc": "auc/validation",
    "test_macro_f1": "macro_f1/test",
    "test_cohen_kappa_score": "cohen_kappa_score/test",  # a user's own
    "train_loss": "loss/train",
    "clip_fraction": "fednar/clip_fraction",
    "effective_weight_decay": "fednar/effective_weight_decay",
    "client_accuracy_worst_decile": "clients/accuracy_worst_decile",
    "clients_trained": "clients/trained",
    "bytes_up": "cost/bytes_up",
    "round_seconds": "time/round",
    "seconds/train": "time/train",
    "start_up_seconds": "time/start_up",
    "privacy/epsilon": "privacy/epsilon",
    "test": "test",
    "gain": "gain",
}


@pytest.mark.parametrize("metric", NAMES)
def test_a_metric_has_its_name_in_mlflow(metric: str) -> None:
    assert name_in_mlflow(metric) == NAMES[metric]
    assert name_in_mlflow(NAMES[metric]) == NAMES[metric]  # whoever has a name from MLflow may ask again


def test_two_metrics_never_share_a_name() -> None:
    evaluated = [f"{split}_{name}" for task in METRICS_BY_TASK.values() for name in task
                 for split in ("test", "validation", "train")]  # fmt: skip
    metrics = {*IN_MLFLOW, *evaluated}
    assert len({name_in_mlflow(metric) for metric in metrics}) == len(metrics)


def test_of_a_classification_the_primary_metric_is_in_the_first_group_of_charts() -> None:
    metrics = [*IN_MLFLOW, "train_loss", *(f"test_{name}" for name in METRICS_BY_TASK["classification"])]
    assert min(name_in_mlflow(metric).rpartition("/")[0] for metric in metrics) == "accuracy"
