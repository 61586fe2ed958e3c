"""Ends a search before all its trials are trained, if a rule of ``search.stop`` is met."""

import time
from typing import Any

from ray.tune.stopper import Stopper

from fednar_ray.config import SearchSettings
from fednar_ray.core.counting import format_count
from fednar_ray.tracking.file_writes import replace_file
from fednar_ray.tracking.run_directory import SearchDirectory
from fednar_ray.tuning.strategy import is_better
from fednar_ray.tuning.trial_table import FINISHED, TrialEntry, TrialTable


class StopRules:
    """Checks the rules of ``search.stop``, and writes the stop file when the first one is met."""

    def __init__(self, search: SearchSettings, table: TrialTable) -> None:
        self.met: str | None = None  # the rule that is met, in words
        self._search, self._table = search, table
        self._start = time.monotonic()
        self._best = table.find_best(search.mode)
        self._trials_since_best = 0

    @property
    def seconds(self) -> float:
        """Time since the search was started or resumed."""
        return time.monotonic() - self._start

    def check_time(self) -> None:
        """Ends the search if ``search.stop.wall_seconds`` have passed."""
        limit = self._search.stop.wall_seconds
        if limit is not None and self.seconds >= limit:
            self._stop(f"search.stop.wall_seconds ({limit:g}) have passed")

    def count_ended_trial(self, entry: TrialEntry) -> None:
        """Ends the search if a trial that has ended meets ``search.stop.target`` or ``search.stop.patience_trials``."""
        target, mode = self._search.stop.target, self._search.mode
        if target is not None and entry.status == FINISHED and not is_better(mode, target, entry.value):
            self._stop(f"{entry.name} reached search.stop.target ({target:g})")
        best = self._table.find_best(mode)
        self._trials_since_best = 0 if best is not self._best else self._trials_since_best + 1
        self._best = best
        patience = self._search.stop.patience_trials
        if patience is not None and self._trials_since_best >= patience:
            self._stop(f"{format_count(patience, 'trial')} ended without a new best")

    def _stop(self, rule: str) -> None:
        if self.met is None:
            self.met = rule
            replace_file(self._table.files.stop_file, rule)

    def clear(self) -> None:
        """Removes the stop file, if it exists."""
        self._table.files.stop_file.unlink(missing_ok=True)


class StopFileStopper(Stopper):  # type: ignore[misc]
    """Ends Tune's loop while the search's directory has a stop file.

    Tune pickles its stopper with its own state, and a resumed search works with the unpickled copy. The file connects
    that copy with the ``StopRules`` of the process.
    """

    def __init__(self, search: str) -> None:
        self._search = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Returns False, since stop rules end whole searches only."""
        return False

    def stop_all(self) -> bool:
        """Returns whether the search has a stop file."""
        return SearchDirectory.named(self._search).stop_file.exists()
