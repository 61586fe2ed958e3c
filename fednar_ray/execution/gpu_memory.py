"""The memory of GPUs: how much of it an actor needs, how much there is, and so how many actors share a GPU.

The estimate is derived, and has never been measured on a GPU.
"""

from math import floor

CONTEXT_BYTES = 700_000_000  # the CUDA context of a process, with the work space of cuBLAS and cuDNN
GROUP_VECTORS = 5  # per client of a group: x, g, v, Δ, and one that is being computed
STATE_VECTORS = 2  # per client, for stateful client corrections: the client's state and its next one
SHARED_VECTORS = 3  # per actor: the module, x_round, and SCAFFOLD's c
FILLED_SHARE = 0.9  # of a GPU's memory, because its allocator leaves gaps
MAX_ACTORS_PER_GPU = 4  # for auto: kernels of several processes take turns, so only their work on the host overlaps
ANSWER_SECONDS = 60.0  # for a task that imports torch, on a node whose GPUs may all be in use


def estimate_gpu_bytes(
    model_bytes: int, group_size: int, batch_size: int, activation_bytes: float, *, stateful: bool
) -> float:
    """Estimates how much memory an actor needs on its GPU.

    Args:
        model_bytes: The size of the parameters in bytes, 4·d.
        group_size: C, the clients that train as one matrix.
        batch_size: B, the examples of a client's batch.
        activation_bytes: What the forward pass keeps for one example. The backward pass needs as much again.
        stateful: Whether the client correction keeps a state per client.

    Returns:
        Bytes.
    """
    vectors = group_size * (GROUP_VECTORS + (STATE_VECTORS if stateful else 0)) + SHARED_VECTORS
    return CONTEXT_BYTES + vectors * model_bytes + 2 * group_size * batch_size * activation_bytes


def count_actors_per_gpu(actor_bytes: float, gpu_bytes: float | None) -> int | None:
    """Returns how many actors fit on a GPU, or None if the size of its memory is unknown.

    The result is at least 1, because an actor that runs out of memory trains its client groups in halves.
    """
    return None if gpu_bytes is None else max(1, floor(FILLED_SHARE * gpu_bytes / actor_bytes))


def find_smallest_gpu_bytes() -> float | None:
    """Asks each node with a GPU for the size of its memory, and returns the smallest.

    Returns:
        Bytes, or None if there is no GPU, a node does not answer in time, or its torch sees no GPU.
    """
    import ray  # not for a run in the driver's process
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    if not nodes:
        return None
    task = ray.remote(num_cpus=0, num_gpus=0.01, max_retries=0)(_measure_own_gpu)
    strategies = (NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes)
    refs = [task.options(scheduling_strategy=strategy).remote() for strategy in strategies]
    answered, silent = ray.wait(refs, num_returns=len(refs), timeout=ANSWER_SECONDS)
    if silent:
        for ref in silent:
            ray.cancel(ref, force=True)
        return None
    sizes = ray.get(answered)
    return None if None in sizes else min(sizes)


def _measure_own_gpu() -> float | None:
    """Returns the memory of the GPU that this task was given, or None if torch sees none."""
    import torch  # not at the top: a driver can start Ray before it has imported PyTorch

    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
