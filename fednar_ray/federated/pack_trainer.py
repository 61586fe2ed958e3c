"""Trains the client groups of several trials as rows of one matrix, ahead of the trials' own rounds.

A trial's round then finds its groups trained, and does the rest as if it had trained them itself. No row influences
another, and each takes the operations of its own run, on its own scalars. So a trial ends in the bytes of its own run.
That is checked: the first gradients of every arrangement of rows are compared with those of the groups' own runs, bit
for bit. Whatever cannot be trained here, or fails, is left to the trial.
"""

import logging
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.algorithms.client_corrections import Correction, keep_gradient
from fednar_ray.core.buffers import check_unchanged
from fednar_ray.core.errors import check_device_works, first_line, is_of_memory
from fednar_ray.core.freed_memory import keep_freed_memory
from fednar_ray.core.threads import use_one_thread
from fednar_ray.data.batches import BatchPlan
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.collection import RoundStart
from fednar_ray.federated.gradients import GroupGradient
from fednar_ray.federated.local_steps import RowScalars, StepSums, take_local_steps
from fednar_ray.federated.precision import use_precision
from fednar_ray.federated.trained_group import StartedGroup, finish_group

log = logging.getLogger("fednar_ray")

MATRIX_ROWS = 80
"""Rows of a full matrix. On a CPU a row costs least at 40 to 160 rows of a small model (decision 20)."""
MATRIX_BYTES = 2**25
"""The most memory that the parameters of a matrix take. The rows of a large model gain nothing from company."""
GPU_MATRIX_ROWS, GPU_MATRIX_BYTES = 640, 2**29
"""The same on a GPU: assumed, never measured. ``scripts/gpu_check --only packs`` measures several numbers of rows."""


@dataclass(frozen=True, slots=True)
class _Group:
    """A client group of a trial's next round."""

    trainer: GroupTrainer
    start: StartedGroup
    round_index: int

    @property
    def key(self) -> Hashable:
        """Equal for groups that can be rows of one matrix, which have the same number of examples per step."""
        return self.trainer.matrix_key, self.start.batches.index.shape[2]

    @property
    def rows(self) -> int:
        """C, the number of its clients."""
        return len(self.start.steps)

    @property
    def max_steps(self) -> int:
        """K, the most local steps of one of its clients."""
        return int(self.start.steps.max())


class PackTrainer:
    """Trains ahead for trials of one process. Its traces are reused from round to round.

    Args:
        rows: The rows of a full matrix.
        most_bytes: The most memory that the parameters of a matrix take.
    """

    def __init__(self, rows: int = MATRIX_ROWS, most_bytes: int = MATRIX_BYTES) -> None:
        self._gradients: dict[Hashable, GroupGradient] = {}
        self._checked: set[Hashable] = set()
        self._first: dict[Hashable, GroupTrainer] = {}  # keeps what a key identifies alive
        self._rows, self._most_bytes = rows, most_bytes
        self._is_refused = False

    @classmethod
    def on(cls, device: torch.device) -> "PackTrainer":
        """Returns a trainer whose matrices are of a size for this kind of device."""
        return cls(GPU_MATRIX_ROWS, GPU_MATRIX_BYTES) if device.type == "cuda" else cls()

    @property
    def is_refused(self) -> bool:
        """Whether rows of a matrix did not have the bits of their own runs, so that nothing more is trained ahead."""
        return self._is_refused

    def train_ahead(self, rounds: Sequence[tuple[GroupTrainer, RoundStart]]) -> None:
        """Trains the client groups of each trial's next round, and hands them to the trials' trainers.

        Args:
            rounds: The trainer and the next round of each trial.
        """
        with use_one_thread(), torch.no_grad():
            for groups in self._form_matrices(_start_groups(rounds)):
                if not self._is_refused and len(groups) > 1:
                    self._train_or_leave(groups)

    def _form_matrices(self, groups: Iterable[_Group]) -> Iterator[list[_Group]]:
        """Yields groups that are rows of the same matrix; those that need most steps come first."""
        alike: dict[Hashable, list[_Group]] = {}
        for group in groups:
            alike.setdefault(group.key, []).append(group)
        for same in alike.values():
            matrix: list[_Group] = []
            for group in sorted(same, key=lambda group: -group.max_steps):
                if matrix and sum(each.rows for each in matrix) + group.rows > self._count_rows(group):
                    yield matrix
                    matrix = []
                matrix.append(group)
            yield matrix

    def _count_rows(self, group: _Group) -> int:
        """Returns how many rows a full matrix has, for a group's model."""
        row_bytes = 4 * group.start.local_round.global_params.numel()
        return max(group.rows, min(self._rows, self._most_bytes // row_bytes))

    def _train_or_leave(self, groups: list[_Group]) -> None:
        """Trains groups as one matrix. If that fails, the trials train them, and meet the error if it is theirs."""
        try:
            self._train(groups)
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            check_device_works(error)
            self._gradients.clear()
            if is_of_memory(error) and self._rows > 1:
                self._rows = max(1, min(self._rows, sum(group.rows for group in groups)) // 2)
                log.warning("out of memory: packs train at most %d clients as one matrix from now on", self._rows)
            else:
                log.debug("a pack's matrix was left to its trials: %s", first_line(error))

    def _train(self, groups: list[_Group]) -> None:
        start = time.perf_counter()
        trainer = groups[0].trainer
        gradient = self._find_gradient(groups)
        spans = _find_spans(groups)
        batches = _join_batches(groups, len(gradient.params))
        gradient.params.zero_()
        for group, span in zip(groups, spans, strict=True):
            gradient.params[span] = group.start.local_round.global_params
        with use_precision(trainer.plan.precision, trainer.device):
            if not self._gives_own_bits(gradient, batches, groups, spans):
                return
            if any(group.start.task.verify for group in groups):
                gradient.verify(batches, 0)
            taken = take_local_steps(
                trainer.plan.regularizer,
                gradient,
                batches,
                _join_steps(groups, len(gradient.params)),
                _join_corrections(groups, spans),
                _join_scalars(groups, gradient.params),
            )
        check_unchanged(gradient.module, trainer.constant_buffers)
        statistics = taken.cpu()  # once for all groups
        seconds = (time.perf_counter() - start) / sum(group.rows for group in groups)
        for group, span in zip(groups, spans, strict=True):
            sums = StepSums.of(statistics[: group.max_steps, :, span], group.start.steps)
            trained = finish_group(group.trainer.plan, group.start, gradient.params[span], sums, seconds * group.rows)
            group.trainer.held.add_ahead(group.round_index, trained)

    def _find_gradient(self, groups: list[_Group]) -> GroupGradient:
        """Returns the gradient of a matrix that has room for the groups: a full one, half of one, a quarter, …"""
        wanted, height = sum(group.rows for group in groups), self._count_rows(max(groups, key=lambda g: g.rows))
        while height // 2 >= wanted:
            height //= 2
        key = groups[0].key, height
        if key not in self._gradients:
            keep_freed_memory(8 * MATRIX_BYTES)  # of the host
            self._first.setdefault(groups[0].key, groups[0].trainer)
            self._gradients[key] = groups[0].trainer.build_gradient(height)
        return self._gradients[key]

    def _gives_own_bits(
        self, gradient: GroupGradient, batches: BatchPlan, groups: list[_Group], spans: Sequence[slice]
    ) -> bool:
        """Returns whether the rows get the gradients of their own runs, and says so once if not.

        It depends on where the rows lie, so every new arrangement of rows is checked, at its first step.
        """
        arrangement = groups[0].key, len(gradient.params), tuple(group.rows for group in groups)
        if arrangement in self._checked:
            return True
        grad, loss = (each.clone() for each in gradient(batches, 0))
        for group, span in zip(groups, spans, strict=True):
            own_grad, own_loss = group.trainer.compute_first_gradient(group.start)
            if not (_have_same_bits(grad[span], own_grad) and _have_same_bits(loss[span], own_loss)):
                self._is_refused = True
                what = "a client's gradient depends on how many clients are trained as one matrix with this model"
                log.info("%s, so trials are trained one after another", what)
                return False
        self._checked.add(arrangement)
        return True


def _start_groups(rounds: Sequence[tuple[GroupTrainer, RoundStart]]) -> Iterator[_Group]:
    """Yields the groups of the rounds. Clients that train alone are left out: their runs use plain autograd.

    The batches of a group are planned once for all trials that have them in common.
    """
    planned: dict[Hashable, BatchPlan] = {}
    for trainer, round_ in rounds:
        plan, index = trainer.plan, round_.broadcast.round_index
        for task in round_.tasks if trainer.matrix_key is not None else ():
            if len(task.client_ids) > 1:
                key = trainer.matrix_key, plan.seed, plan.workload, index, task.client_ids
                start = trainer.start(round_.broadcast, task, planned.get(key))
                planned[key] = start.batches
                yield _Group(trainer, start, index)


def _find_spans(groups: Sequence[_Group]) -> list[slice]:
    """Returns which rows of the matrix are those of each group."""
    ends = list(accumulate(group.rows for group in groups))
    return [slice(end - group.rows, end) for group, end in zip(groups, ends, strict=True)]


def _join_batches(groups: Sequence[_Group], height: int) -> BatchPlan:
    """Returns the batches of all groups as one plan of ``height`` rows. Rows without a client have weight 0."""
    first, steps = groups[0].start.batches, max(group.max_steps for group in groups)

    def join(parts: Sequence[Tensor]) -> Tensor:
        joined = parts[0].new_zeros(steps, height, *parts[0].shape[2:])
        row = 0
        for part in parts:
            joined[: len(part), row : row + part.shape[1]] = part
            row += part.shape[1]
        return joined

    plans = [group.start.batches for group in groups]
    return replace(
        first,
        index=join([plan.index for plan in plans]),
        weights=join([plan.weights for plan in plans]),
        moves=None if first.moves is None else join([plan.moves for plan in plans if plan.moves is not None]),
        keys=None if first.keys is None else join([plan.keys for plan in plans if plan.keys is not None]),
    )


def _join_steps(groups: Sequence[_Group], height: int) -> npt.NDArray[np.int64]:
    """Returns K_i of each row, [height]; rows without a client take no step."""
    steps = np.zeros(height, dtype=np.int64)
    joined = np.concatenate([group.start.steps for group in groups])
    steps[: len(joined)] = joined
    return steps


def _join_scalars(groups: Sequence[_Group], params: Tensor) -> RowScalars:
    """Returns each row's own scalars, [height, 1]."""
    rows = [group.rows for group in groups]

    def join(values: Sequence[float]) -> Tensor:
        column = params.new_ones(len(params), 1)
        column[: sum(rows)] = torch.from_numpy(np.repeat(np.array(values, dtype=np.float32), rows)).view(-1, 1)
        return column

    scalars = [group.start.scalars for group in groups]
    return RowScalars(
        local_lr=join([each.local_lr for each in scalars]),
        weight_decay=join([each.weight_decay for each in scalars]),
        clip_bound=join([each.clip_bound for each in scalars]),
    )


def _join_corrections(groups: Sequence[_Group], spans: Sequence[slice]) -> Correction:
    """Returns the correction of all rows: each group's own, on its rows."""
    own = [group.trainer.plan.correction.correction(group.start.local_round) for group in groups]
    if all(each is keep_gradient for each in own):
        return keep_gradient
    last = spans[-1].stop

    def correct(grad: Tensor, params: Tensor) -> Tensor:
        parts = [grad[span] for span in spans]
        corrected = [each(part, params[span]) for each, part, span in zip(own, parts, spans, strict=True)]
        return torch.cat([*corrected, grad[last:]])

    return correct


def _have_same_bits(one: Tensor, other: Tensor) -> bool:
    """Returns whether two float32 tensors are equal bit for bit, NaN included."""
    return torch.equal(one.contiguous().view(torch.int32), other.contiguous().view(torch.int32))
