"""The sections ``checkpoint``, ``tracking`` and ``report``: what is kept of a run, where, and what its page shows."""

from typing import Annotated

from pydantic import AfterValidator

from fednar_ray.config.base import Count, NonNegative, Settings
from fednar_ray.core.store_uris import find_name_problem


def _check_experiment_name(value: str) -> str:
    problem = find_name_problem(value)
    if problem is not None:
        raise ValueError(f"{problem}; name an MLflow experiment, such as digits or team/digits")
    return value


class CheckpointSettings(Settings):
    """Checkpoints, from which a run can be resumed."""

    every: Count | None = 10
    """Rounds from one checkpoint to the next. The start and the end are always written. null: no checkpoints."""
    keep: Count = 2
    """The number of latest checkpoints that are kept."""
    storage: str | None = None
    """A directory, or a URI that fsspec can open (s3://…, gs://…). null: ``checkpoints`` in the run directory."""


class TrackingSettings(Settings):
    """Where MLflow records the run."""

    uri: str | None = None
    """The address of the tracking store. null: ``MLFLOW_TRACKING_URI``, or ./mlflow.db if that is not set."""
    experiment: Annotated[str, AfterValidator(_check_experiment_name)] | None = None
    """The MLflow experiment. null: the experiment's name."""
    system_metrics: bool | None = None
    """Whether to record CPU, memory, disk, network and GPU use of the driver's machine. null: as
    ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` says, and not if that is not set."""


class Prices(Settings):
    """What hours and bytes cost, in one currency of your choice."""

    gpu_hour: NonNegative = 0.0
    """The price of an hour of training on one GPU. Actors that share a GPU share its price."""
    cpu_hour: NonNegative = 0.0
    """The price of an hour of training in an actor that has no GPU."""
    gb: NonNegative = 0.0
    """The price of a gigabyte that is sent to clients or received from them."""


class ReportSettings(Settings):
    """What the pages of runs and comparisons show."""

    prices: Prices | None = None
    """Prices, from which pages compute what training cost. null: pages show no cost."""
