"""Clusters that grow and shrink during a run, and on which nodes actors start."""

import json
import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fednar_ray as fr
from fednar_ray.execution.capacity import ActorPlan
from fednar_ray.execution.scheduling import options_for, packed
from tests.conftest import small_federation
from tests.support.cluster_nodes import on_a_cluster_of_its_own
from tests.support.servers import awaited

SIZES = (7, 30, 12, 3, 21)
HEAD, OTHER, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"  # Ray takes an address other than 127.0.0.1 as it is given
MOST_ROUNDS = 2000  # until another node and its actors are there, which is a matter of seconds, or of a minute


class Leisurely(torch.nn.Module):
    """A model whose forward pass takes a while, so that rounds last as long as a node needs to join."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.seconds, self.layer = seconds, torch.nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.layer(x)


def experiment(rounds: int, **execution: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "federation": {"rounds": rounds, "local_steps": 2, "batch_size": 4},
            "algorithm": {"name": "scaffold", "local_lr": 0.1},
            "evaluation": {"every": MOST_ROUNDS},
            "execution": {"gpus_per_actor": 0, "vectorize": 1, **execution},
        }
    )


def grow_and_shrink() -> None:
    """Begin with one slot of three; a node with two more joins, and leaves again. Prints what happened."""
    import ray
    from ray.cluster_utils import Cluster

    from fednar_ray.experiments.iter_rounds import build_initial_state, train_rounds
    from fednar_ray.experiments.placement import place, resolve
    from fednar_ray.experiments.prepare import prepare

    head = {"num_cpus": 1, "node_ip_address": HEAD, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    another = cluster.add_node(num_cpus=2, node_ip_address=THIRD)
    ray.init(address=cluster.address, log_to_driver=False)
    started, nodes = [], []
    for strategy, free in (("spread", 3), ("pack", 2)):
        awaited(lambda free=free: ray.available_resources().get("CPU") == free)
        started += start_two(strategy)
        nodes.append(len(set(ray.get([actor.node.remote() for actor in started[-2:]]))))
    for actor in started:
        ray.kill(actor)
    cluster.remove_node(another)
    awaited(lambda: ray.available_resources().get("CPU") == 1)
    settings = experiment(MOST_ROUNDS, placement="pooled", actors=3, autoscale=True)
    session, prepared = fr.RaySession(), prepare(settings, small_federation(SIZES), Leisurely(0.01))
    resolved = resolve(prepared, session)
    counts, added, left = [], None, 0
    with place(prepared, resolved, session) as pool:
        for report in train_rounds(prepared, resolved, pool, build_initial_state(prepared)):
            assert not report.exclusions
            counts.append(len(pool.actor_infos()))
            if added is None:
                added = cluster.add_node(num_cpus=2, node_ip_address=OTHER)
            elif counts[-1] == 3 and not left:
                cluster.remove_node(added)
                left = len(counts)
            elif left and len(counts) >= left + 3:
                break
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps({"counts": counts, "nodes": nodes, "parameters": report.parameters.tobytes().hex()}))


def start_two(strategy: str) -> list[Any]:
    """Two small actors of half a CPU each."""
    import ray

    class Small:
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    plan = ActorPlan(count=2, cpus=0.5, gpus=0, strategy=strategy)
    return [ray.remote(**options)(Small).remote() for options in options_for(plan, [0, 1])]


@pytest.mark.ray
def test_a_run_takes_up_nodes_that_join_and_goes_on_when_they_leave_to_the_same_bytes() -> None:
    found = on_a_cluster_of_its_own("test_growth", "grow_and_shrink")
    assert found["nodes"] == [2, 1]  # spread, packed
    assert found["counts"][0] == 1
    assert max(found["counts"]) == 3
    assert found["counts"][-1] == 1
    rounds = len(found["counts"])
    serial = list(
        fr.iter_rounds(experiment(rounds, placement="serial"), federation=small_federation(SIZES), model=Leisurely(0))
    )
    assert found["parameters"] == serial[-1].parameters.tobytes().hex()


# ——— packing ———


@pytest.mark.parametrize(
    ("free", "gpus", "count", "chosen"),
    [
        ({"a": 2, "b": 4}, 0, 3, ["b", "b", "b"]),
        ({"a": 2, "b": 4}, 0, 2, ["a", "a"]),  # the smaller one is enough
        ({"a": 2, "b": 4}, 0, 5, ["b", "b", "b", "b", "a"]),
        ({"a": 1, "b": 1}, 0, 3, ["a", "b", None]),
        ({}, 0, 2, [None, None]),
        ({"a": 8}, 0.5, 3, ["a", "a", None]),  # of one GPU
    ],
)
def test_actors_are_packed_on_as_few_nodes_as_can_be(
    free: dict[str, float], gpus: float, count: int, chosen: list[str | None]
) -> None:
    assert packed({node: {"CPU": cpus, "GPU": 1} for node, cpus in free.items()}, 1, gpus, count) == chosen


@given(cpus=st.lists(st.integers(0, 9), max_size=6), count=st.integers(1, 30))
def test_packed_actors_fit_and_no_smaller_number_of_nodes_would_hold_them(cpus: list[int], count: int) -> None:
    chosen = packed({str(i): {"CPU": float(free)} for i, free in enumerate(cpus)}, 1, 0, count)
    placed = [node for node in chosen if node is not None]
    assert len(chosen) == count
    assert len(placed) == min(count, sum(cpus))
    assert all(placed.count(node) <= cpus[int(node)] for node in placed)
    used = len(set(placed))
    assert not used or sum(sorted(cpus, reverse=True)[: used - 1]) < len(placed)
