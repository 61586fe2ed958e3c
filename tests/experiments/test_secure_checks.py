"""What only the data, the model or a user's algorithm show to contradict secure aggregation is refused before Ray."""

from typing import Any

import pytest
import torch

import fednar_ray as fr
from fednar_ray.algorithms.client_corrections import control_variate
from fednar_ray.algorithms.presets import Algorithm
from fednar_ray.algorithms.server_optimizers import mean
from fednar_ray.core.errors import ConfigError
from fednar_ray.tuning.resources import plan_resources
from tests.conftest import build_small_federation


def build_with_states() -> Algorithm:
    """An algorithm of a user's own whose clients keep states."""
    return Algorithm(control_variate(), mean(1.0))


def build(secure: dict[str, Any] | None = None, **changes: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "federation": {"rounds": 1, "local_steps": 3, "batch_size": 4},
            "execution": {"placement": "dedicated"},
            "secure_aggregation": secure or {},
            **changes,
        }
    )


def refuse(experiment: fr.Experiment, sizes: tuple[int, ...] = (7, 30, 12), *layers: torch.nn.Module) -> str:
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), *layers, torch.nn.Linear(4, 3))
    with pytest.raises(ConfigError) as caught:  # no session is given, and none is started
        next(fr.iter_rounds(experiment, federation=build_small_federation(sizes), model=model))
    return str(caught.value)


def test_too_few_clients_are_refused() -> None:
    assert "secure_aggregation: 2 clients per round are too few; at least 3" in refuse(build(), (7, 30))


def test_sums_that_do_not_fit_are_refused() -> None:
    assert refuse(build({"bits": 30}), (5,) * 5).startswith("secure_aggregation.bits: 30 is too large for 5 clients")
    text = refuse(build({"max_examples": 2**31 - 1}))
    assert text == "secure_aggregation.max_examples: 2147483647 of 3 clients do not fit into 32 bits"


def test_a_client_with_more_examples_than_the_maximum_is_refused() -> None:
    text = "secure_aggregation.max_examples: 29 is less than the 30 examples of client 1"
    assert refuse(build({"max_examples": 29})) == text


def test_running_statistics_are_refused() -> None:
    text = refuse(build(), (7, 30, 12), torch.nn.BatchNorm1d(4))
    assert text.startswith("model: 1.running_mean, 1.running_var, 1.num_batches_tracked are running statistics")


def test_an_algorithm_of_ones_own_with_states_is_refused() -> None:
    own = {"function": f"{__name__}.build_with_states"}
    assert refuse(build(algorithm=own)).startswith("algorithm.function: its clients' states would reach the driver")


def test_everything_is_said_at_once() -> None:
    own = {"function": f"{__name__}.build_with_states"}
    text = refuse(build({"max_examples": 5}, algorithm=own), (7, 30), torch.nn.BatchNorm1d(4))
    assert [line.partition(":")[0] for line in text.splitlines()] == [
        "secure_aggregation", "secure_aggregation.max_examples", "algorithm.function", "model",
    ]  # fmt: skip


def test_a_search_is_refused() -> None:
    with pytest.raises(ConfigError, match="secure_aggregation: a search shows the driver many sums"):
        plan_resources(build(execution={"placement": "serial"}), fr.RaySession())
