"""A search section to Tune's search algorithms and schedulers."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher

from fednar_ray.config import Domain, SearchSettings
from fednar_ray.config.scheduler import AshaSettings, HyperbandSettings, MedianSettings, PbtSettings
from fednar_ray.tuning.trial import ROUNDS

log = logging.getLogger("fednar_ray")

PERTURBATIONS = (1.2, 0.8)
STARTUP_TRIALS = 10  # that TPE draws at random before it models anything


def space_of(search: SearchSettings) -> dict[str, Any]:
    """Tune's parameter space."""
    if search.algorithm == "grid":
        return {key: tune.grid_search(list(domain.values)) for key, domain in search.space.items()}
    return {key: _tune_domain(domain) for key, domain in search.space.items()}


def _tune_domain(domain: Domain) -> Any:
    if domain.kind == "choice":
        return tune.choice(list(domain.values))
    ranges = {
        "uniform": tune.uniform,
        "loguniform": tune.loguniform,
        "quniform": tune.quniform,
        "randint": tune.randint,
    }
    return ranges[domain.kind](*domain.values)


def trials_of(search: SearchSettings) -> int:
    """How many trials the search has."""
    return search.trials * (len(grid_of(search)) if search.algorithm == "grid" else 1)


def grid_of(search: SearchSettings) -> list[dict[str, Any]]:
    """The points of a grid, in order."""
    return [
        dict(zip(search.space, values, strict=True)) for values in product(*(d.values for d in search.space.values()))
    ]


def algorithm_of(
    search: SearchSettings, points: Sequence[Mapping[str, Any]], at_once: int
) -> SearchAlgorithm | Searcher:
    """What proposes the trials; ``points`` come first."""
    first = [dict(point) for point in points]
    if search.algorithm != "optuna":
        return BasicVariantGenerator(
            points_to_evaluate=first or None, max_concurrent=at_once, random_state=np.random.RandomState(search.seed)
        )
    from optuna import logging
    from optuna.samplers import TPESampler
    from ray.tune.search.optuna import OptunaSearch

    logging.set_verbosity(logging.WARNING)  # else it tells that it made a study
    sampler = TPESampler(seed=search.seed, n_startup_trials=STARTUP_TRIALS)
    return OptunaSearch(metric=search.metric, mode=search.mode, sampler=sampler, points_to_evaluate=first or None)


def scheduler_of(search: SearchSettings, rounds: int) -> TrialScheduler:
    """Who decides on early ends."""
    settings = search.scheduler
    guided = {"time_attr": ROUNDS, "metric": search.metric, "mode": search.mode}
    match settings:
        case AshaSettings():
            grace, reduction = settings.grace_rounds, settings.reduction
            return AsyncHyperBandScheduler(**guided, max_t=rounds, grace_period=grace, reduction_factor=reduction)
        case HyperbandSettings():
            return HyperBandScheduler(**guided, max_t=rounds, reduction_factor=settings.reduction)
        case MedianSettings():
            return MedianStoppingRule(**guided, grace_period=settings.grace_rounds)
        case PbtSettings():
            return PopulationBasedTraining(
                **guided,
                perturbation_interval=settings.perturb_rounds,
                hyperparam_mutations=_mutations(search),
                quantile_fraction=settings.quantile,
                resample_probability=settings.resample,
                perturbation_factors=PERTURBATIONS,
                custom_explore_fn=lambda values: _within(search, values),
                synch=True,  # else who exchanges with whom would be a matter of timing
            )
        case _:
            return FIFOScheduler()


def save_scheduler(scheduler: TrialScheduler, path: Path) -> None:
    """Write a scheduler's state in one step: a process that is killed here leaves the previous one whole."""
    new = path.with_name(f"{path.name}.new")
    scheduler.save(str(new))
    os.replace(new, path)


def restore_scheduler(scheduler: TrialScheduler, path: Path) -> None:
    """Take up the state that was saved, if there is one that can be read."""
    if not path.exists():
        return
    try:
        scheduler.restore(str(path))
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises any kind
        log.warning("%s cannot be read, so early stopping compares trials anew from here on: %s", path, error)


def rename_in_rungs(scheduler: TrialScheduler, before: str, now: str) -> None:
    """A trial that Tune proposes again under another id keeps its places on ASHA's rungs, and gets no second ones."""
    if isinstance(scheduler, AsyncHyperBandScheduler):
        for bracket in scheduler._brackets:
            for _, values in bracket._rungs:
                if before in values:
                    values[now] = values.pop(before)


def _mutations(search: SearchSettings) -> dict[str, Any]:
    """Lists move to a neighbor, ranges are perturbed."""
    return {
        key: list(domain.values) if domain.kind == "choice" else _tune_domain(domain)
        for key, domain in search.space.items()
    }


def _within(search: SearchSettings, values: dict[str, Any]) -> dict[str, Any]:
    """Perturbed values back in their ranges."""
    for key, domain in search.space.items():
        if domain.kind != "choice":
            low, high = domain.extremes
            values[key] = min(max(values[key], low), high)
    return values


def better(mode: str, value: float, than: float | None) -> bool:
    """Is ``value`` the better one? NaN never is."""
    if math.isnan(value):
        return False
    return than is None or (value > than if mode == "max" else value < than)
