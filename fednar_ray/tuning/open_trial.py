"""A trial that is under way, as the driver records it: its journal, and its run in MLflow."""

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from fednar_ray.config import Experiment
from fednar_ray.core.errors import BadInput, TrackingUnavailable
from fednar_ray.experiments.alerts import alerts_of
from fednar_ray.experiments.alerts.callback import tags_of
from fednar_ray.tracking.identity import identity_of
from fednar_ray.tracking.journal import Journal, parse
from fednar_ray.tracking.lines import whole_lines
from fednar_ray.tracking.mlflow import RunTracker, Store
from fednar_ray.tracking.outbox import Outbox
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.tags import FAILURE_TAG, KIND_TAG, PARENT_TAG, SEARCH_TAG, STATUS_TAG
from fednar_ray.tuning.trial_table import FAILED, FINISHED, RUNNING, TrialEntry, TrialTable, trial_directory

log = logging.getLogger("fednar_ray")


class OpenTrial:
    """The journal of a trial that is under way, and its MLflow run.

    The journal is written at once.  ``tell`` and ``close`` belong to a thread of their own, since MLflow may take its
    time.  Trials that have ended can wait there in any number, so an ended trial holds no open file.
    """

    def __init__(self, store: Store, ledger: TrialTable, entry: TrialEntry, experiment: Experiment) -> None:
        self._store, self._ledger, self._entry, self._experiment = store, ledger, entry, experiment
        self._tracker: RunTracker | None = None
        self._held = ExitStack()
        self._directory = trial_directory(ledger, entry)
        self._journal = Journal(self._directory, experiment)

    def log(self, lines: Sequence[str]) -> None:
        """Rounds; those that are recorded already stay as they are."""
        for line in lines:
            self._journal.log(parse(line))

    def end_journal(self) -> None:
        """Close the journal's file. The rounds in it can still be read and sent."""
        self._journal.file.close()

    def tell(self) -> None:
        """The run in MLflow, which is sent the rounds from now on; the one it had, where the trial goes on."""
        entry = self._entry
        kept = entry.run_id or _recorded_id(self._directory)
        try:
            entry.run_id = kept or self._created()
        except TrackingUnavailable as error:
            log.warning("%s is not in MLflow yet: %s", entry.name, error)
            return
        tracker = RunTracker(self._store, entry.run_id, self._directory, resumed=kept is not None)
        self._tracker = self._held.enter_context(tracker)
        if kept is None:
            self._tracker.log_params(entry.values)
            self._tracker.log_experiment(self._experiment)
        self._tracker.log(self._journal)

    def _created(self) -> str:
        tags = {PARENT_TAG: self._ledger.parent_id, KIND_TAG: "trial", SEARCH_TAG: self._ledger.name}
        return self._store.create_run(self._ledger.experiment_id, self._entry.name, tags)

    def close(self, status: str, failure: str | None) -> None:
        """End the run: FINISHED, KILLED where it was stopped or left, FAILED where it failed."""
        if self._tracker is None:
            self.tell()
        with self._held:
            if self._tracker is None:
                return
            tags = tags_of(alerts_of(self._experiment, self._journal.records()))
            tags |= {STATUS_TAG: status} if status != RUNNING else {}
            self._tracker.log_tags({**tags, FAILURE_TAG: failure} if failure is not None else tags)
            self._tracker.ends_as({FINISHED: "FINISHED", FAILED: "FAILED"}.get(status, "KILLED"))


def _recorded_id(directory: Path) -> str | None:
    """MLflow's run of a trial's directory; None where it has none yet."""
    try:
        return identity_of(directory).run_id
    except BadInput:
        return None


def owes_mlflow(directory: Path) -> bool:
    """Whether a trial's run has not ended in MLflow, or lacks something there."""
    operations = whole_lines(RunDirectory(directory).outbox)
    if not operations or json.loads(operations[-1])["kind"] != "end":
        return True
    with closing(Outbox(directory)) as outbox:
        return bool(outbox.pending) or outbox.sent_rounds < len(whole_lines(RunDirectory(directory).journal))
