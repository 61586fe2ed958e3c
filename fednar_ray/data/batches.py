"""Plans which examples each client of a group trains on in which step.

A client goes through its shard in shuffled epochs. The order follows from the seed, the round and the client; neither
the other clients of the group nor the actor that trains them change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.core.random import Purpose, generator
from fednar_ray.core.transfers import on_device
from fednar_ray.data.examples import Shards
from fednar_ray.data.transforms import Transform


def plan_client_batches(examples: int, batch_size: int, steps: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Chooses the examples of each of a client's training steps, in shuffled epochs.

    Args:
        examples: The number of examples of the client's shard.
        batch_size: The number of examples per step. The last batch of an epoch may be smaller.
        steps: The number of steps. Fewer steps give the first rows of the same plan.
        rng: Shuffles each epoch. A client whose shard is a single batch is not shuffled.

    Returns:
        Indices into the shard, [steps, min(batch_size, examples)]; −1 pads a smaller batch.
    """
    width = min(batch_size, examples)
    per_epoch = -(-examples // batch_size)
    epochs = -(-steps // per_epoch)
    plan = np.full((epochs, per_epoch * width), -1, dtype=np.int64)
    for epoch in range(epochs):
        plan[epoch, :examples] = rng.permutation(examples) if per_epoch > 1 else np.arange(examples)
    return plan.reshape(epochs * per_epoch, width)[:steps]


def plan_poisson_batches(
    examples: int, probability: float, steps: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draws the examples of each of a client's training steps: every example with the same probability.

    Args:
        examples: The number of examples of the client's shard.
        probability: q, with which an example takes part in a step.
        steps: The number of steps. Fewer steps give the first rows of the same plan.
        rng: Draws them.

    Returns:
        Indices into the shard, [steps, largest draw]; −1 pads a smaller draw. A draw may be empty.
    """
    drawn = [np.flatnonzero(rng.random(examples) < probability) for _ in range(steps)]
    plan = np.full((steps, max(map(len, drawn))), -1, dtype=np.int64)
    for step, index in enumerate(drawn):
        plan[step, : len(index)] = index
    return plan


def compute_padded_batch_size(examples: int, batch_size: int) -> int:
    """Returns B, the padded batch size of a group whose largest shard has ``examples`` examples.

    It is ``batch_size``, or a smaller power of two. Groups of different clients therefore share few shapes.
    """
    return min(batch_size, 1 << max(examples - 1, 0).bit_length())


class GroupShape(NamedTuple):
    """The shape of a client group's batches."""

    height: int  # C, the number of clients
    width: int  # B, the largest number of examples per step


@dataclass(frozen=True, slots=True)
class Batch:
    """The examples on which a client group trains in one step: C clients, each padded to B examples."""

    x: Tensor  # [C, B, …]
    y: Tensor  # [C, B]
    weights: Tensor  # [C, B] 1/B_i for the B_i real examples of client i, 0 for padding


class ResidentShards:
    """Clients' shards on a device, ready to gather batches from. On the CPU they share the memory of ``shards``."""

    def __init__(self, shards: Shards, device: torch.device) -> None:
        self._shards = shards
        self._device = device
        self._x = on_device(shards.examples.x, device)
        self._y = on_device(shards.examples.y, device)

    def sizes(self, client_ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """Returns the number of examples n_i of each of these clients, [C]."""
        return self._shards.rows(client_ids)[1]

    def plan(
        self,
        client_ids: Sequence[int],
        steps: npt.NDArray[np.int64],
        batch_size: int,
        seed: int,
        round_index: int,
        shape: GroupShape | None = None,
    ) -> "BatchPlan":
        """Plans the batches of a client group for one round.

        Args:
            client_ids: The clients of the group, C of them.
            steps: The number of local steps of each client, [C].
            batch_size: The number of examples per step.
            seed: The seed of the experiment.
            round_index: The round, from 0.
            shape: C and B of the plan, which add empty rows. None: the number of clients, and the batch size that the
                largest of them needs.
        """
        sizes = self.sizes(client_ids)
        if shape is None:
            shape = GroupShape(len(client_ids), compute_padded_batch_size(int(sizes.max()), batch_size))
        index = np.full((int(steps.max()), *shape), -1)
        for row, (client_id, examples, taken) in enumerate(zip(client_ids, sizes, steps, strict=True)):
            rng = generator(seed, Purpose.BATCHES, round_index=round_index, client_id=client_id)
            batches = plan_client_batches(int(examples), batch_size, int(taken), rng)
            index[: len(batches), row, : batches.shape[1]] = batches
        plan, transform = self._build_plan(client_ids, index), self._shards.transform
        if transform is None or transform.augmentation is None:
            return plan
        moves = np.zeros((*index.shape, 3), dtype=np.int64)
        for row, (client_id, examples, taken) in enumerate(zip(client_ids, sizes, steps, strict=True)):
            rng = generator(seed, Purpose.AUGMENTATION, round_index=round_index, client_id=client_id)
            width = min(batch_size, int(examples))
            moves[: int(taken), row, :width] = transform.augmentation.draw_moves(int(taken), width, rng)
        return replace(plan, moves=on_device(moves, self._device))

    def plan_poisson(
        self, client_id: int, probability: float, steps: int, seed: int, round_index: int, rng: np.random.Generator
    ) -> "BatchPlan":
        """Plans the batches of one client for one round, drawn by Poisson sampling.

        Args:
            client_id: The client.
            probability: q, with which each of its examples takes part in a step.
            steps: K, the number of local steps.
            seed: The seed of the experiment, for augmentation.
            round_index: The round, from 0.
            rng: Draws the examples.
        """
        (examples,) = self.sizes((client_id,))
        index = plan_poisson_batches(int(examples), probability, steps, rng)
        plan, transform = self._build_plan((client_id,), index[:, None]), self._shards.transform
        if transform is None or transform.augmentation is None:
            return plan
        moving = generator(seed, Purpose.AUGMENTATION, round_index=round_index, client_id=client_id)
        moves = np.empty((*index.shape, 3), dtype=np.int64)
        moves[:] = transform.augmentation.draw_moves(steps, index.shape[1], moving)
        return replace(plan, moves=on_device(moves[:, None], self._device))

    def _build_plan(self, client_ids: Sequence[int], index: npt.NDArray[np.int64]) -> "BatchPlan":
        """Builds the plan from the indices into each client's shard, [K, C, B], with −1 for padding."""
        real = index >= 0
        starts = np.zeros(index.shape[1], dtype=np.int64)
        starts[: len(client_ids)] = self._shards.rows(client_ids)[0]
        absolute = np.where(real, index, 0) + starts[:, None]
        counts = real.sum(axis=-1)
        shares = (1 / np.maximum(counts, 1)).astype(np.float32)
        return BatchPlan(
            self._x,
            self._y,
            on_device(absolute, self._device),
            on_device(real * shares[:, :, None], self._device),
            counts,
            self._shards.transform,
        )


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The batches of one client group in one round: K steps, C clients, at most B examples per client and step.

    The plan holds indices. Each call of ``batch`` or ``unpadded_batch`` gathers the examples of one step.
    """

    x: Tensor  # the inputs of all clients of the shards, [N, …]
    y: Tensor  # their labels, [N]
    index: Tensor  # [K, C, B] rows of x
    weights: Tensor  # [K, C, B] as in Batch
    counts: npt.NDArray[np.int64]  # [K, C] examples that are not padding
    transform: Transform | None = None
    moves: Tensor | None = None  # [K, C, B, 3] see transforms.Moves; None without augmentation
    keys: Tensor | None = None  # [K, C, 1] of the random numbers of layers; None without

    def with_zeros(self) -> "BatchPlan":
        """Returns a plan of the same shapes whose inputs and labels are all zero, to warm up a model."""
        x, y = torch.zeros_like(self.x[:1]), torch.zeros_like(self.y[:1])
        return replace(self, x=x, y=y, index=torch.zeros_like(self.index))

    def batch(self, step: int) -> Batch:
        """Gathers the client group's batch of a step, from 0, padded to B."""
        index = self.index[step]
        flat = index.reshape(-1)
        x = gather_inputs(self.x, flat, self.transform, None if self.moves is None else self.moves[step].view(-1, 3))
        y = self.y.index_select(0, flat).view(index.shape)
        return Batch(x.view(*index.shape, *x.shape[1:]), y, self.weights[step])

    def unpadded_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Gathers the batch of the only client of a group of one, without padding: x [B_i, …], y [B_i]."""
        index = self.index[step, 0, : int(self.counts[step, 0])]
        moves = None if self.moves is None else self.moves[step, 0, : len(index)]
        return gather_inputs(self.x, index, self.transform, moves), self.y.index_select(0, index)


def gather_inputs(x: Tensor, index: Tensor, transform: Transform | None, moves: Tensor | None) -> Tensor:
    """Gathers the rows ``index`` [n] of x as a model's inputs: normalized, and augmented by ``moves`` [n, 3]."""
    x = x.index_select(0, index)
    if transform is None:
        return x
    x = transform.normalize(x)
    return x if moves is None else transform.augment(x, moves)
