"""A cluster that grows and shrinks during a run."""

import json
import time
from typing import Any

import pytest
import torch

import fednar_ray as fr
from fednar_ray.execution.capacity import ActorPlan
from fednar_ray.execution.scheduling import build_actor_options
from tests.conftest import build_small_federation
from tests.support.cluster_nodes import run_in_own_process
from tests.support.servers import wait_for

SIZES = (7, 30, 12, 3, 21)
HEAD, OTHER, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"  # Ray replaces 127.0.0.1, but no other loopback address
MAX_ROUNDS = 2000  # enough for another node to join and its actors to start, which takes seconds to a minute


class SlowModel(torch.nn.Module):
    """A model whose forward pass takes a while, so that a node can join within the rounds of a run."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.seconds, self.layer = seconds, torch.nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.layer(x)


def build_experiment(rounds: int, **execution: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "federation": {"rounds": rounds, "local_steps": 2, "batch_size": 4},
            "algorithm": {"name": "scaffold", "local_lr": 0.1},
            "evaluation": {"every": MAX_ROUNDS},
            "execution": {"gpus_per_actor": 0, "vectorize": 1, **execution},
        }
    )


def run_growing_cluster() -> None:
    """Trains on a node with one of three slots, while a node with the other two joins and leaves. Prints the result."""
    import ray
    from ray.cluster_utils import Cluster

    from fednar_ray.experiments.iter_rounds import build_initial_state, train_rounds
    from fednar_ray.experiments.placement import open_pool, plan_execution
    from fednar_ray.experiments.prepare import prepare

    head = {"num_cpus": 1, "node_ip_address": HEAD, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=2, node_ip_address=THIRD)
    ray.init(address=cluster.address, log_to_driver=False)
    started, nodes = [], []
    for strategy, free in (("spread", 3), ("pack", 2)):
        wait_for(lambda free=free: ray.available_resources().get("CPU") == free)
        started += start_two(strategy)
        nodes.append(len(set(ray.get([actor.node.remote() for actor in started[-2:]]))))
    for actor in started:
        ray.kill(actor)
    cluster.remove_node(second)
    wait_for(lambda: ray.available_resources().get("CPU") == 1)
    settings = build_experiment(MAX_ROUNDS, placement="pooled", actors=3, autoscale=True)
    session, prepared = fr.RaySession(), prepare(settings, build_small_federation(SIZES), SlowModel(0.01))
    resolved = plan_execution(prepared, session)
    counts, added, left = [], None, 0
    with open_pool(prepared, resolved, session) as pool:
        for report in train_rounds(prepared, resolved, pool, build_initial_state(prepared)):
            assert not report.exclusions
            counts.append(len(pool.list_actors()))
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
    """Starts two small actors that take half a CPU each."""
    import ray

    class Small:
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    plan = ActorPlan(count=2, cpus=0.5, gpus=0, strategy=strategy)
    return [ray.remote(**options)(Small).remote() for options in build_actor_options(plan, [0, 1])]


@pytest.mark.usefixtures("processes")
@pytest.mark.usefixtures("own_ray")
def test_a_run_uses_nodes_that_join_and_survives_their_leaving_with_the_same_bytes() -> None:
    found = run_in_own_process(run_growing_cluster)
    assert found["nodes"] == [2, 1]  # spread, packed
    assert found["counts"][0] == 1
    assert max(found["counts"]) == 3
    assert found["counts"][-1] == 1
    rounds = len(found["counts"])
    serial = list(
        fr.iter_rounds(
            build_experiment(rounds, placement="serial"), federation=build_small_federation(SIZES), model=SlowModel(0)
        )
    )
    assert found["parameters"] == serial[-1].parameters.tobytes().hex()
