"""The resources that a trial reserves, and searches that can never fit."""

from pathlib import Path

import pytest

import fednar_ray as fr
from fednar_ray.core.errors import CapacityError
from fednar_ray.tuning.search import start_search
from tests.support.searches import GRID, IGNORED_WARNINGS, RATE, build_search, list_outcomes, show_nothing, train_alone

pytestmark = IGNORED_WARNINGS


def test_a_search_that_can_never_fit_is_refused_before_it_starts(
    uri: str, session: fr.RaySession, tmp_path: Path
) -> None:
    for execution, text in (
        (
            {"placement": "serial", "cpus_per_actor": 64},
            "a trial needs 64 CPUs at once, which does not fit: the cluster has",
        ),
        ({"placement": "pooled", "actors": 9, "gpus_per_actor": 0}, "9 actors of 1 CPU"),
    ):
        with pytest.raises(CapacityError, match=text):
            start_search(build_search(f"sqlite:///{tmp_path}/new.db", GRID, execution=execution), session, show_nothing)
    assert not Path("searches").exists()
    assert not (tmp_path / "new.db").exists()


@pytest.mark.usefixtures("searches")
def test_a_trial_reserves_its_actors(uri: str, session: fr.RaySession) -> None:
    search = {"algorithm": "grid", "space": {RATE: {"grid": [0.05, 0.1]}}}
    actors = {"placement": "pooled", "actors": 2, "gpus_per_actor": 0, "vectorize": 2}
    pooled = start_search(build_search(uri, search, execution=actors), session, show_nothing)
    serial = build_search(uri, search, execution={**actors, "placement": "serial"})
    assert list_outcomes(pooled) == train_alone(serial, [{RATE: 0.05}, {RATE: 0.1}])
