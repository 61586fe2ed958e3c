"""The search files of the project: each is valid, and the large ones train one round at reduced size."""

from pathlib import Path

import numpy as np
import pytest

import fednar_ray as fr
from fednar_ray.config import load_document, load_embedded
from fednar_ray.config.algorithm import PRESET_SETTINGS
from fednar_ray.tuning.strategy import count_trials

FOLDER = Path(__file__).parents[2] / "tune_configs"
SEARCHES = {
    "cifar10_resnet18": 32,
    "clip_and_anneal": 40,
    "compare_backbones": 2 * len(PRESET_SETTINGS),
    "digits": 32,
    "digits_pbt": 8,
    "sensitivity": 2 * 6 * 6 * 3,
    "shakespeare": 32,
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_file_is_valid_for_its_experiment(name: str) -> None:
    search = load_document(FOLDER / f"{name}.yaml", to_search=True).search
    assert search is not None
    assert count_trials(search) == SEARCHES[name]


def test_the_default_search_is_the_digits_file() -> None:
    there, inside = load_document(FOLDER / "digits.yaml", to_search=True), load_embedded("digits", to_search=True)
    assert (there.experiment, there.search) == (inside.experiment, inside.search)


SMALL = ("federation.rounds=1", "federation.clients_per_round=2", "federation.local_steps=1", "federation.batch_size=2",
         "execution.placement=serial", "execution.vectorize=1")  # fmt: skip


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize("name", ["cifar10_resnet18", "shakespeare"])
def test_a_large_file_trains_one_round_at_reduced_size(name: str) -> None:
    experiment = fr.load(FOLDER / f"{name}.yaml", overrides=SMALL).model_copy(update={"data": None})
    random = np.random.default_rng(0)

    def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
        if name == "shakespeare":
            return random.integers(80, size=(count, 80), dtype=np.uint8), random.integers(80, size=count)
        return random.normal(size=(count, 3, 32, 32)).astype(np.float32), random.integers(10, size=count)

    test_x, test_y = examples(2)
    test_y[0] = 79 if name == "shakespeare" else 9  # the highest label
    federation = fr.Federation([examples(3), examples(2)], test=(test_x, test_y))
    (report,) = fr.iter_rounds(experiment, federation=federation)
    assert len(report.parameters) == {"cifar10_resnet18": 11_173_962, "shakespeare": 1_220_432}[name]
    assert report.metrics["clients_trained"] == 2
    assert np.isfinite(report.parameters).all()
