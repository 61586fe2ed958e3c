"""Which searches are packed, how many trials share a process, and why not."""

from dataclasses import replace
from typing import Any

import pytest

import fednar_ray as fr
from fednar_ray.tuning.packing import decide_packing
from fednar_ray.tuning.resources import TrialMatrix, plan_resources
from tests.support.searches import IGNORED_WARNINGS
from tests.support.trials import build_trial_search

pytestmark = IGNORED_WARNINGS

MATRIX = TrialMatrix(clients=10, group_size=10, client_bytes=1e5)
GIB = 2.0**30


@pytest.mark.parametrize(
    ("search", "matrix", "slots", "width", "reason"),
    [
        ({}, {}, 2, 8, None),  # 80 clients fill a matrix
        ({}, {"clients": 7}, 2, 12, None),
        ({}, {"clients": 5}, 2, 16, None),  # of 32 trials, each of 2 processes has no more
        ({"seeds": 4}, {}, 2, 8, None),  # seeds have other shards, and so matrices of their own
        ({}, {"compiled": True}, 2, 1, "execution.compile is on"),
        ({"trials": 5}, {}, 2, 3, None),
        ({"concurrent": 6}, {}, 2, 3, None),
        ({"concurrent": 1}, {}, 2, 1, "1 trial at a time can have a process each"),
        ({"trials": 2}, {}, 2, 1, "2 trials at a time can have a process each"),
        ({}, {"clients": 80}, 2, 1, "the 80 clients of one trial fill a matrix"),
        ({}, {"client_bytes": 5e6}, 1, 2, None),  # a tenth of a GiB holds two times ten clients
        ({}, {"client_bytes": 1e7}, 1, 1, "more trials at a time would take more than a tenth of the memory"),
        ({}, {"group_size": 1}, 2, 1, "the clients of a trial train one by one"),
        (
            {}, {"group_size": 1, "alone_because": "it has an LSTM"}, 2, 1,
            "the clients of a trial train one by one (it has an LSTM)",
        ),
        ({"pack": 5}, {"group_size": 1}, 2, 5, None),  # as given
        ({"pack": 100}, {"client_bytes": 1e9}, 2, 100, None),
        ({"pack": 1}, {}, 2, 1, "search.pack is 1"),
        ({"pack": False}, {}, 2, 1, "search.pack is off"),
        ({"pack": True}, {}, 2, 8, None),
        ({"scheduler": {"name": "median", "grace_rounds": 1}}, {}, 2, 8, None),
        ({"scheduler": "hyperband", "pack": 4}, {}, 2, 1, "hyperband pauses, copies and restores single trials"),
        (
            {"scheduler": {"name": "pbt", "perturb_rounds": 1}}, {}, 2, 1,
            "pbt pauses, copies and restores single trials",
        ),
    ],
)  # fmt: skip
def test_the_smallest_limit_decides(
    search: dict[str, Any], matrix: dict[str, Any], slots: int, width: int, reason: str | None
) -> None:
    section = build_trial_search(**search).search
    assert section is not None
    packing = decide_packing(section, replace(MATRIX, **matrix), slots, GIB)
    assert (packing.width, packing.reason) == (width, reason)


def test_trials_with_actors_are_not_packed() -> None:
    section = build_trial_search(pack=4).search
    assert section is not None
    assert decide_packing(section, None, 2, GIB).reason == "each trial has actors of its own"


def test_a_trial_in_its_own_process_is_measured() -> None:
    document = build_trial_search()
    experiment = document.build_variant({"data.partition.clients": 20, "federation.clients_per_round": 10})
    matrix = plan_resources(experiment, fr.RaySession()).matrix
    assert matrix is not None
    assert (matrix.clients, matrix.group_size) == (10, 10)
    parameters = 64 * 4 + 4 + 4 * 10 + 10
    assert 8 * 4 * parameters < matrix.client_bytes < 100 * 4 * parameters  # activations of a batch are larger
