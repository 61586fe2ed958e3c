"""Functional ANOVA against Optuna's, and by hand."""

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from fednar_ray.report.fanova import compute_shares

NAMES = ("fednar", "decoupled", "none")


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_shares_are_those_of_optuna() -> None:
    generator, trials = np.random.default_rng(0), 24
    numbers = {"a": np.exp(generator.uniform(-3, 3, trials)), "b": generator.integers(0, 4, trials) / 4}
    choice = generator.integers(0, 3, trials)
    values = list(numbers["a"] * (choice + 1) + numbers["b"])
    distributions = {name: FloatDistribution(float(x.min()), float(x.max())) for name, x in numbers.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for index, value in enumerate(values):
        params = {name: float(x[index]) for name, x in numbers.items()} | {"choice": NAMES[choice[index]]}
        kinds = {**distributions, "choice": CategoricalDistribution(NAMES)}
        study.add_trial(create_trial(params=params, distributions=kinds, value=value))
    wanted = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    columns = {name: x[:, None] for name, x in numbers.items()} | {"choice": np.eye(3)[choice]}
    found = compute_shares(columns, values, seed=0)
    assert list(found) == list(wanted)
    assert found == pytest.approx(wanted, rel=1e-9)


def test_a_factor_that_changes_nothing_has_no_share() -> None:
    first, second = np.meshgrid([0.0, 1.0], [0.0, 1.0])
    factors = {"none": np.tile(second.reshape(-1, 1), (4, 1)), "all": np.tile(first.reshape(-1, 1), (4, 1))}
    shares = compute_shares(factors, list(3 * factors["all"][:, 0]), seed=0)
    assert list(shares) == ["all", "none"]
    assert shares["all"] == pytest.approx(1.0)
