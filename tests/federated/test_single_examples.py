"""A last batch with one example is refused with a remedy if the model cannot train on it; no client is dropped."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fednar_ray as fr
from fednar_ray.core.errors import ModelError
from tests.conftest import build_small_federation


def build_with_batch_norm() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), nn.Linear(4, 3))


class Spread(nn.Linear):
    """Divides by a standard deviation over the batch, which is NaN for one example."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (1 + super().forward(x).std(dim=0))


class Squeezed(nn.Linear):
    """Removes the batch dimension if the batch has one example."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


def build_experiment(federation: dict[str, Any], **execution: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {"federation": {"rounds": 1, **federation}, "execution": {"placement": "serial", **execution}}
    )


def train(sizes: tuple[int, ...], model: nn.Module, federation: dict[str, Any], **execution: Any) -> fr.RoundReport:
    (report,) = fr.iter_rounds(
        build_experiment(federation, **execution), federation=build_small_federation(sizes), model=model
    )
    return report


EPOCHS = {"local_epochs": 1, "batch_size": 16}
REFUSED = {  # sizes, settings, clients, remedy
    "a last batch": ((17, 32), EPOCHS, r"client 0 \(17 examples\)\.", "batch_size to 15 or 17,"),
    "several": (
        (17, 33, 32, 49), EPOCHS, r"client 0 \(17 examples\), 1 \(33 examples\), 3 \(49 examples\)\.", "to 15 or 17,",
    ),
    "enough steps": ((17, 32), {"local_steps": 2, "batch_size": 16}, r"client 0 \(17", "to 15 or 17,"),
    "batches of one": ((5, 6), {"local_epochs": 1, "batch_size": 1}, r"client 0 \(5 examples\), 1 \(6", "to 3,"),
    "a client of one": ((1, 6), EPOCHS, r"client 0 \(1 examples\)", "No batch size helps.*leave out such clients"),
    "many": ((9,) * 8, {"local_epochs": 1, "batch_size": 4}, r"4 \(9 examples\) and 3 more", "batch_size to 3 or 5,"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_batch_of_one_is_refused_with_module_clients_and_remedy(case: str) -> None:
    sizes, federation, who, remedy = REFUSED[case]
    with pytest.raises(ModelError) as caught:
        train(sizes, build_with_batch_norm(), federation)
    cause = r"module 1\.0 \(BatchNorm1d\) raises ValueError: Expected more than 1 value"
    for part in (cause, who, remedy, "GroupNorm"):
        assert caught.match(part)


@pytest.mark.parametrize(
    ("sizes", "federation"),
    [
        ((17, 32), {"local_epochs": 1, "batch_size": 15}),  # as the error proposes
        ((17, 32), {"local_epochs": 1, "batch_size": 17}),
        ((17, 32), {"local_steps": 1, "batch_size": 16}),  # the last batch is never reached
        ((17, 32), {"local_epochs": 1, "batch_size": 100}),
        ((17, 32), {**EPOCHS, "participation": [[1]]}),  # client 0 is never sampled
    ],
)
def test_if_no_client_reaches_such_a_batch_all_clients_train(
    sizes: tuple[int, ...], federation: dict[str, Any]
) -> None:
    assert train(sizes, build_with_batch_norm(), federation).metrics["clients_failed"] == 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Spread(2, 3), "its outputs for one example are not finite"),
        (Squeezed(2, 3), r"its outputs for one example have the shape \[3\], not \[1, 3\]"),
    ],
)
def test_a_model_with_another_output_shape_for_one_example_is_refused_too(model: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        train((17, 32), model, EPOCHS, vectorize=1)


def test_a_model_that_accepts_one_example_trains_on_the_short_last_batch() -> None:
    images = nn.Sequential(
        nn.Unflatten(1, (1, 2, 1)), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(4, 3)
    )
    for model in (images, nn.Sequential(nn.Linear(2, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3))):
        assert train((17, 32), model, EPOCHS).metrics["clients_failed"] == 0


def test_the_same_model_with_other_settings_is_checked_again() -> None:
    from fednar_ray.experiments.placement import plan_execution
    from fednar_ray.experiments.prepare import adapt, prepare

    federation = build_small_federation((17, 32))
    prepared = prepare(build_experiment({"local_epochs": 1, "batch_size": 15}), federation, build_with_batch_norm())
    with fr.RaySession() as session:
        assert plan_execution(prepared, session).group_size == 1
        with pytest.raises(ModelError, match="one example"):
            plan_execution(adapt(prepared, build_experiment(EPOCHS)), session)


def test_the_trial_does_not_change_the_model() -> None:
    model = build_with_batch_norm()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError):
        train((17, 32), model, EPOCHS)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
