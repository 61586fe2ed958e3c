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
CLIENTS = {"data.partition.clients": 20, "federation.clients_per_round": 10}


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
        ({}, {"state_bytes": 4e7}, 1, 2, None),
        ({"seeds": 2}, {"state_bytes": 4e7}, 1, 1, "more trials at a time would take more than a tenth of the memory"),
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


@pytest.mark.parametrize(
    ("matrix", "gpu_bytes", "width", "reason"),
    [
        ({}, 16e9, 16, None),  # of 32 trials, each of 2 processes has no more; 640 clients would fill a matrix
        ({"clients": 40}, 16e9, 16, None),
        ({"clients": 320}, 16e9, 2, None),
        ({"clients": 640}, 16e9, 1, "the 640 clients of one trial fill a matrix"),
        ({"client_bytes": 1e8}, 16e9, 13, None),  # (0.9 · 16 − 0.7) GB hold 13 times 1 GB
        ({"client_bytes": 1e8, "gpus": 0.5}, 16e9, 6, None),  # (0.45 · 16 − 0.7) GB
        ({"client_bytes": 1e8, "gpus": 2.0}, 16e9, 13, None),  # it trains on one of them
        ({"client_bytes": 1e9}, 16e9, 1, "more trials at a time do not fit in the memory of a GPU"),
        ({"client_bytes": 1e8}, 0.5e9, 1, "more trials at a time do not fit in the memory of a GPU"),
        ({"state_bytes": 2e9}, 16e9, 5, None),  # a twentieth of 200 GiB holds the states of the clients
        ({}, None, 1, "the memory of the GPUs is unknown"),
        ({"compiled": True}, 16e9, 1, "execution.compile is on"),
    ],
)
def test_packs_on_gpus_are_limited_by_their_memory(
    matrix: dict[str, Any], gpu_bytes: float | None, width: int, reason: str | None
) -> None:
    section = build_trial_search().search
    assert section is not None
    packing = decide_packing(section, replace(MATRIX, **{"gpus": 1.0, **matrix}), 2, 200 * GIB, gpu_bytes)
    assert (packing.width, packing.reason) == (width, reason)


def test_a_number_of_trials_is_taken_as_given_if_the_memory_of_the_gpus_is_unknown() -> None:
    section = build_trial_search(pack=4).search
    assert section is not None
    assert decide_packing(section, replace(MATRIX, gpus=1.0), 2, GIB, None).width == 4


def test_trials_with_actors_are_not_packed() -> None:
    section = build_trial_search(pack=4).search
    assert section is not None
    assert decide_packing(section, None, 2, GIB).reason == "each trial has actors of its own"


def test_a_trial_in_its_own_process_is_measured() -> None:
    experiment = build_trial_search().build_variant(CLIENTS)
    matrix = plan_resources(experiment, fr.RaySession()).matrix
    assert matrix is not None
    assert (matrix.clients, matrix.group_size, matrix.gpus, matrix.state_bytes) == (10, 10, 0, 0)
    parameters = 64 * 4 + 4 + 4 * 10 + 10
    assert 8 * 4 * parameters < matrix.client_bytes < 100 * 4 * parameters  # activations of a batch are larger
    states = {**CLIENTS, "algorithm.name": "scaffold"}
    assert measure(**states) == 20 * 4 * parameters
    assert measure(**states, **{"execution.state_memory_bytes": 1000}) == 1000


def measure(**settings: Any) -> float:
    """Returns the memory of the clients' states."""
    matrix = plan_resources(build_trial_search().build_variant(settings), fr.RaySession()).matrix
    assert matrix is not None
    return matrix.state_bytes
