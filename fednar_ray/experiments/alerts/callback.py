"""A run's alerts as they show: in the log once each, and among the tags of its MLflow run."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import numpy as np

from fednar_ray.core.errors import RoundAborted, RunFailed
from fednar_ray.core.messages import RoundRecord
from fednar_ray.data.federation import Federation
from fednar_ray.experiments.alerts import Alert, AlertMonitor, ChanceLevel
from fednar_ray.experiments.prepare import Prepared
from fednar_ray.tracking.mlflow import RunTracker
from fednar_ray.tracking.tags import ALERT_TAG_PREFIX, ALERTS_TAG

log = logging.getLogger("fednar_ray")


class AlertCallback:
    """A context manager within a tracker's; what aborts a round it tells as well. ``past``: of a run that goes on."""

    def __init__(self, name: str, prepared: Prepared, tracker: RunTracker, past: Iterable[RoundRecord]) -> None:
        self._name, self._tracker = name, tracker
        self._watch = AlertMonitor(prepared.experiment, chance_of(prepared.federation))
        self._seen = -1
        for record in past:
            self._seen = record.round_index
            self._watch.see(record)

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """All so far."""
        return self._watch.alerts

    def round_ended(self, record: RoundRecord) -> None:
        """Look at the next round; one that was seen before is trained again by a run that goes on."""
        if record.round_index > self._seen:
            self._tell(self._watch.see(record))

    def _tell(self, new: Sequence[Alert]) -> None:
        for alert in new:
            number = alert.round_index + 1  # as progress counts
            log.warning("%s: %s, round %d: %s", self._name, alert.name, number, alert.message)
        if new:
            self._tracker.log_tags(tags_of(self.alerts))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(RunFailed):  # a full disk ends the run already
            if isinstance(error, RoundAborted):
                self._tell(self._watch.aborted(error))
            self._tracker.log_tags(tags_of(self.alerts))


def tags_of(alerts: Sequence[Alert]) -> dict[str, str]:
    """The alerts as tags of an MLflow run."""
    names = ",".join(alert.name for alert in alerts) or "none"
    return {ALERTS_TAG: names, **{f"{ALERT_TAG_PREFIX}{alert.name}": alert.message for alert in alerts}}


def chance_of(federation: Federation) -> ChanceLevel | None:
    """What a model that has learned nothing reaches on the test set; None where its labels are the silos' own."""
    test = None if federation.metrics_only else federation.splits().get("test")
    if test is None:
        return None
    if federation.task == "regression":
        return ChanceLevel("rmse", float(np.std(test.y)))
    return ChanceLevel("accuracy", float(np.unique(test.y, return_counts=True)[1].max() / len(test.y)))
