"""Which trials each pack trains, and what becomes of them: the driver's side of packs.

It stands between Tune, which knows only packs, and the search algorithm, the scheduler and the recorder, which know
only trials.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from fednar_ray.core.counting import format_count
from fednar_ray.core.errors import is_of_memory
from fednar_ray.tuning.judging import judge_together
from fednar_ray.tuning.pack import Assignment
from fednar_ray.tuning.proposals import Proposals, Row
from fednar_ray.tuning.recorder import Recorder, get_crash_message
from fednar_ray.tuning.trial_report import ROUNDS_KEY
from fednar_ray.tuning.trial_table import TrialTable

log = logging.getLogger("fednar_ray")


class Packs:
    """The trials of all packs.

    Args:
        table: The search's trials.
        metric: The search's metric.
        proposals: The source of trials.
        scheduler: The scheduler that judges trials.
        recorder: Records trials.
        width: Maximum number of trials per pack.
        concurrent: Maximum number of trials at a time.
    """

    def __init__(
        self,
        table: TrialTable,
        metric: str,
        proposals: Proposals,
        scheduler: TrialScheduler,
        recorder: Recorder,
        *,
        width: int,
        concurrent: int,
    ) -> None:
        self._tune, self._metric = table.files.tune, metric
        self._proposals, self._scheduler, self._recorder = proposals, scheduler, recorder
        self._width, self._concurrent = width, concurrent
        self._rows: dict[str, dict[str, Row]] = {}  # by the id of the pack, then of the trial
        self._waiting: list[Row] = []  # of packs that were split
        self._known: list[Trial] = []  # all trials that the scheduler knows

    @property
    def has_trials_left(self) -> bool:
        """Whether another pack would have something to train."""
        if self._recorder.ended_early is not None or self._count_rows() >= self._concurrent:
            return False
        return bool(self._waiting) or self._proposals.left > 0

    def _count_rows(self) -> int:
        return sum(len(rows) for rows in self._rows.values())

    def greet(self, pack: Trial) -> None:
        """Takes notice of a process that has no trials yet. If the pack has some, their process has crashed."""
        rows = self._rows.setdefault(pack.trial_id, {})
        for row in rows.values():
            row.checkpoints = True
        error = pack.get_pickled_error() if rows else None
        if error is not None and is_of_memory(error) and len(rows) > 1:
            self._width = self._halve(rows)
            log.warning("a pack ran out of memory; from now on packs have at most %d trials", self._width)

    def _halve(self, rows: dict[str, Row]) -> int:
        """Leaves half of a pack's trials in it, lets the others wait, and returns how many it may have now."""
        half, all_rows = len(rows) // 2, list(rows.values())
        for row in all_rows:
            row.limit = half
        for row in all_rows[half:]:
            del rows[row.trial.trial_id]
        self._waiting = all_rows[half:] + self._waiting
        return half

    def record(self, controller: Any, pack: Trial, reports: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Records the reports of a pack's trials, and lets the trials end that are done or that the scheduler stops."""
        rows = self._rows[pack.trial_id]
        reported = [(rows[trial_id], report) for trial_id, report in reports if trial_id in rows]
        results = [(row.trial, self._select(report)) for row, report in reported]
        ended = judge_together(self._scheduler, controller, results, self._known)
        for (row, report), (trial, result) in zip(reported, results, strict=True):
            row.reports += 1
            self._proposals.tell(row, {**result, "training_iteration": row.reports}, ended=trial.trial_id in ended)
            self._recorder.on_trial_result(0, [], trial, dict(report))
            if trial.trial_id in ended:
                del rows[trial.trial_id]
                self._recorder.on_trial_complete(0, [], trial)

    def _select(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what schedulers and search algorithms read of a report."""
        return {key: report[key] for key in (self._metric, ROUNDS_KEY, "done")}

    def fill(self, controller: Any, pack: Trial) -> list[Assignment]:
        """Lets new trials take the places of those that have ended, and returns what the pack trains from now on."""
        rows = self._rows[pack.trial_id]
        while self._recorder.ended_early is None and self._has_room(rows):
            row = self._take(controller)
            if row is None:
                break
            rows[row.trial.trial_id] = row
        return [self._assign(row) for row in rows.values()]

    def _has_room(self, rows: Mapping[str, Row]) -> bool:
        """Returns whether the next trial may join a pack."""
        limit = min([self._width, *(row.limit for row in (*rows.values(), *self._waiting[:1]))])
        return len(rows) < limit and self._count_rows() < self._concurrent

    def _take(self, controller: Any) -> Row | None:
        if self._waiting:
            return self._waiting.pop(0)
        row = self._proposals.propose()
        if row is not None:
            self._known.append(row.trial)
            self._scheduler.on_trial_add(controller, row.trial)
            self._recorder.on_trial_start(0, [], row.trial)
        return row

    def _assign(self, row: Row) -> Assignment:
        trial_id = row.trial.trial_id
        found = list(self._tune.glob(f"*/checkpoint_*/{trial_id}")) if row.checkpoints else []
        row.checkpoints = False  # from now on its pack has it
        newest_first = sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return Assignment(trial_id=trial_id, values=row.trial.config, checkpoints=tuple(map(str, newest_first)))

    def lose(self, pack: Trial) -> None:
        """Takes back the trials of a pack that has crashed more often than ``search.retries`` allows.

        A trial that was alone has failed. Several are tried again in smaller packs, since one of them may have harmed
        the others.
        """
        rows, message = self._rows.pop(pack.trial_id, {}), get_crash_message(pack)
        if not rows and (row := self._take(None)) is not None:  # otherwise such processes would crash without end
            rows[row.trial.trial_id] = row
        if len(rows) > 1:
            for row in rows.values():
                row.limit, row.checkpoints = len(rows) // 2, True
            self._waiting = [*rows.values(), *self._waiting]
            text = "a pack of %s crashed; they are trained again in packs of at most %d: %s"
            log.warning(text, format_count(len(rows), "trial"), len(rows) // 2, message)
            return
        for row in rows.values():
            self._proposals.tell_crash(row)
            self._recorder.record_crash(row.trial, message)
