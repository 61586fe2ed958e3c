"""Lets a scheduler of Tune judge several trials whose reports arrive at once.

Tune's schedulers judge a trial by what they have recorded before. If the reports of a pack were passed on one after the
other, the first one would be judged by fewer trials than the last one. So each trial is judged as if its report had
arrived last: all other reports of the pack are recorded first, in the order of the rows. Then all are recorded in that
order. Only Tune's public interface is used: ``on_trial_complete`` records a result without judging it, and
``on_trial_add`` lets a trial go on.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

Results = Sequence[tuple[Trial, Mapping[str, Any]]]
"""Trials with the results that a scheduler reads: its metric and its measure of progress, and ``done``."""


def judge_together(scheduler: TrialScheduler, controller: Any, results: Results, known: Iterable[Trial]) -> set[str]:
    """Records results that arrived at once, and returns the ids of the trials that end: done, or to be stopped.

    Args:
        scheduler: Tune's scheduler: FIFO, ASHA or median stopping, which only stop trials.
        controller: Tune's controller, which schedulers are called with.
        results: The results, in the order of the rows.
        known: All trials that the scheduler knows.
    """
    ended = {trial.trial_id for trial, result in results if result["done"]}
    if type(scheduler) is not FIFOScheduler:
        trials = {id(trial): trial for trial in known}
        ended |= _find_stopped(copy.deepcopy(scheduler, dict(trials)), controller, results, trials)
    for trial, result in results:
        _record(scheduler, controller, trial, result)
        if trial.trial_id not in ended:
            scheduler.on_trial_add(controller, trial)
    return ended


def _find_stopped(
    scheduler: TrialScheduler, controller: Any, results: Results, trials: Mapping[int, Trial]
) -> set[str]:
    """Judges each trial by a copy of the scheduler that has recorded all others; halves share copies.

    The given scheduler is a copy, too, and is changed. Trials are not copied, since schedulers know them by identity.
    """
    if len(results) == 1:
        ((trial, result),) = results
        if result["done"]:
            return set()
        stopped = scheduler.on_trial_result(controller, trial, dict(result)) == TrialScheduler.STOP
        return {trial.trial_id} if stopped else set()
    middle, stopped_ids = len(results) // 2, set[str]()
    for judged, others in ((results[:middle], results[middle:]), (results[middle:], results[:middle])):
        copied = copy.deepcopy(scheduler, dict(trials))
        for trial, result in others:
            _record(copied, controller, trial, result)
        stopped_ids |= _find_stopped(copied, controller, judged, trials)
    return stopped_ids


def _record(scheduler: TrialScheduler, controller: Any, trial: Trial, result: Mapping[str, Any]) -> None:
    scheduler.on_trial_complete(controller, trial, dict(result))
