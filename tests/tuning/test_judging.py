"""Trials whose reports arrive at once are judged as if each report had arrived last."""

import numpy as np
import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from fednar_ray.tuning.judging import judge_together
from fednar_ray.tuning.strategy import build_scheduler
from tests.support.searches import IGNORED_WARNINGS
from tests.support.trials import build_trial_search

pytestmark = IGNORED_WARNINGS

ROUNDS, METRIC = 8, "validation_accuracy"
Report = list[tuple[Trial, dict[str, object]]]


def build(name: str) -> TrialScheduler:
    settings = {"asha": {"reduction": 2, "grace_rounds": 1}, "median": {"grace_rounds": 2}}[name]
    search = build_trial_search(scheduler={"name": name, **settings}).search
    assert search is not None
    return build_scheduler(search, ROUNDS)


def draw_reports(seed: int, rounds: int) -> list[tuple[Trial, list[float]]]:
    """Returns trials with a value for each round."""
    rng = np.random.default_rng(seed)
    return [(Trial("t", trial_id=f"{seed}-{i}", stub=True), list(rng.normal(size=rounds))) for i in range(7)]


def report(trials: list[tuple[Trial, list[float]]], round_index: int, running: set[str]) -> Report:
    rounds = round_index + 1
    return [
        (trial, {METRIC: values[round_index], "rounds": rounds, "done": rounds == ROUNDS})
        for trial, values in trials
        if trial.trial_id in running
    ]


def judge_by_asha(history: list[Report], now: Report, judged: int) -> bool:
    """Feeds a new scheduler all reports one by one, those of now with the judged one last; returns whether it stops."""
    scheduler = build("asha")
    order = [*range(judged), *range(judged + 1, len(now)), judged]
    for trial, result in [pair for each in [*history, [now[i] for i in order]] for pair in each]:
        scheduler.on_trial_add(None, trial)
        decision = scheduler.on_trial_result(None, trial, dict(result))
    return bool(decision == TrialScheduler.STOP)


def judge_by_median(history: list[Report], now: Report, judged: int) -> bool:
    """Applies Golovin et al.'s rule: stop if the best value is below the median of the others' running means."""
    trial, result = now[judged]
    curves: dict[str, list[tuple[int, float]]] = {}
    for each, values in [pair for report in [*history, now] for pair in report]:
        curves.setdefault(each.trial_id, []).append((values["rounds"], values[METRIC]))  # type: ignore[arg-type]
    time = int(result["rounds"])  # type: ignore[call-overload]
    if time < 2:
        return False
    means = [
        np.mean([value for at, value in curve if 2 <= at <= time])
        for other, curve in curves.items()
        if other != trial.trial_id and curve[-1][0] >= time
    ]
    best = max(value for _, value in curves[trial.trial_id])
    return len(means) >= 3 and bool(best < np.median(means))


class Controller:
    """What median stopping asks Tune's controller: whether other trials wait for resources."""

    def get_live_trials(self) -> list[Trial]:
        return []


@pytest.mark.parametrize("name", ["asha", "median"])
def test_each_trial_is_judged_after_all_others_of_its_pack_are_recorded(name: str) -> None:
    """Two packs, of which the second one is two rounds behind the first."""
    oracle = {"asha": judge_by_asha, "median": judge_by_median}[name]
    scheduler, history, known = build(name), list[Report](), list[Trial]()
    packs = [draw_reports(seed, ROUNDS) for seed in (0, 1)]
    running = {trial.trial_id for pack in packs for trial, _ in pack}
    for pack in packs:
        for trial, _ in pack:
            scheduler.on_trial_add(None, trial)
            known.append(trial)
    stopped = 0
    for index in range(ROUNDS + 2):
        for pack, round_index in ((packs[0], index), (packs[1], index - 2)):
            if not 0 <= round_index < ROUNDS:
                continue
            now = report(pack, round_index, running)
            ended = judge_together(scheduler, Controller(), now, known)
            done = {trial.trial_id for trial, result in now if result["done"]}
            expected = {trial.trial_id for i, (trial, _) in enumerate(now) if oracle(history, now, i)}
            assert ended == expected | done, (name, round_index)
            stopped += len(ended - done)
            history.append(now)
            running -= ended
    assert stopped >= 4
