"""Records one trial while it is trained: in its journal, and in its MLflow run."""

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from fednar_ray.config import Experiment
from fednar_ray.core.errors import BadInput, TrackingUnavailable
from fednar_ray.core.reports import RoundRecord
from fednar_ray.experiments.alerts import find_alerts
from fednar_ray.experiments.alerts.callback import build_tags
from fednar_ray.report.axes import format_values
from fednar_ray.tracking.identity import read_identity
from fednar_ray.tracking.journal import Journal, parse_line
from fednar_ray.tracking.json_lines import read_lines
from fednar_ray.tracking.mlflow_names import TOTALS
from fednar_ray.tracking.outbox import Outbox
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.shared_sender import SharedSender
from fednar_ray.tracking.store import Store
from fednar_ray.tracking.tags import END_TAG, FAILURE_TAG, KIND_TAG, PARENT_TAG, SEARCH_TAG, STATUS_TAG, TRIAL_TAG
from fednar_ray.tracking.tracker import RunTracker
from fednar_ray.tuning.trial_table import FAILED, FINISHED, RUNNING, STOPPED, TrialEntry, TrialTable

log = logging.getLogger("fednar_ray")

MLFLOW_STATUS = {FINISHED: "FINISHED", STOPPED: "FINISHED", FAILED: "FAILED"}  # else KILLED: the search was interrupted


class OpenTrial:
    """The journal of a trial that is being trained, and its MLflow run.

    The journal is written immediately. ``open_run`` and ``end_run`` are called in the thread of ``sender``, since
    MLflow may be slow. Many ended trials may wait for that thread, so an ended trial keeps no file open.
    """

    def __init__(
        self, store: Store, sender: SharedSender, table: TrialTable, entry: TrialEntry, experiment: Experiment
    ) -> None:
        self._store, self._sender = store, sender
        self._table, self._entry, self._experiment = table, entry, experiment
        self._tracker: RunTracker | None = None
        self._resources = ExitStack()
        self._directory = table.get_trial_directory(entry)
        self._journal = Journal(self._directory, experiment)

    def log_rounds(self, lines: Sequence[str]) -> None:
        """Writes rounds to the journal, except those that it already has."""
        for line in lines:
            self._journal.log(parse_line(line))

    def close_journal(self) -> None:
        """Closes the journal's file. The rounds in it can still be read and sent to MLflow."""
        self._journal.file.close()

    def open_run(self) -> None:
        """Opens the trial's MLflow run, which receives the rounds from now on. A resumed trial keeps its run."""
        entry = self._entry
        known = entry.run_id or _find_run_id(self._directory)
        try:
            entry.run_id = known or self._create_run()
        except TrackingUnavailable as error:
            log.warning("%s is not in MLflow yet: %s", entry.name, error)
            return
        tracker = RunTracker(self._store, entry.run_id, self._directory, resumed=known is not None, sender=self._sender)
        self._tracker = self._resources.enter_context(tracker)
        if known is None:
            self._tracker.log_file(RunDirectory(self._directory).experiment_yaml)  # which the journal has written
            self._tracker.log_params(entry.values)
        self._tracker.follow(self._journal)

    def _create_run(self) -> str:
        entry, table = self._entry, self._table
        tags = {PARENT_TAG: table.parent_id, KIND_TAG: "trial", SEARCH_TAG: table.name, TRIAL_TAG: entry.name}
        return self._store.create_run(
            table.experiment_id, f"{entry.name.removeprefix('trial-')} {format_values(entry.values)}", tags
        )

    def end_run(self, status: str, failure: str | None) -> None:
        """Ends the MLflow run, with the trial's status and its alerts as tags."""
        if self._tracker is None:
            self.open_run()
        with self._resources:
            if self._tracker is None:
                return
            records = self._journal.get_records()
            tags = build_tags(find_alerts(self._experiment, records))
            tags |= {STATUS_TAG: status} if status != RUNNING else {}
            tags |= {FAILURE_TAG: failure} if failure is not None else {}
            tags |= {END_TAG: self._entry.ended} if self._entry.ended is not None else {}
            self._tracker.log_tags(tags)
            self._tracker.log_metrics(sum_up(records))
            self._tracker.set_end_status(MLFLOW_STATUS.get(status, "KILLED"))


def sum_up(records: Sequence[RoundRecord]) -> dict[str, float]:
    """Returns what a trial cost in all its rounds, by the names in MLflow."""
    return {
        total: float(sum(record.metrics.get(name, 0.0) for record in records for name in names))
        for total, names in TOTALS.items()
    }


def _find_run_id(directory: Path) -> str | None:
    """Finds the MLflow run of a trial's directory; None if it has none yet."""
    try:
        return read_identity(directory).run_id
    except BadInput:
        return None


def is_unfinished_in_mlflow(directory: Path) -> bool:
    """Returns whether MLflow has not received all rounds and the end of a trial's run."""
    operations = read_lines(RunDirectory(directory).outbox)
    if not operations or json.loads(operations[-1])["kind"] != "end":
        return True
    with closing(Outbox(directory)) as outbox:
        return bool(outbox.pending) or outbox.sent_rounds < len(read_lines(RunDirectory(directory).journal))
