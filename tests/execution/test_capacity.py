"""The number of actors that fit: pure functions, with cases derived by hand."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import fednar_ray as fr
from fednar_ray.config import ExecutionSettings
from fednar_ray.core.errors import CapacityError
from fednar_ray.execution.capacity import (
    ActorPlan,
    ClusterResources,
    Footprint,
    choose_placement,
    count_fitting_actors,
    plan_dedicated,
    plan_pooled,
)

MB = 10**6  # an actor needs 500 MB, and six times the size of its model
SMALL = Footprint(model_bytes=0)


def build_cluster(cpus: float = 64, gpus: float = 0, memory_mb: float = 64_000) -> ClusterResources:
    return ClusterResources(cpus=cpus, gpus=gpus, memory_bytes=memory_mb * MB)


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "model_mb", "count"),
    [
        (build_cluster(2), 1, 0, 0, 2),
        (build_cluster(2), 0.5, 0, 0, 4),
        (build_cluster(2), 0.75, 0, 0, 2),
        (build_cluster(0.3), 0.1, 0, 0, 3),  # 0.3 / 0.1 is 2.9999999999999996
        (build_cluster(64, 2), 1, 1, 0, 2),
        (build_cluster(64, 2), 1, 0.5, 0, 4),
        (build_cluster(64, 2), 1, 1 / 3, 0, 6),
        (build_cluster(64, 2), 1, 0.4, 0, 4),  # two per GPU: a fifth of each stays free
        (build_cluster(64, 3), 1, 0.6, 0, 3),  # an actor cannot use shares of two GPUs
        (build_cluster(64, 5), 1, 2, 0, 2),
        (build_cluster(3, 8), 1, 1, 0, 3),
        (build_cluster(64, 0), 1, 1, 0, 0),
        (build_cluster(64, 0, 1_499), 1, 0, 0, 2),
        (build_cluster(64, 0, 1_500), 1, 0, 0, 3),
        (build_cluster(64, 0, 2_199), 1, 0, 100, 1),  # 500 + 6·100 MB
        (build_cluster(64, 0, 2_200), 1, 0, 100, 2),
        (build_cluster(64, 0, 499), 1, 0, 0, 0),
    ],
)
def test_fitting_actors_match_numbers_by_hand(
    resources: ClusterResources, cpus: float, gpus: float, model_mb: int, count: int
) -> None:
    assert count_fitting_actors(resources, cpus, gpus, Footprint(model_bytes=model_mb * MB)) == count


@pytest.mark.parametrize(
    ("settings", "resources", "groups", "plan"),
    [
        ({}, build_cluster(2), 10, (2, 1, 0)),
        ({}, build_cluster(2), 1, (1, 1, 0)),  # no more than the client groups of a round
        ({"cpus_per_actor": 0.5}, build_cluster(2), 10, (4, 0.5, 0)),
        ({"cpus_per_actor": 2}, build_cluster(5), 10, (2, 2, 0)),
        *(({}, build_cluster(64, gpus), 100, (gpus, 1, 1)) for gpus in range(1, 9)),
        ({}, build_cluster(64, 8), 3, (3, 1, 1)),
        ({}, build_cluster(2, 4), 10, (2, 1, 1)),  # the CPUs are the limit
        ({"gpus_per_actor": 0.25}, build_cluster(64, 2), 10, (8, 1, 0.25)),
        ({"gpus_per_actor": 0}, build_cluster(4, 2), 10, (4, 1, 0)),
        ({}, build_cluster(64, 0, 1_200), 10, (2, 1, 0)),
    ],
)
def test_pooled_auto_uses_all_actors_that_fit(
    settings: dict[str, float], resources: ClusterResources, groups: int, plan: tuple[int, float, float]
) -> None:
    count, cpus, gpus = plan
    expected = ActorPlan(count=count, cpus=cpus, gpus=gpus)
    assert plan_pooled(ExecutionSettings(**settings), groups, resources, SMALL) == expected


@pytest.mark.parametrize(
    ("actors", "gpus", "share"),
    [
        (1, 1, 1), (2, 1, 1 / 2), (3, 1, 1 / 3),
        (1, 2, 1), (2, 2, 1), (3, 2, 1 / 2), (4, 2, 1 / 2), (5, 2, 1 / 3), (7, 2, 1 / 4),
        (7, 3, 1 / 3), (9, 4, 1 / 3), (5, 5, 1), (6, 5, 1 / 2), (14, 7, 1 / 2), (8, 8, 1), (9, 8, 1 / 2),
        (4, 0, 0),
    ],
)  # fmt: skip
def test_shares_of_gpus_pack(actors: int, gpus: int, share: float) -> None:
    """No actor needs fractions of two GPUs."""
    expected = ActorPlan(count=actors, cpus=1, gpus=share)
    assert plan_pooled(ExecutionSettings(actors=actors), 1, build_cluster(64, gpus), SMALL) == expected
    assert plan_dedicated(ExecutionSettings(), actors, build_cluster(64, gpus), SMALL) == expected


@pytest.mark.parametrize("actors_per_gpu", [1, 2, 3, 7])
def test_ray_can_pack_the_planned_shares(local_ray: str, actors_per_gpu: int) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    plan = plan_pooled(
        ExecutionSettings(actors=2 * actors_per_gpu, cpus_per_actor=0.01), 1, build_cluster(64, 2), SMALL
    )
    group = placement_group([{"GPU": plan.gpus}] * plan.count)
    try:
        assert group.wait(timeout_seconds=30)
    finally:
        remove_placement_group(group)


@pytest.mark.parametrize(
    ("settings", "width", "clients", "resources", "placement"),
    [
        ({}, 1, 4, build_cluster(4), "dedicated"),
        ({}, 1, 5, build_cluster(4), "pooled"),
        ({}, 2, 4, build_cluster(4), "pooled"),
        ({}, 1, 4, build_cluster(4, 0, 1_900), "pooled"),  # memory for three
        ({}, 1, 4, build_cluster(4, 2), "dedicated"),  # half a GPU each
        ({"gpus_per_actor": 1}, 1, 4, build_cluster(4, 2), "pooled"),
        ({"cpus_per_actor": 0.25}, 1, 16, build_cluster(4), "dedicated"),
        ({"placement": "dedicated"}, 1, 100, build_cluster(4), "dedicated"),
        ({"placement": "pooled"}, 1, 1, build_cluster(4), "pooled"),
    ],
)
def test_auto_placement_chooses_dedicated_or_pooled(
    settings: dict[str, float], width: int, clients: int, resources: ClusterResources, placement: str
) -> None:
    assert choose_placement(ExecutionSettings(**settings), width, clients, resources, SMALL) == placement


@pytest.mark.parametrize(
    ("settings", "resources", "words"),
    [
        (
            {},
            build_cluster(2, 0, 20_000),
            "500 actors of 1 CPU and 0.5 GB each do not fit: the cluster has 2 CPUs, 0 GPUs",
        ),
        ({}, build_cluster(2, 0, 20_000), "and 20.0 GB; 2 would fit. execution.placement=pooled lets"),
        ({}, build_cluster(1000, 0, 20_000), "; 40 would fit"),
        ({"gpus_per_actor": 1}, build_cluster(1000, 8, 10**6), "500 actors of 1 CPU, 1 GPU and 0.5 GB each do not fit"),
        ({"gpus_per_actor": 1}, build_cluster(1000, 8, 10**6), "; 8 would fit"),
    ],
)
def test_too_many_actors_are_refused_with_the_number_that_fits(
    settings: dict[str, float], resources: ClusterResources, words: str
) -> None:
    with pytest.raises(CapacityError, match=re.escape(words)):
        plan_dedicated(ExecutionSettings(**settings), 500, resources, SMALL)


def test_pooled_refusals_name_the_setting_to_change() -> None:
    with pytest.raises(CapacityError, match=r"3 actors .* 2 would fit\. execution\.actors=auto takes as many as fit"):
        plan_pooled(ExecutionSettings(actors=3), 1, build_cluster(2), SMALL)
    with pytest.raises(CapacityError, match=r"0 would fit\. .*execution\.cpus_per_actor"):
        plan_pooled(ExecutionSettings(cpus_per_actor=4), 1, build_cluster(2), SMALL)
    with pytest.raises(CapacityError, match=r"0 would fit\. .*execution\.gpus_per_actor"):
        plan_pooled(ExecutionSettings(gpus_per_actor=1), 1, build_cluster(2), SMALL)


# ——— GPU memory ———

GB = 10**9


def build_cluster_with_memory(gpus: float, gpu_memory: float, cpus: float = 64) -> ClusterResources:
    return replace(build_cluster(cpus, gpus), gpu_memory_bytes=gpu_memory)


LARGE = Footprint(model_bytes=0, gpu_bytes=4 * GB)


@pytest.mark.parametrize(
    ("settings", "groups", "resources", "plan"),
    [
        ({}, 100, build_cluster_with_memory(2, 10 * GB), (4, 1 / 2)),  # 9 of 10 GB hold two
        ({}, 100, build_cluster_with_memory(2, 80 * GB), (8, 1 / 4)),  # never more than four per GPU
        ({}, 3, build_cluster_with_memory(2, 80 * GB), (3, 1 / 2)),  # no more than there are client groups
        ({}, 100, build_cluster_with_memory(2, 80 * GB, cpus=5), (4, 1 / 2)),  # and no more than there are CPUs
        ({}, 100, build_cluster_with_memory(2, 3 * GB), (2, 1)),
        ({"actors": 4}, 100, build_cluster_with_memory(2, 10 * GB), (4, 1 / 2)),
        (
            {"actors": 9, "gpus_per_actor": 0.2},
            100,
            build_cluster_with_memory(2, 10 * GB),
            (9, 0.2),
        ),  # the user decides
        (
            {"actors": 64, "autoscale": True},
            100,
            build_cluster_with_memory(2, 10 * GB),
            (64, 1 / 2),
        ),  # a share for the GPUs that may join
        ({"actors": 64, "autoscale": True}, 100, build_cluster(64, 2), (64, 1)),
        ({"actors": 64, "autoscale": True}, 100, build_cluster(1), (64, 0)),
    ],
)
def test_gpu_shares_follow_from_memory(
    settings: dict[str, float], groups: int, resources: ClusterResources, plan: tuple[int, float]
) -> None:
    found = plan_pooled(ExecutionSettings(**settings), groups, resources, LARGE)
    assert (found.count, found.gpus) == plan
    assert found.growing == bool(settings.get("autoscale"))


def test_more_actors_than_fit_into_gpu_memory_are_refused_with_the_number_that_fits() -> None:
    with pytest.raises(CapacityError, match=r"5 actors of 4\.0 GB each do not fit on 2 GPUs of 10\.0 GB; 4 would fit"):
        plan_pooled(ExecutionSettings(actors=5), 100, build_cluster_with_memory(2, 10 * GB), LARGE)
    with pytest.raises(CapacityError, match=r"5 actors .* 4 would fit\. execution\.placement=pooled"):
        plan_dedicated(ExecutionSettings(), 5, build_cluster_with_memory(2, 10 * GB), LARGE)
    assert choose_placement(ExecutionSettings(), 1, 5, build_cluster_with_memory(2, 10 * GB), LARGE) == "pooled"
    assert choose_placement(ExecutionSettings(), 1, 4, build_cluster_with_memory(2, 10 * GB), LARGE) == "dedicated"


@pytest.mark.parametrize("settings", [{"gpus_per_actor": 1.5}, {"gpus_per_actor": 1e-7}, {"cpus_per_actor": 1e-7}])
def test_shares_that_ray_does_not_accept_are_refused(settings: dict[str, float]) -> None:
    """Ray accepts shares from 0.0001 to 1 and whole GPUs. It raises a bare ValueError for others once actors start."""
    with pytest.raises((fr.BadInput, ValidationError)):
        plan_pooled(ExecutionSettings(**settings), 1, build_cluster(64, 8), SMALL)


@given(
    wanted=st.integers(1, 60),
    cpus=st.floats(0.5, 32),
    gpus=st.integers(0, 8),
    memory_mb=st.floats(0, 20_000),
    model_mb=st.integers(0, 500),
    share=st.sampled_from(["auto", 0, 0.25, 0.3, 0.5, 1, 2]),
    each=st.sampled_from([0.1, 0.5, 1, 3]),
)
def test_a_plan_fits_the_cluster_and_so_does_the_number_in_a_refusal(
    wanted: int, cpus: float, gpus: int, memory_mb: float, model_mb: int, share: float | str, each: float
) -> None:
    settings = ExecutionSettings(cpus_per_actor=each, gpus_per_actor=share)
    resources, needs = build_cluster(cpus, gpus, memory_mb), Footprint(model_bytes=model_mb * MB)
    try:
        plan = plan_dedicated(settings, wanted, resources, needs)
    except CapacityError as refusal:
        offered = int(re.findall(r"(\d+) would fit", str(refusal))[0])
        plan = plan_dedicated(settings, offered, resources, needs) if offered else None
    if plan is not None:
        assert plan.count * plan.cpus <= cpus + 1e-6
        assert plan.count * plan.gpus <= gpus + 1e-6
        assert plan.count * (500 + 6 * model_mb) <= memory_mb
