"""The state of a search as the user sees it while it runs."""

from collections.abc import Callable
from dataclasses import dataclass

from fednar_ray.tuning.trial_table import FAILED, FINISHED, RUNNING, STOPPED, TrialEntry, TrialTable


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStatus:
    """The state of a search after an event.

    Attributes:
        trials: Number of trials of the whole search.
        rounds: Number of rounds of a trial.
        running: The trials that are being trained.
        finished: Number of trials that trained all rounds.
        stopped: Number of trials that were stopped early.
        failed: Number of trials that failed.
        best: The best of the finished trials; None if there is none.
        ended: The trial that this event ended; None for other events.
        seconds: Time since the search was started or resumed.
    """

    trials: int
    rounds: int
    running: tuple[TrialEntry, ...]
    finished: int
    stopped: int
    failed: int
    best: TrialEntry | None
    ended: TrialEntry | None
    seconds: float

    @property
    def done(self) -> int:
        """Number of trials that have ended."""
        return self.finished + self.stopped + self.failed

    @property
    def seconds_left(self) -> float | None:
        """Estimated remaining time, from the mean time per ended trial; None until a trial has ended."""
        return self.seconds / self.done * (self.trials - self.done) if self.done else None


Show = Callable[[SearchStatus], None]
"""Shows the user the state of a search."""


def build_status(
    table: TrialTable, *, mode: str, trials: int, rounds: int, ended: TrialEntry | None, seconds: float
) -> SearchStatus:
    """Builds the state of a search from its table."""
    return SearchStatus(
        trials=trials,
        rounds=rounds,
        running=tuple(entry for entry in table.trials.values() if entry.status == RUNNING),
        finished=table.count(FINISHED),
        stopped=table.count(STOPPED),
        failed=table.count(FAILED),
        best=table.find_best(mode),
        ended=ended,
        seconds=seconds,
    )
