"""The sections ``checkpoint``, ``tracking`` and ``report``: what is kept of a run, where, and what its page shows."""

from typing import Annotated

from pydantic import AfterValidator

from fednar_ray.config.base import Count, Example, NonNegative, Settings
from fednar_ray.core.store_uris import find_name_problem


def _check_experiment_name(value: str) -> str:
    problem = find_name_problem(value)
    if problem is not None:
        raise ValueError(f"{problem}; name an MLflow experiment, such as digits or team/digits")
    return value


class CheckpointSettings(Settings):
    """Checkpoints, from which a run can be resumed."""

    every: Annotated[Count | None, Example(5)] = 10
    """Rounds from one checkpoint to the next. The start and the end are always written. null: no checkpoints."""
    keep: Annotated[Count, Example(5)] = 2
    """The number of latest checkpoints that are kept."""
    storage: Annotated[str | None, Example("s3://bucket/checkpoints")] = None
    """A directory, or a URI that fsspec can open (s3://…, gs://…). null: ``checkpoints`` in the run directory."""


class TrackingSettings(Settings):
    """Where MLflow records the run."""

    uri: Annotated[str | None, Example("http://mlflow.example:5000")] = None
    """The address of the tracking store. null: ``MLFLOW_TRACKING_URI``, or ./mlflow.db if that is not set."""
    experiment: Annotated[Annotated[str, AfterValidator(_check_experiment_name)] | None, Example("team/clinics")] = None
    """The MLflow experiment. null: the experiment's name."""
    system_metrics: Annotated[bool | None, Example(True)] = None
    """Whether to record CPU, memory, disk, network and GPU use of the driver's machine. null: as
    ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` says, and not if that is not set."""


class Prices(Settings):
    """What hours and bytes cost, in one currency of your choice."""

    gpu_hour: Annotated[NonNegative, Example(2.5)] = 0.0
    """The price of an hour of training on one GPU."""
    cpu_hour: Annotated[NonNegative, Example(0.05)] = 0.0
    """The price of an hour of training in an actor that has no GPU."""
    gb: Annotated[NonNegative, Example(0.09)] = 0.0
    """The price of a gigabyte that is sent to clients or received from them."""


class ReportSettings(Settings):
    """What the pages of runs and comparisons show."""

    prices: Prices | None = None
    """Prices, from which pages compute what training cost. null: pages show no cost."""
