"""Shows the alerts of a run: each once in the log, and all of them in the tags of its MLflow run."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np

from fednar_ray.core.callbacks import RoundCallback
from fednar_ray.core.errors import RoundAborted, RunFailed
from fednar_ray.core.reports import RoundRecord, RoundReport
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.experiments.alerts import Alert, AlertMonitor, ChanceLevel
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.tracking.tags import ALERT_TAG_PREFIX, ALERTS_TAG
from fednar_ray.tracking.tracker import RunTracker

log = logging.getLogger("fednar_ray")


class AlertCallback(RoundCallback):
    """Looks for alerts after each round, and in the error that aborted a round.

    Args:
        label: How log lines name the run.
        prepared: The run.
        tracker: Its MLflow run, which ends after this callback.
        history: The rounds that a resumed run has recorded. Their alerts are known, and not shown again.
        is_compared: Whether the run is part of a comparison.
    """

    def __init__(
        self,
        label: str,
        prepared: Prepared,
        tracker: RunTracker,
        history: Iterable[RoundRecord],
        *,
        is_compared: bool = False,
    ) -> None:
        self._label, self._tracker = label, tracker
        federation = prepared.federation
        self._monitor = AlertMonitor(
            prepared.experiment, compute_chance_level(federation), federation.client_names, is_compared=is_compared
        )
        self._last_round = -1
        for record in history:
            self._last_round = record.round_index
            self._monitor.check_round(record)

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """All alerts up to now, those of recorded rounds included."""
        return self._monitor.alerts

    def on_round_end(self, report: RoundReport) -> None:
        """Shows the round's new alerts. A round that was recorded before and is trained again has none."""
        if report.round_index > self._last_round:
            self._show(self._monitor.check_round(report))

    def on_run_end(self) -> None:
        """Sets tags of the MLflow run that list all alerts."""
        with suppress(RunFailed):  # the disk is full, which the tracker reports
            self._tracker.log_tags(build_tags(self.alerts))

    def on_error(self, error: BaseException) -> None:
        """Shows why a round was aborted, and tags the MLflow run."""
        with suppress(RunFailed):
            if isinstance(error, RoundAborted):
                self._show(self._monitor.check_abort(error))
        self.on_run_end()

    def _show(self, new: Sequence[Alert]) -> None:
        for alert in new:
            number = alert.round_index + 1  # as the progress bar counts
            log.warning("%s: %s, round %d: %s", self._label, alert.name, number, alert.message)
        if new:
            self._tracker.log_tags(build_tags(self.alerts))


def build_tags(alerts: Sequence[Alert]) -> dict[str, str]:
    """Returns alerts as tags of an MLflow run: their names, and one message per alert."""
    names = ",".join(alert.name for alert in alerts) or "none"
    return {ALERTS_TAG: names, **{f"{ALERT_TAG_PREFIX}{alert.name}": alert.message for alert in alerts}}


def compute_chance_level(federation: FederatedData) -> ChanceLevel | None:
    """Computes what a model that has learned nothing reaches on the test set.

    Returns:
        The level; None if there is no test set, or if its labels stay in the silos.
    """
    test = None if federation.metrics_only else federation.splits().get("test")
    if test is None:
        return None
    if federation.task == "regression":
        return ChanceLevel("rmse", float(np.std(test.y)))
    return ChanceLevel("accuracy", float(np.unique(test.y, return_counts=True)[1].max() / len(test.y)))
