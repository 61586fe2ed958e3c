"""What a trial reports to Tune, and the one place that converts a report to and from Tune's dictionary."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fednar_ray.config import SearchSettings
from fednar_ray.core.metric_names import CLIENT_METRICS, SHARES

ROUNDS_KEY = "rounds"  # in Tune's dictionary: schedulers measure a trial's progress by it
LARGEST = 1e300  # stands for infinity in Tune's dictionary; sums of some are finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a trial's federation comes from, if population-based training has changed its settings on the way."""

    initial_values: Mapping[str, Any]  # by searched key, at round 0
    changes: Mapping[str, Mapping[str, float]]  # by the first round they apply to, as in ``Experiment.changes``


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReport:
    """The state of a trial after some more rounds.

    Attributes:
        value: The search's metric after the last of these rounds.
        rounds: Number of rounds that are trained, those of earlier reports included.
        lines: One line of JSON per round since the previous report, as in ``metrics.jsonl``.
        failure: Why the trial cannot train any further; None if it can.
        ended: Why a callback has ended the trial, which is then finished; None if none has.
        train_seconds: Time since the previous report, loading of data and model included.
        group_size: Number of clients that are trained as one matrix; None if unknown.
        compiled: Whether local steps are compiled; None if unknown.
        lineage: The origin of the federation; None if its settings never changed.
        done: Whether this is the trial's last report.
        should_checkpoint: Whether Tune saves a checkpoint of the trial now.
    """

    value: float
    rounds: int
    lines: tuple[str, ...]
    failure: str | None
    ended: str | None = None
    train_seconds: float
    group_size: int | None
    compiled: bool | None
    lineage: Lineage | None
    done: bool
    should_checkpoint: bool

    def to_tune(self, metric: str) -> dict[str, Any]:
        """Returns the dictionary that a Trainable's ``step`` returns, with the value under the metric's name.

        Its value is finite: schedulers compute means and quantiles of the values of several trials.
        """
        report = asdict(self)
        return {metric: clip_value(report.pop("value")), **report}

    @classmethod
    def from_tune(cls, result: Mapping[str, Any], metric: str) -> "TrialReport":
        """Reads a report from the dictionary that Tune hands to callbacks, which has keys of Tune's own as well."""
        report = {field.name: result[field.name] for field in fields(cls) if field.name not in ("value", "lineage")}
        lineage = None if result["lineage"] is None else Lineage(**result["lineage"])
        value = float(result[metric])
        return cls(value=value if abs(value) < LARGEST else math.copysign(math.inf, value), lineage=lineage, **report)


def clip_value(value: float) -> float:
    """Returns the finite value that stands for ``value`` in Tune's dictionaries."""
    return max(-LARGEST, min(value, LARGEST))


def get_worst_value(metric: str, mode: str) -> float:
    """Returns the value that ranks a failed trial last, which no model can fall short of.

    Args:
        metric: The search's metric. R² and a user's own metrics have no lowest value.
        mode: ``max`` or ``min``: which values of the metric are better.
    """
    if mode == "min":
        return math.inf
    return 0.0 if metric in CLIENT_METRICS or metric.removeprefix("validation_") in SHARES else -math.inf


def build_failure_report(search: SearchSettings, failure: str) -> TrialReport:
    """Builds the report of a trial that has failed before its first round."""
    return TrialReport(
        value=get_worst_value(search.metric, search.mode),
        rounds=0,
        lines=(),
        failure=failure,
        train_seconds=0.0,
        group_size=None,
        compiled=None,
        lineage=None,
        done=True,
        should_checkpoint=False,
    )
