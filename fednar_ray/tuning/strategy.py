"""Builds Tune's search space, search algorithm and scheduler from a search section."""

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
from fednar_ray.tuning.trial_report import ROUNDS_KEY

log = logging.getLogger("fednar_ray")

PERTURBATIONS = (1.2, 0.8)
STARTUP_TRIALS = 10  # that TPE draws at random before it fits a model


def build_space(search: SearchSettings) -> dict[str, Any]:
    """Builds Tune's parameter space from ``search.space``."""
    if search.algorithm == "grid":
        return {key: tune.grid_search(list(domain.values)) for key, domain in search.space.items()}
    return {key: _build_domain(domain) for key, domain in search.space.items()}


def _build_domain(domain: Domain) -> Any:
    if domain.kind == "choice":
        return tune.choice(list(domain.values))
    ranges = {
        "uniform": tune.uniform,
        "loguniform": tune.loguniform,
        "quniform": tune.quniform,
        "randint": tune.randint,
    }
    return ranges[domain.kind](*domain.values)


def count_trials(search: SearchSettings) -> int:
    """Returns the number of trials of the search."""
    return search.trials * (len(list_grid_points(search)) if search.algorithm == "grid" else 1)


def list_grid_points(search: SearchSettings) -> list[dict[str, Any]]:
    """Lists the points of a grid in the order in which they are tried."""
    return [
        dict(zip(search.space, values, strict=True)) for values in product(*(d.values for d in search.space.values()))
    ]


def build_search_algorithm(
    search: SearchSettings, points: Sequence[Mapping[str, Any]], concurrent: int, *, packed: bool = False
) -> SearchAlgorithm | Searcher:
    """Builds the algorithm that proposes trials.

    Args:
        search: The search section.
        points: Values to try before all others.
        concurrent: Maximum number of trials that are trained at a time; 0: it is limited elsewhere.
        packed: Whether many trials start at a time. Optuna then proposes each away from those that are running
            (constant liar).
    """
    first = [dict(point) for point in points]
    if search.algorithm != "optuna":
        return BasicVariantGenerator(
            points_to_evaluate=first or None,
            max_concurrent=concurrent,
            random_state=np.random.RandomState(search.seed),
        )
    from optuna import logging
    from optuna.samplers import TPESampler
    from ray.tune.search.optuna import OptunaSearch

    logging.set_verbosity(logging.WARNING)  # otherwise Optuna prints that it created a study
    sampler = TPESampler(seed=search.seed, n_startup_trials=STARTUP_TRIALS, constant_liar=packed)
    return OptunaSearch(metric=search.metric, mode=search.mode, sampler=sampler, points_to_evaluate=first or None)


def build_scheduler(search: SearchSettings, rounds: int) -> TrialScheduler:
    """Builds the scheduler that stops trials early, for trials of ``rounds`` rounds."""
    settings = search.scheduler
    guided = {"time_attr": ROUNDS_KEY, "metric": search.metric, "mode": search.mode}
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
                hyperparam_mutations=_build_mutations(search),
                quantile_fraction=settings.quantile,
                resample_probability=settings.resample,
                perturbation_factors=PERTURBATIONS,
                custom_explore_fn=lambda values: _clip_to_ranges(search, values),
                synch=True,  # otherwise timing would decide which trials copy which
            )
        case _:
            return FIFOScheduler()


def save_scheduler(scheduler: TrialScheduler, path: Path) -> None:
    """Writes a scheduler's state atomically, so that a killed process leaves the previous state intact."""
    new = path.with_name(f"{path.name}.new")
    scheduler.save(str(new))
    os.replace(new, path)


def restore_scheduler(scheduler: TrialScheduler, path: Path) -> None:
    """Restores a scheduler's saved state, if there is one that can be read."""
    if not path.exists():
        return
    try:
        scheduler.restore(str(path))
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises any kind
        log.warning("%s cannot be read, so early stopping compares only trials from now on: %s", path, error)


def rename_in_rungs(scheduler: TrialScheduler, old_id: str, new_id: str) -> None:
    """Moves a trial that Tune proposes again under another id to that id on ASHA's rungs, so that it counts once."""
    if isinstance(scheduler, AsyncHyperBandScheduler):
        for bracket in scheduler._brackets:
            for _, values in bracket._rungs:
                if old_id in values:
                    values[new_id] = values.pop(old_id)


def _build_mutations(search: SearchSettings) -> dict[str, Any]:
    """Builds what population-based training perturbs: lists move to a neighboring value, ranges are scaled."""
    return {
        key: list(domain.values) if domain.kind == "choice" else _build_domain(domain)
        for key, domain in search.space.items()
    }


def _clip_to_ranges(search: SearchSettings, values: dict[str, Any]) -> dict[str, Any]:
    """Moves perturbed values back into their ranges."""
    for key, domain in search.space.items():
        if domain.kind != "choice":
            low, high = domain.extremes
            values[key] = min(max(values[key], low), high)
    return values


def is_better(mode: str, value: float, other: float | None) -> bool:
    """Returns whether ``value`` is better than ``other``. NaN is never better; any number is better than None."""
    if math.isnan(value):
        return False
    return other is None or (value > other if mode == "max" else value < other)
