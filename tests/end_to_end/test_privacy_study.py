"""The study of accuracy against ε: its series are valid, its table holds the intervals, and its noise is that of ε."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

import fednar_ray as fr
from fednar_ray.core.schedules import RoundScalars
from fednar_ray.experiments.prepare import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "private")
    monkeypatch.chdir(tmp_path)
    import study  # type: ignore[import-not-found]

    return study  # type: ignore[no-any-return]


def build_rows(accuracy: Callable[[float, int], float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"bound": bound, "regularizer": regularizer, "gamma_A": 1.0, "gamma_eta": eta, "epsilon": epsilon,
             "seed": seed, "accuracy": accuracy(epsilon, seed)}
            for bound, regularizer in (("fixed", "fednar"), ("fixed", "decoupled"))
            for eta in (1.0, 0.99) for epsilon in (1.0, np.inf) for seed in range(3)
        ]
    )  # fmt: skip


def build_start(experiment: fr.Experiment) -> RoundScalars:
    algorithm, regularizer = experiment.algorithm, experiment.regularizer
    assert regularizer.clip_bound is not None
    return RoundScalars(
        local_lr=algorithm.local_lr,
        weight_decay=regularizer.weight_decay,
        clip_bound=regularizer.clip_bound,
        epsilon=0.0,
    )


def test_all_series_begin_with_the_same_bound_and_spend_the_same(study: ModuleType) -> None:
    settings = ["data.partition.clients=40", "federation.clients_per_round=4", "federation.rounds=2"]
    noise, bounds = set(), set()
    for bound, regularizer in study.SERIES:
        experiment = study.build_experiment(bound, regularizer, noised=True, overrides=settings)
        privacy, start = prepare(experiment).privacy, build_start(experiment)
        assert privacy is not None
        noise.add(privacy.noise_multiplier)
        bounds.add(round(privacy.compute_bound(start, privacy.initial_bound), 9))
        exact = prepare(study.build_experiment(bound, regularizer, noised=False, overrides=settings)).privacy
        assert exact is not None
        assert exact.noise_multiplier < 1e-6
    assert len(noise) == 1
    assert bounds == {study.LONGEST}


def test_the_table_has_the_mean_and_the_interval_of_students_t(study: ModuleType) -> None:
    rows = build_rows(lambda epsilon, seed: (0.5 if epsilon == 1 else 0.8) + 0.01 * (seed - 1))
    table = study.build_table(study.summarize(rows))
    # 4.303 · 0.01 / √3 = 0.0248
    assert table.count("| 0.500 ± 0.025 | 0.800 ± 0.025 |") == 4
    assert table.splitlines()[0] == "| bound | regularizer | γ_A | γ_η | ε = 1 | no noise |"


def test_differences_are_paired_by_seed(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = {"regularizer": (("fixed", "fednar", 1.0), ("fixed", "decoupled", 1.0))}
    monkeypatch.setattr(study, "DIFFERENCES", pairs)
    rows = build_rows(lambda epsilon, seed: 0.1 * seed)  # far apart between seeds, and alike within
    better = (rows["regularizer"] == "fednar") & (rows["gamma_eta"] == 1)
    rows.loc[better, "accuracy"] += 0.02 + 0.001 * (rows.loc[better, "seed"] - 1)
    # 4.303 · 0.001 / √3 = 0.0025
    assert study.build_differences(rows.sample(frac=1, random_state=0)).count("+0.020 ± 0.002") == 2


def test_the_figure_is_drawn(study: ModuleType, tmp_path: Path) -> None:
    study.draw(study.summarize(build_rows(lambda epsilon, seed: 0.5 + 0.01 * seed)), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
