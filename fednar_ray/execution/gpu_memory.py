"""How many actors share a GPU, from what each takes of its memory: pure functions. Assumed, never measured on a GPU."""

from math import floor

CONTEXT_BYTES = 700_000_000  # a process's CUDA context, with cuBLAS's and cuDNN's work space
GROUP_VECTORS = 5  # a client of a client group: x, g, v, Δ, and one that is being computed
STATE_VECTORS = 2  # besides, of stateful client corrections: the client's state and its next one
SHARED_VECTORS = 3  # an actor: the module, x_round, and SCAFFOLD's c
USABLE = 0.9  # of a GPU's memory: its allocator leaves gaps
MOST = 4  # actors that auto puts on a GPU: kernels of several processes take turns, and only their hosts' work overlaps


def estimate_gpu_bytes(
    model_bytes: int, width: int, batch_size: int, activation_bytes: float, *, stateful: bool
) -> float:
    """What an actor takes of its GPU's memory.

    ``model_bytes`` 4·d; ``width`` C clients train as one matrix; ``activation_bytes`` of one example's forward pass,
    which training keeps, and of which it makes as much again on the way back.
    """
    vectors = width * (GROUP_VECTORS + (STATE_VECTORS if stateful else 0)) + SHARED_VECTORS
    return CONTEXT_BYTES + vectors * model_bytes + 2 * width * batch_size * activation_bytes


def count_actors_per_gpu(gpu_bytes: float, memory_bytes: float | None) -> int | None:
    """How many actors of so many bytes fit on a GPU with so much memory; None: its memory is not known.

    At least one: an actor that runs out of memory all the same trains its client groups in halves.
    """
    return None if memory_bytes is None else max(1, floor(USABLE * memory_bytes / gpu_bytes))
