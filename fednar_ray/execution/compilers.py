"""Asks the nodes of a cluster whether they can compile."""

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fednar_ray.federated.compiler import find_compiler_problem

ANSWER_SECONDS = 60.0  # for a task that imports torch, on a node whose CPUs may all be in use


def find_compiler_problem_of_cluster() -> str | None:
    """Returns why a node that may train cannot compile, with the node's address; None if all can.

    A node without CPUs trains nothing and is not asked. One that does not answer in a minute counts as unable.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    task = ray.remote(num_cpus=0, max_retries=0)(find_compiler_problem)
    strategies = (NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes)
    refs = [task.options(scheduling_strategy=strategy).remote() for strategy in strategies]
    answered, _ = ray.wait(refs, num_returns=len(refs), timeout=ANSWER_SECONDS) if refs else ([], [])
    for node, ref in zip(nodes, refs, strict=True):
        if ref not in answered:
            ray.cancel(ref, force=True)
            return f"node {node['NodeManagerAddress']} does not say whether it has a C++ compiler"
        problem = ray.get(ref)
        if problem is not None:
            return f"on node {node['NodeManagerAddress']} {problem}"
    return None
