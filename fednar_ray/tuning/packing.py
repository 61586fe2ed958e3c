"""Decides whether the trials of a search are packed: how many of them one process trains together."""

from dataclasses import dataclass
from math import ceil

from fednar_ray.config import SearchSettings
from fednar_ray.core.counting import format_count
from fednar_ray.execution.gpu_memory import CONTEXT_BYTES, FILLED_SHARE
from fednar_ray.federated.pack_trainer import GPU_MATRIX_ROWS, MATRIX_ROWS
from fednar_ray.tuning.resources import TrialMatrix
from fednar_ray.tuning.strategy import count_trials

MEMORY_SHARE = 0.1  # of a node's memory, for all packs on it; a GPU has no other use
ROW_BY_ROW = ("none", "asha", "median")  # the schedulers that only stop trials


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How many trials share a process.

    Attributes:
        width: Maximum number of trials per pack; 1: trials are not packed.
        reason: Why they are not packed; None if they are.
    """

    width: int
    reason: str | None = None


def decide_packing(
    search: SearchSettings,
    matrix: TrialMatrix | None,
    slots: int,
    memory_bytes: float,
    gpu_bytes: float | None = None,
) -> Packing:
    """Decides for ``search.pack``. A number is taken as given, as long as trials can be packed at all.

    Args:
        search: The search section.
        matrix: What a trial trains that can be packed; None if trials must have actors.
        slots: Number of processes that fit on the cluster at a time.
        memory_bytes: The memory of a node.
        gpu_bytes: The memory of a GPU, if packs train on GPUs; None if it is unknown.
    """
    if search.pack == "off" or search.pack == 1:
        return Packing(width=1, reason=f"search.pack is {search.pack}")
    if matrix is None:
        return Packing(width=1, reason="each trial has actors of its own")
    if matrix.compiled:
        return Packing(width=1, reason="execution.compile is on")
    if search.scheduler.name not in ROW_BY_ROW:
        return Packing(width=1, reason=f"{search.scheduler.name} pauses, copies and restores single trials")
    if search.pack != "auto":
        return Packing(width=search.pack)
    if matrix.group_size == 1:
        why = "" if matrix.alone_because is None else f" ({matrix.alone_because})"
        return Packing(width=1, reason=f"the clients of a trial train one by one{why}")
    if matrix.gpus and gpu_bytes is None:
        return Packing(width=1, reason="the memory of the GPUs is unknown")
    return _choose_width(search, matrix, slots, memory_bytes, gpu_bytes or 0.0)


def _choose_width(
    search: SearchSettings, matrix: TrialMatrix, slots: int, memory_bytes: float, gpu_bytes: float
) -> Packing:
    """Chooses the width for ``search.pack: auto``: the smallest of its limits."""
    clients, trials = matrix.clients, count_trials(search)
    at_a_time = trials if search.concurrent == "auto" else min(search.concurrent, trials)
    rows = GPU_MATRIX_ROWS if matrix.gpus else MATRIX_ROWS
    room, gpu_room = MEMORY_SHARE * memory_bytes / slots, FILLED_SHARE * min(matrix.gpus, 1) * gpu_bytes - CONTEXT_BYTES
    by_memory, by_gpu_memory = room / matrix.host_bytes / search.seeds, gpu_room / matrix.device_bytes / search.seeds
    limits = {
        f"the {clients} clients of one trial fill a matrix": ceil(rows / clients),
        f"{format_count(at_a_time, 'trial')} at a time can have a process each": ceil(at_a_time / slots),
        "more trials at a time would take more than a tenth of the memory": int(by_memory),
    }
    if matrix.gpus:
        limits["more trials at a time do not fit in the memory of a GPU"] = int(by_gpu_memory)
    reason, width = min(limits.items(), key=lambda limit: limit[1])
    return Packing(width=width) if width > 1 else Packing(width=1, reason=reason)
