"""Which examples a client group's clients see in which step: shuffled epochs over each shard, addressed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.core.random import Purpose, generator
from fednar_ray.core.transfers import on_device
from fednar_ray.data.examples import Shards
from fednar_ray.data.transforms import Transform


def client_batches(examples: int, batch_size: int, steps: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Rows of a shard for each step, [steps, min(batch_size, examples)], −1 where a batch is short.

    The shard is walked in shuffled epochs, and the short last batch of an epoch is kept.
    """
    width = min(batch_size, examples)
    per_epoch = -(-examples // batch_size)
    epochs = -(-steps // per_epoch)
    plan = np.full((epochs, per_epoch * width), -1, dtype=np.int64)
    for epoch in range(epochs):
        plan[epoch, :examples] = rng.permutation(examples) if per_epoch > 1 else np.arange(examples)
    return plan.reshape(epochs * per_epoch, width)[:steps]


def padded_batch(examples: int, batch_size: int) -> int:
    """B for a group whose largest shard has ``examples``: a power of two or ``batch_size``, so that shapes are few."""
    return min(batch_size, 1 << max(examples - 1, 0).bit_length())


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's examples of a client group."""

    x: Tensor  # [C, B, …]
    y: Tensor  # [C, B]
    weights: Tensor  # [C, B] 1/B_i for the B_i real examples of a row, 0 for padding


class ResidentShards:
    """Shards on a device, from which batches are gathered. On the CPU nothing is copied: rows stay where they are."""

    def __init__(self, shards: Shards, device: torch.device) -> None:
        self._shards = shards
        self._device = device
        self._x = on_device(shards.examples.x, device)
        self._y = on_device(shards.examples.y, device)

    def sizes(self, client_ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """n_i of the named clients, [C]."""
        return self._shards.rows(client_ids)[1]

    def plan(
        self, client_ids: Sequence[int], steps: npt.NDArray[np.int64], batch_size: int, seed: int, round_index: int
    ) -> "BatchPlan":
        """The batches of a client group in one round."""
        sizes = self.sizes(client_ids)
        index = np.full((int(steps.max()), len(client_ids), padded_batch(int(sizes.max()), batch_size)), -1)
        for row, (client_id, examples, taken) in enumerate(zip(client_ids, sizes, steps, strict=True)):
            rng = generator(seed, Purpose.BATCHES, round_index=round_index, client_id=client_id)
            batches = client_batches(int(examples), batch_size, int(taken), rng)
            index[: len(batches), row, : batches.shape[1]] = batches
        plan, transform = self._placed(client_ids, index), self._shards.transform
        if transform is None or transform.augmentation is None:
            return plan
        moves = np.zeros((*index.shape, 3), dtype=np.int64)
        for row, (client_id, examples, taken) in enumerate(zip(client_ids, sizes, steps, strict=True)):
            rng = generator(seed, Purpose.AUGMENTATION, round_index=round_index, client_id=client_id)
            drawn = transform.augmentation.draws(int(taken), min(batch_size, int(examples)), rng)
            moves[: int(taken), row, : min(batch_size, int(examples))] = drawn
        return replace(plan, moves=on_device(moves, self._device))

    def _placed(self, client_ids: Sequence[int], index: npt.NDArray[np.int64]) -> "BatchPlan":
        real = index >= 0
        starts, _ = self._shards.rows(client_ids)
        absolute = np.where(real, index, 0) + starts[:, None]
        weights = real / np.maximum(real.sum(axis=-1, keepdims=True), 1)
        return BatchPlan(
            self._x,
            self._y,
            on_device(absolute, self._device),
            on_device(weights.astype(np.float32), self._device),
            real.sum(axis=-1),
            self._shards.transform,
        )


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The batches of one client group in one round, gathered step by step into memory of their own."""

    x: Tensor
    y: Tensor
    index: Tensor  # [K, C, B] rows of x
    weights: Tensor  # [K, C, B]
    counts: npt.NDArray[np.int64]  # [K, C] real examples
    transform: Transform | None = None
    moves: Tensor | None = None  # [K, C, B, 3] of the augmentation, where there is one

    def of_zeros(self) -> "BatchPlan":
        """The same shapes with zeros for examples and labels."""
        x, y = torch.zeros_like(self.x[:1]), torch.zeros_like(self.y[:1])
        return replace(self, x=x, y=y, index=torch.zeros_like(self.index))

    def batch(self, step: int) -> Batch:
        """The client group's batch at ``step``, padded to B."""
        index = self.index[step]
        flat = index.reshape(-1)
        x = self._inputs(flat, None if self.moves is None else self.moves[step].view(-1, 3))
        y = self.y.index_select(0, flat).view(index.shape)
        return Batch(x.view(*index.shape, *x.shape[1:]), y, self.weights[step])

    def single(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a client group of one, without padding: x [B_i, …], y [B_i]."""
        index = self.index[step, 0, : int(self.counts[step, 0])]
        moves = None if self.moves is None else self.moves[step, 0, : len(index)]
        return self._inputs(index, moves), self.y.index_select(0, index)

    def _inputs(self, index: Tensor, moves: Tensor | None) -> Tensor:
        """The rows ``index`` [n] as the model takes them, moved by ``moves`` [n, 3]."""
        x = self.x.index_select(0, index)
        if self.transform is None:
            return x
        x = self.transform.normalized(x)
        return x if moves is None else self.transform.augmented(x, moves)
