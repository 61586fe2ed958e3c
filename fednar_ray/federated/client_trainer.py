"""Trains one client group for K local steps: a broadcast and a task go in, an update comes out. No Ray here.

The same class runs in the driver's process and inside an actor, so a client group trains the same in every placement.
"""

import time
from collections.abc import Hashable, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.core.buffers import check_unchanged, find_buffer_exclusion
from fednar_ray.core.exits import exits_as_errors
from fednar_ray.core.flat_params import FloatVector, ParameterLayout, flatten_buffers, load_buffers
from fednar_ray.core.messages import Broadcast, ClientMetrics, GroupTask, GroupUpdate, TermTask
from fednar_ray.core.random import Purpose, seed_global_generators, seed_sequence, torch_seed
from fednar_ray.core.threads import use_one_thread
from fednar_ray.core.transfers import on_device
from fednar_ray.data.batches import BatchPlan, ResidentShards
from fednar_ray.data.examples import Shards
from fednar_ray.federated.addressed_draws import build_keys
from fednar_ray.federated.compiled_steps import CompiledSteps
from fednar_ray.federated.gradients import GroupGradient, SingleGradient
from fednar_ray.federated.group_update import build_update
from fednar_ray.federated.held_groups import HeldGroups
from fednar_ray.federated.local_steps import RowScalars, StepSums, build_correction, take_local_steps
from fednar_ray.federated.precision import use_precision
from fednar_ray.federated.private_gradient import PrivateGradient
from fednar_ray.federated.round_vectors import RoundVectors
from fednar_ray.federated.trained_group import StartedGroup, Trained, finish_group
from fednar_ray.federated.training_plan import TrainingPlan
from fednar_ray.privacy.examples import ExamplePrivacy
from fednar_ray.privacy.keys import compute_context

EXAMPLE_GRADIENTS = 2**26
"""How many numbers the gradients of single examples may have that are in memory at a time: 256 MB."""


class GroupTrainer:
    """Trains client groups on one device. Its memory, models and traces are reused from round to round."""

    def __init__(self, plan: TrainingPlan, shards: Shards, device: torch.device) -> None:
        self._plan = plan
        self._layout = ParameterLayout.of(plan.model)
        self._device = device
        self._shards = ResidentShards(shards, device)
        self._vectors = self._build_vectors()
        constant = (item for item in plan.model.named_buffers() if item[0] not in plan.changed_buffers)
        self._constant_buffers = {name: buffer.detach().to(device, copy=True) for name, buffer in constant}
        self._gradients: dict[int, SingleGradient | GroupGradient | PrivateGradient] = {}
        self._compiled: CompiledSteps | None = None
        self.held = HeldGroups()

    def share(self, plan: TrainingPlan) -> "GroupTrainer":
        """Returns a trainer for another plan of the same model. Both use the same data and traced programs."""
        assert ParameterLayout.of(plan.model) == self._layout, "another model"
        other = copy(self)
        other._plan, other._compiled, other.held = plan, None, HeldGroups()
        other._vectors = other._build_vectors()
        if plan.precision != self._plan.precision:
            other._gradients = {}
        return other

    def _build_vectors(self) -> RoundVectors:
        return RoundVectors(self._layout.dimension, self._device, in_place=self._plan.correction.is_pure)

    @property
    def plan(self) -> TrainingPlan:
        """The settings that are the same in every round."""
        return self._plan

    @property
    def device(self) -> torch.device:
        """Where clients are trained."""
        return self._device

    @property
    def constant_buffers(self) -> Mapping[str, Tensor]:
        """The buffers that training must not change, by name."""
        return self._constant_buffers

    @property
    def matrix_key(self) -> Hashable:
        """Equal for trainers whose clients can be rows of one matrix; None if they must train by themselves."""
        plan = self._plan
        if plan.program is not None or plan.changed_buffers or plan.examples is not None:
            return None
        return id(plan.model), id(plan.task), id(self._shards), plan.regularizer, plan.precision

    def build_gradient(self, rows: int) -> GroupGradient:
        """Builds the gradient of ``rows`` clients. The trainer does not keep it."""
        plan = self._plan
        return GroupGradient(plan.model, self._layout, plan.task, self._device, rows, plan.precision)

    def compute_first_gradient(self, group: StartedGroup) -> tuple[Tensor, Tensor]:
        """Returns gradients [C, d] and losses [C] of a group's first step, as its own training computes them."""
        gradient = self._get_gradient(len(group.steps))
        gradient.params.copy_(group.local_round.global_params)
        return gradient(group.batches, 0)

    def warm_up(self, client_ids: tuple[int, ...]) -> None:
        """Computes one gradient and drops it, because a process's first gradient takes over a second.

        Its examples are zeros. Errors are ignored here; training raises them again. So no client can keep a trainer
        from starting. Compiled steps are compiled, or loaded.
        """
        if not self._shards.sizes(client_ids).any():
            return
        steps = np.ones(len(client_ids), dtype=np.int64)
        if self._plan.program is not None:
            with use_one_thread(), torch.no_grad(), use_precision(self._plan.precision, self._device):
                self._get_compiled().prepare(self._plan_batches(client_ids, steps, 0))
            return
        fork, global_ = torch.random.fork_rng(devices=self._list_generator_devices()), seed_global_generators()
        precision = use_precision(self._plan.precision, self._device)
        with use_one_thread(), torch.no_grad(), fork, global_, precision, suppress(Exception), exits_as_errors():
            self._get_gradient(len(client_ids))(self._plan_batches(client_ids, steps, 0).with_zeros(), 0)

    def train(self, broadcast: Broadcast, task: GroupTask, before: GroupUpdate | None = None) -> GroupUpdate:
        """Trains one client group and returns its update. A group that ``measure`` holds is not trained again.

        Args:
            broadcast: The round.
            task: The group.
            before: The update of the groups before this one in its term. This one is added to it, in its memory.
        """
        held = self.held.take(broadcast.round_index, task.client_ids)
        with use_one_thread(), torch.no_grad(), use_precision("float32", self._device):
            trained = self._train(broadcast, task) if held is None else held
            return build_update(self._plan, trained, task, broadcast.norm_bound, before)

    def train_term(self, broadcast: Broadcast, task: TermTask) -> GroupUpdate:
        """Trains the client groups of a term one after the other, and returns the sum of their updates."""
        update = None
        for group in task.groups:
            update = self.train(broadcast, group, update)
        assert update is not None
        return update

    def train_rows(self, broadcast: Broadcast, task: GroupTask) -> Trained:
        """Trains one client group and returns each client's row. The next group overwrites them."""
        with use_one_thread(), torch.no_grad(), use_precision("float32", self._device):
            return self._train(broadcast, task)

    def measure(self, broadcast: Broadcast, task: GroupTask) -> ClientMetrics:
        """Trains one client group and returns its metrics. The rest is held for ``train`` while there is memory."""
        held = self.held.find(broadcast.round_index, task.client_ids)
        if held is not None:
            return held.metrics
        with use_one_thread(), torch.no_grad():
            trained = self._train(broadcast, task)
            self.held.add(broadcast.round_index, trained)
        return trained.metrics

    def _list_generator_devices(self) -> list[torch.device]:
        """Returns the devices, besides the CPU, whose random generators training uses."""
        return [self._device] if self._device.type == "cuda" else []

    def _seed_generators(self, seed: int) -> None:
        """Seeds the generators that training uses. ``torch.manual_seed`` is slow: it thinks of absent devices, too."""
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _train(self, broadcast: Broadcast, task: GroupTask) -> Trained:
        """Trains a group. Random numbers without an address come from generators seeded at its first client's."""
        start = time.perf_counter()
        if self._plan.program is not None:  # nothing in a compiled step draws from a generator
            with use_precision(self._plan.precision, self._device):
                return self._train_steps(broadcast, task, start)
        where = {"round_index": broadcast.round_index, "client_id": task.client_ids[0]}
        address = seed_sequence(self._plan.seed, Purpose.LAYERS, **where)
        with torch.random.fork_rng(devices=self._list_generator_devices()), seed_global_generators(address):
            self._seed_generators(torch_seed(self._plan.seed, Purpose.LAYERS, **where))
            try:
                if len(task.client_ids) == 1:
                    # every client starts with the module's given attributes
                    self._get_gradient(1).given.restore(address)
                with use_precision(self._plan.precision, self._device):
                    return self._train_steps(broadcast, task, start)
            except BaseException:
                self._gradients.pop(len(task.client_ids), None)  # memory may have run out
                raise

    def _train_steps(self, broadcast: Broadcast, task: GroupTask, start: float) -> Trained:
        compiled = self._plan.program is not None
        gradient = self._get_compiled() if compiled else self._get_gradient(len(task.client_ids))
        group = self.start(broadcast, task)
        assert self._plan.examples is None or isinstance(gradient, PrivateGradient), "examples without their noise"
        gradient.params.copy_(group.local_round.global_params)
        if broadcast.buffers is not None:
            load_buffers(gradient.module, broadcast.buffers, self._plan.changed_buffers)
        batches, steps, scalars = group.batches, group.steps, group.scalars
        if isinstance(gradient, CompiledSteps):
            sums = gradient.take(batches, steps, group.local_round, scalars, verify=task.verify)
        else:
            if task.verify and isinstance(gradient, GroupGradient):
                gradient.verify(batches, 0)
            correct = build_correction(self._plan.correction, group.local_round, gradient.params)
            regularizer, own = self._plan.regularizer, RowScalars.of(scalars)
            sums = StepSums.of(take_local_steps(regularizer, gradient, batches, steps, correct, own), steps)
        check_unchanged(gradient.module, self._constant_buffers)
        changed = self._plan.changed_buffers
        buffers = flatten_buffers(gradient.module, changed) if changed else None
        exclusion = find_buffer_exclusion(gradient.module, changed)
        # in place: the next client group loads its own parameters
        params = gradient.params[: len(steps)]
        seconds = time.perf_counter() - start
        return finish_group(self._plan, group, params, sums, seconds, buffers=buffers, exclusion=exclusion)

    def start(self, broadcast: Broadcast, task: GroupTask, batches: BatchPlan | None = None) -> StartedGroup:
        """Returns what the local steps of a client group start from. The next ``start`` overwrites its vectors.

        Args:
            broadcast: The round.
            task: The group.
            batches: Its batches, if another trainer of the same seed and workload has planned them already.
        """
        examples = self._shards.sizes(task.client_ids)
        steps = self._plan.workload.steps(examples)
        return StartedGroup(
            task=task,
            scalars=broadcast.scalars,
            examples=examples,
            steps=steps,
            local_round=self._vectors.load(broadcast, task),
            batches=batches or self._plan_batches(task.client_ids, steps, broadcast.round_index, broadcast.parameters),
        )

    def _plan_batches(
        self,
        client_ids: tuple[int, ...],
        steps: npt.NDArray[np.int64],
        round_index: int,
        parameters: FloatVector | None = None,
    ) -> BatchPlan:
        """Plans the batches of a group, with the keys of the layers' random numbers if these have addresses."""
        plan, shape = self._plan, self._plan.program
        if plan.examples is None:
            batches = self._shards.plan(client_ids, steps, plan.workload.batch_size, plan.seed, round_index, shape)
        else:
            start = b"" if parameters is None else compute_context(parameters)
            batches = self._draw_batches(plan.examples, client_ids, int(steps.max()), round_index, start)
        if not plan.addressed:
            return batches
        height = None if shape is None else shape.height
        keys = build_keys(plan.seed, round_index, client_ids, int(steps.max()), height)
        return replace(batches, keys=on_device(keys, self._device))

    def _draw_batches(
        self, privacy: ExamplePrivacy, client_ids: tuple[int, ...], steps: int, round_index: int, context: bytes
    ) -> BatchPlan:
        """Draws the batches of a client whose examples are protected, and gives its gradient the noise of the round."""
        ((client_id,), (examples,)) = client_ids, self._shards.sizes(client_ids).tolist()
        probability = privacy.get_sampling_probability(examples)
        gradient = self._get_gradient(1)
        assert isinstance(gradient, PrivateGradient)
        noise = privacy.build_generator(Purpose.EXAMPLE_NOISE, round_index, client_id, context)
        gradient.begin(noise, privacy.noise_multipliers[client_id], probability * examples)
        draws = privacy.build_generator(Purpose.EXAMPLES, round_index, client_id, context)
        return self._shards.plan_poisson(client_id, probability, steps, self._plan.seed, round_index, draws)

    def _get_compiled(self) -> CompiledSteps:
        if self._compiled is None:
            self._compiled = CompiledSteps(self._plan, self._layout, self._device)
        return self._compiled

    def _get_gradient(self, group_size: int) -> SingleGradient | GroupGradient | PrivateGradient:
        if group_size not in self._gradients:
            self._gradients[group_size] = self._build_single() if group_size == 1 else self.build_gradient(group_size)
        return self._gradients[group_size]

    def _build_single(self) -> SingleGradient | PrivateGradient:
        plan = self._plan
        if plan.examples is None:
            return SingleGradient(plan.model, self._layout, plan.task, self._device, plan.precision)
        return PrivateGradient(
            plan.model,
            self._layout,
            plan.task,
            self._device,
            norm=plan.examples.norm,
            physical_batch=max(1, min(plan.workload.batch_size, EXAMPLE_GRADIENTS // self._layout.dimension)),
            precision=plan.precision,
        )
