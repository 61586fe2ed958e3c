"""The Ray actor that trains and scores clients."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import ray
import torch

from fednar_ray.core.exits import exits_as_errors
from fednar_ray.core.file_rows import identify_machine
from fednar_ray.core.freed_memory import keep_freed_memory
from fednar_ray.core.messages import (
    Broadcast,
    ClientMetrics,
    EvalParams,
    GroupTask,
    GroupUpdate,
    Scores,
    ScoringTask,
    TermTask,
)
from fednar_ray.core.metric_sums import MetricSums
from fednar_ray.data.examples import Examples, Shards
from fednar_ray.data.files import ShardFile
from fednar_ray.execution.actor_info import ActorInfo
from fednar_ray.execution.devices import check_device, choose_device
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.scoring import Offsets, Scorer
from fednar_ray.federated.training_plan import TrainingPlan
from fednar_ray.secure.messages import MaskedBroadcast, MaskedUpdate, Reveal, UnmaskRequest, UnmaskTask, Withheld

if TYPE_CHECKING:
    from fednar_ray.federated.masking_trainer import MaskingTrainer


class TrainingActor:
    """Trains and scores for one run at a time. It can be lost at any time."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self._trainer: GroupTrainer | None = None
        self._scorer: Scorer | None = None
        self._masking: MaskingTrainer | None = None

    def get_info(self) -> ActorInfo:
        """Returns the node, the process and the GPUs that Ray gave this actor."""
        context = ray.get_runtime_context()
        gpus = tuple(context.get_accelerator_ids().get("GPU", ()))
        return ActorInfo(context.get_node_id(), os.getpid(), gpus, identify_machine())

    def prepare(
        self,
        plan: TrainingPlan,
        shards: Shards | ShardFile,
        splits: Mapping[str, Examples],
        warm_up: tuple[int, ...],
        offsets: Mapping[str, Offsets] | None = None,
    ) -> ActorInfo:
        """Prepares the actor for a run, and warms up.

        Args:
            plan: What to train, the same in every round.
            shards: The training examples of the clients that this actor may train, or the file of its one client,
                which is read here, on the actor's node.
            splits: The held-out examples by the name of the split; ignored if ``shards`` is a file.
            warm_up: The clients to warm up with: as many as a client group of the run has.
            offsets: Where each client's part of a split starts and ends, [N + 1] by the name of the split.

        Returns:
            Where the actor lives.

        Raises:
            DeviceError: Ray assigned a GPU that torch cannot use, or that does not compute in the run's precision.
            DataError: The file cannot be read, or has changed.
        """
        if isinstance(shards, ShardFile):
            shards, splits = shards.load()
        info = self.get_info()
        device = torch.device(choose_device(info.gpus, torch.cuda.device_count()))
        check_device(device, plan.precision)
        self._trainer = GroupTrainer(plan, shards, device)
        changed = plan.changed_buffers
        self._scorer = Scorer(
            plan.model, shards, splits, device, plan.task, offsets, plan.seed, changed, plan.precision
        )
        self._trainer.warm_up(warm_up)
        if plan.secure is None:
            return info
        from fednar_ray.federated.masking_trainer import MaskingTrainer  # imports ``cryptography``

        (client_id,) = warm_up
        self._masking = MaskingTrainer(self._trainer, plan.secure, (client_id,))
        return replace(info, public_key=self._masking.get_public_key(client_id))

    def train(self, broadcast: Broadcast, task: GroupTask) -> GroupUpdate:
        """Runs the local round of one client group, unless ``measure`` already did."""
        trainer = self._get_trainer()
        with exits_as_errors():
            return trainer.train(broadcast, task)

    def train_term(self, broadcast: Broadcast, task: TermTask) -> GroupUpdate:
        """Runs the local rounds of several client groups, and returns the sum of their updates."""
        trainer = self._get_trainer()
        with exits_as_errors():
            return trainer.train_term(broadcast, task)

    def measure(self, broadcast: Broadcast, task: GroupTask) -> ClientMetrics:
        """Runs the local round of one client group and returns its metrics alone. The rest is held for ``train``."""
        trainer = self._get_trainer()
        with exits_as_errors():
            return trainer.measure(broadcast, task)

    def train_masked(self, request: MaskedBroadcast, task: GroupTask) -> MaskedUpdate | Withheld:
        """Runs the local round of one client, and returns its update under masks."""
        self._get_trainer()
        assert self._masking is not None
        with exits_as_errors():
            return self._masking.train(request, task)

    def reveal(self, request: UnmaskRequest, task: UnmaskTask) -> Reveal:
        """Returns the shares that unmask the sum of a round."""
        assert self._masking is not None
        return self._masking.reveal(request, task)

    def forget(self) -> None:
        """Deletes the client's keys: the run has ended."""
        if self._masking is not None:
            self._masking.forget()

    def score(self, eval_params: EvalParams, task: ScoringTask) -> Scores | MetricSums:
        """Scores a block of examples."""
        assert self._scorer is not None
        with exits_as_errors():
            return self._scorer.score(eval_params, task)

    def _get_trainer(self) -> GroupTrainer:
        """Returns the trainer. The scorer frees its copy of the model meanwhile."""
        assert self._trainer is not None
        assert self._scorer is not None
        self._scorer.forget()
        return self._trainer

    def release(self) -> None:
        """Drops the run's shards and buffers."""
        self._trainer = self._scorer = self._masking = None
