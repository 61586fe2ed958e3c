"""The journals and MLflow runs of a search's trials."""

from collections.abc import Sequence
from functools import partial
from types import TracebackType

from fednar_ray.tracking.shared_sender import SharedSender
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.open_trial import OpenTrial, is_unfinished_in_mlflow
from fednar_ray.tuning.trial_plan import TrialPlan
from fednar_ray.tuning.trial_table import TrialEntry, TrialTable


class TrialRuns:
    """Opens and closes the records of trials. A single thread calls MLflow.

    Used as a context manager. Leaving it closes all trials and waits for MLflow.  If the search was not interrupted,
    it also ends the runs of trials that an earlier process of the search left open in MLflow.
    """

    def __init__(self, table: TrialTable, store: Store, plan: TrialPlan) -> None:
        self._table, self._store, self._plan = table, store, plan
        self._open: dict[str, OpenTrial] = {}
        self._seen: set[str] = set()  # ids of all trials that were opened
        self._sender = SharedSender(store.uri)

    def __enter__(self) -> "TrialRuns":
        self._sender.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for trial_id in list(self._open):
                self.close(trial_id)
            if kind is None:
                self._end_abandoned()
        finally:
            self._sender.__exit__(kind, error, trace)

    def __contains__(self, trial_id: object) -> bool:
        """Returns whether the trial is open."""
        return trial_id in self._open

    def open(self, trial_id: str, entry: TrialEntry) -> None:
        """Opens the record of a trial that starts or continues."""
        opened = self._build(entry)
        self._open[trial_id] = opened
        self._seen.add(trial_id)
        self._sender.submit(opened.open_run)

    def log_rounds(self, trial_id: str, lines: Sequence[str]) -> None:
        """Writes the rounds of an open trial, as lines of its journal."""
        self._open[trial_id].log_rounds(lines)

    def close(self, trial_id: str) -> None:
        """Closes the record of an open trial."""
        self._end(self._open.pop(trial_id), self._table.trials[trial_id])

    def _end_abandoned(self) -> None:
        for trial_id, entry in self._table.trials.items():
            if trial_id not in self._seen and is_unfinished_in_mlflow(self._table.get_trial_directory(entry)):
                self._end(self._build(entry), entry)

    def _build(self, entry: TrialEntry) -> OpenTrial:
        return OpenTrial(self._store, self._sender, self._table, entry, self._plan.build_experiment(entry.values))

    def _end(self, opened: OpenTrial, entry: TrialEntry) -> None:
        opened.close_journal()
        self._sender.submit(partial(opened.end_run, entry.status, entry.failure))
