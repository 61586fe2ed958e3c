"""The sections ``checkpoint`` and ``tracking``: what a run keeps, and where MLflow records it."""

from typing import Annotated

from pydantic import AfterValidator

from fednar_ray.config.base import Count, Settings
from fednar_ray.core.store_uris import experiment_name_problem


def _experiment_name(value: str) -> str:
    problem = experiment_name_problem(value)
    if problem is not None:
        raise ValueError(f"{problem}; name an MLflow experiment, such as digits or team/digits")
    return value


class CheckpointSettings(Settings):
    """What is kept so that a run can go on."""

    every: Count | None = 10
    """Rounds from one checkpoint to the next; the start and the end are always written. null: none at all."""
    keep: Count = 2
    """How many are kept."""
    storage: str | None = None
    """A directory, or a URI (s3://…, gs://…, and what fsspec knows); null: ``checkpoints`` in the run directory."""


class TrackingSettings(Settings):
    """Where MLflow records; null means what MLflow itself would take (``MLFLOW_TRACKING_URI``, else ./mlflow.db)."""

    uri: str | None = None
    experiment: Annotated[str, AfterValidator(_experiment_name)] | None = None
    """The MLflow experiment; null takes the experiment's name."""
    system_metrics: bool | None = None
    """CPU, memory, disk, network and GPUs of the driver's machine as well; null: as
    ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` says, which is no unless set."""
