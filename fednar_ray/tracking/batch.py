"""Gathers rounds, parameters, tags and metrics of a run into one call of MLflow."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from fednar_ray.tracking.outbox import Operation

METRICS_PER_CALL = 1000  # MLflow's limit of metrics per call, and of everything in it
TEXTS_PER_CALL = 100  # MLflow's limit of parameters per call, and of tags
KINDS = ("params", "tags", "metrics")
"""The kinds of operations that fit into a batch."""


@dataclass(slots=True)
class Batch:
    """What one call of ``log_batch`` sends."""

    metrics: list[Metric] = field(default_factory=list)  # oldest first
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, operation: Operation) -> Self:
        """Returns the batch of one operation, whatever its size: MLflow's client splits what is too large."""
        batch = cls()
        batch._append(operation)
        return batch

    def add_round(self, metrics: Sequence[Metric]) -> bool:
        """Adds the metrics of a round, if they fit or are the first. Returns whether they were added."""
        if self.metrics and len(self.metrics) + len(metrics) > METRICS_PER_CALL:
            return False
        self.metrics += metrics
        return True

    def add(self, operation: Operation) -> bool:
        """Adds an operation, if it is of one of ``KINDS`` and fits. Returns whether it was added."""
        if operation["kind"] not in KINDS:
            return False
        new = self.of(operation)
        size = sum(len(each.metrics) + len(each.params) + len(each.tags) for each in (self, new))
        texts = max(len(self.params) + len(new.params), len(self.tags) + len(new.tags))
        repeated = self.params.keys() & new.params.keys()  # MLflow refuses to change a parameter
        if size > METRICS_PER_CALL or texts > TEXTS_PER_CALL or repeated:
            return False
        self._append(operation)
        return True

    def _append(self, operation: Operation) -> None:
        match operation["kind"]:
            case "params":
                self.params |= operation["params"]
            case "tags":
                self.tags |= operation["tags"]
            case "metrics":
                time, step = operation["time"], operation["step"]
                self.metrics += [Metric(key, value, time, step) for key, value in operation["metrics"].items()]

    def send(self, client: MlflowClient, run_id: str) -> None:
        """Sends the batch, the last steps first: MLflow's database then writes each latest value only once.

        Within a step the order stays: MLflow's charts are in the order in which a run's metrics first came.
        """
        client.log_batch(
            run_id,
            metrics=sorted(self.metrics, key=lambda metric: metric.step, reverse=True),  # stable
            params=[Param(key, value) for key, value in self.params.items()],
            tags=[RunTag(key, value) for key, value in self.tags.items()],
        )
