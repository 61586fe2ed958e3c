"""Places the vectors of a round on the device where a client group trains."""

import torch
from torch import Tensor

from fednar_ray.algorithms.client_corrections import LocalRound
from fednar_ray.core.file_rows import FileRow
from fednar_ray.core.flat_params import FloatVector
from fednar_ray.core.messages import Broadcast, GroupTask
from fednar_ray.core.transfers import StagingBuffer, as_tensor, is_aligned, on_device


class RoundVectors:
    """Memory on a device for the vectors of one round at a time.

    Args:
        dimension: d.
        device: Where clients are trained.
        in_place: Whether the client correction may read vectors where they lie, such as in Ray's object store. A GPU
            gets copies in any case.
    """

    def __init__(self, dimension: int, device: torch.device, *, in_place: bool) -> None:
        self._dimension, self._device = dimension, device
        self._in_place = in_place and device.type == "cpu"
        self._buffers: dict[str, StagingBuffer] = {}

    def load(self, broadcast: Broadcast, task: GroupTask) -> LocalRound:
        """Returns the round as the client correction of a group sees it, valid until the next ``load``."""
        global_params = self._stage("", broadcast.parameters)
        return LocalRound(
            global_params=global_params,
            shared={name: self._stage(name, vector) for name, vector in broadcast.shared.items()},
            state=self._load_states(task, global_params),
            local_lr=broadcast.scalars.local_lr,
        )

    def _stage(self, name: str, vector: FloatVector) -> Tensor:
        """Returns a vector on the device: a copy, unless it may lie where it is."""
        if self._may_stay(vector):
            return as_tensor(vector)
        if name not in self._buffers:
            self._buffers[name] = StagingBuffer(self._dimension, self._device)
        return self._buffers[name].fill(vector)

    def _may_stay(self, vector: FloatVector) -> bool:
        return self._in_place and is_aligned(vector)

    def _load_states(self, task: GroupTask, global_params: Tensor) -> Tensor:
        """Returns the clients' states [C, d]; [C, 0] if the correction keeps none."""
        if task.states is None:
            return global_params.new_empty(len(task.client_ids), 0)
        rows = [state.read() if isinstance(state, FileRow) else state for state in task.states]
        if len(rows) == 1 and rows[0] is not None and self._may_stay(rows[0]):
            return as_tensor(rows[0]).view(1, -1)
        states = global_params.new_zeros(len(rows), len(global_params))
        for row, kept in zip(states, rows, strict=True):
            if kept is not None:
                row.copy_(on_device(kept, self._device))
        return states
