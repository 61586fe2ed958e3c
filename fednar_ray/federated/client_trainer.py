"""Trains one client group for K local steps: a broadcast and a task go in, an update comes out. No Ray here.

The same class runs in the driver's process and inside an actor, so a client group trains the same in every placement.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.algorithms.client_corrections import LocalRound
from fednar_ray.core.buffers import check_unchanged, find_buffer_exclusion
from fednar_ray.core.exits import exits_as_errors
from fednar_ray.core.flat_params import BufferVector, FloatVector, ParameterLayout, flatten_buffers, load_buffers
from fednar_ray.core.messages import Broadcast, ClientMetrics, GroupTask, GroupUpdate
from fednar_ray.core.random import Purpose, seed_global_generators, seed_sequence, torch_seed
from fednar_ray.core.step_norms import summarize_norms
from fednar_ray.core.threads import use_one_thread
from fednar_ray.core.transfers import StagingBuffer, as_tensor, is_aligned, on_device
from fednar_ray.data.batches import BatchPlan, ResidentShards
from fednar_ray.data.examples import Shards
from fednar_ray.federated.addressed_draws import build_keys
from fednar_ray.federated.compiled_steps import CompiledSteps
from fednar_ray.federated.gradients import GroupGradient, SingleGradient
from fednar_ray.federated.local_steps import take_local_steps, to_column
from fednar_ray.federated.precision import use_precision
from fednar_ray.federated.training_plan import TrainingPlan

HELD_BYTES = 2**30
"""Maximum number of bytes that a trainer holds between the two phases of a round. Other groups are trained twice."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """A client group after its local steps."""

    metrics: ClientMetrics
    delta: Tensor  # [C, d]
    buffers: BufferVector | None
    local_round: LocalRound

    @property
    def nbytes(self) -> int:
        """The memory that it takes, in bytes."""
        return self.delta.nbytes + self.local_round.state.nbytes


class GroupTrainer:
    """Trains client groups on one device. Its memory, models and traces are reused from round to round."""

    def __init__(self, plan: TrainingPlan, shards: Shards, device: torch.device) -> None:
        self._plan = plan
        self._layout = ParameterLayout.of(plan.model)
        self._device = device
        self._shards = ResidentShards(shards, device)
        self._global_params = StagingBuffer(self._layout.dimension, device)
        self._shared: dict[str, StagingBuffer] = {}
        constant = (item for item in plan.model.named_buffers() if item[0] not in plan.changed_buffers)
        self._constant_buffers = {name: buffer.detach().to(device, copy=True) for name, buffer in constant}
        self._gradients: dict[int, SingleGradient | GroupGradient] = {}
        self._compiled: CompiledSteps | None = None
        self._held: dict[tuple[int, tuple[int, ...]], _Trained] = {}

    def adopt(self, plan: TrainingPlan) -> None:
        """Replaces the plan by another one for the same model and shards. Loaded data and traced programs are kept."""
        if plan is self._plan:
            return
        assert ParameterLayout.of(plan.model) == self._layout, "another model"
        if plan.precision != self._plan.precision:
            self._gradients.clear()
        self._plan = plan
        self._compiled = None  # its program contains the correction and the regularizer
        self._held.clear()

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

    def train(self, broadcast: Broadcast, task: GroupTask) -> GroupUpdate:
        """Trains one client group and returns its update. A group that ``measure`` holds is not trained again."""
        held = self._held.pop((broadcast.round_index, task.client_ids), None)
        with use_one_thread(), torch.no_grad(), use_precision("float32", self._device):
            return self._build_update(self._train(broadcast, task) if held is None else held, task)

    def measure(self, broadcast: Broadcast, task: GroupTask) -> ClientMetrics:
        """Trains one client group and returns its metrics. The rest is held for ``train`` while there is memory."""
        self._held = {key: held for key, held in self._held.items() if key[0] == broadcast.round_index}
        with use_one_thread(), torch.no_grad():
            trained = self._train(broadcast, task)
            if sum(held.nbytes for held in self._held.values()) + trained.nbytes <= HELD_BYTES:
                key = broadcast.round_index, task.client_ids
                # a copy: the next client group trains in the same memory
                self._held[key] = replace(trained, delta=trained.delta.clone())
        return trained.metrics

    def _list_generator_devices(self) -> list[torch.device]:
        """Returns the devices, besides the CPU, whose random generators training uses."""
        return [self._device] if self._device.type == "cuda" else []

    def _seed_generators(self, seed: int) -> None:
        """Seeds the generators that training uses. ``torch.manual_seed`` is slow: it thinks of absent devices, too."""
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _train(self, broadcast: Broadcast, task: GroupTask) -> _Trained:
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

    def _train_steps(self, broadcast: Broadcast, task: GroupTask, start: float) -> _Trained:
        compiled = self._plan.program is not None
        gradient = self._get_compiled() if compiled else self._get_gradient(len(task.client_ids))
        global_params = self._stage_in(self._global_params, broadcast.parameters)
        gradient.params.copy_(global_params)
        if broadcast.buffers is not None:
            load_buffers(gradient.module, broadcast.buffers, self._plan.changed_buffers)
        examples = self._shards.sizes(task.client_ids)
        steps = self._plan.workload.steps(examples)
        local_round = self._build_local_round(broadcast, task, global_params)
        batches = self._plan_batches(task.client_ids, steps, broadcast.round_index)
        if isinstance(gradient, CompiledSteps):
            sums = gradient.take(batches, steps, local_round, broadcast.scalars, verify=task.verify)
        else:
            if task.verify and isinstance(gradient, GroupGradient):
                gradient.verify(batches, 0)
            sums = take_local_steps(self._plan, gradient, batches, steps, local_round, broadcast.scalars)
        check_unchanged(gradient.module, self._constant_buffers)
        # in place: the next client group loads its own parameters
        delta = gradient.params[: len(steps)].sub_(global_params)
        self._apply_attacks(task.client_ids, delta)
        changed = self._plan.changed_buffers
        buffers = flatten_buffers(gradient.module, changed) if changed else None
        norms = torch.linalg.vector_norm(delta, dim=-1).cpu().numpy().astype(np.float64)
        included = np.isfinite(norms) & np.isfinite(sums.loss)
        exclusion = find_buffer_exclusion(gradient.module, changed)
        if exclusion is not None:
            included = np.zeros_like(included)
        metrics = ClientMetrics(
            client_ids=task.client_ids,
            included=included,
            examples=examples,
            steps=steps,
            clipped_steps=sums.clipped.astype(np.int64),
            effective_weight_decay=sums.decay / steps,
            step_norms=sums.norm / steps,
            norm_points=summarize_norms(sums.norms, steps),
            losses=sums.loss / steps,
            delta_norms=norms,
            train_seconds=time.perf_counter() - start,
            exclusions={} if exclusion is None else dict.fromkeys(task.client_ids, exclusion),
        )
        return _Trained(metrics, delta, buffers, local_round)

    def _apply_attacks(self, client_ids: tuple[int, ...], delta: Tensor) -> None:
        for row, client_id in zip(delta, client_ids, strict=True):
            if client_id in self._plan.attack_factors:
                row *= self._plan.attack_factors[client_id]

    def _plan_batches(self, client_ids: tuple[int, ...], steps: npt.NDArray[np.int64], round_index: int) -> BatchPlan:
        """Plans the batches of a group, with the keys of the layers' random numbers if these have addresses."""
        plan, shape = self._plan, self._plan.program
        batches = self._shards.plan(client_ids, steps, plan.workload.batch_size, plan.seed, round_index, shape)
        if not plan.addressed:
            return batches
        height = None if shape is None else shape.height
        keys = build_keys(plan.seed, round_index, client_ids, int(steps.max()), height)
        return replace(batches, keys=on_device(keys, self._device))

    def _get_compiled(self) -> CompiledSteps:
        if self._compiled is None:
            self._compiled = CompiledSteps(self._plan, self._layout, self._device)
        return self._compiled

    def _get_gradient(self, group_size: int) -> SingleGradient | GroupGradient:
        if group_size not in self._gradients:
            single, group = SingleGradient, GroupGradient
            plan = (self._plan.model, self._layout, self._plan.task, self._device)
            precision = self._plan.precision
            self._gradients[group_size] = (
                single(*plan, precision) if group_size == 1 else group(*plan, group_size, precision)
            )
        return self._gradients[group_size]

    def _build_local_round(self, broadcast: Broadcast, task: GroupTask, global_params: Tensor) -> LocalRound:
        return LocalRound(
            global_params=global_params,
            shared={name: self._stage(name, vector) for name, vector in broadcast.shared.items()},
            state=self._load_states(task, global_params),
            local_lr=broadcast.scalars.local_lr,
        )

    def _stage(self, name: str, vector: FloatVector) -> Tensor:
        if name not in self._shared:
            self._shared[name] = StagingBuffer(self._layout.dimension, self._device)
        return self._stage_in(self._shared[name], vector)

    def _stage_in(self, buffer: StagingBuffer, vector: FloatVector) -> Tensor:
        """Returns a vector for the client correction: a copy, unless it may lie where it is."""
        return as_tensor(vector) if self._may_read_in_place(vector) else buffer.fill(vector)

    def _may_read_in_place(self, vector: FloatVector) -> bool:
        """Returns whether the client correction may read a vector where it lies, such as in Ray's object store."""
        return self._device.type == "cpu" and self._plan.correction.is_pure and is_aligned(vector)

    def _load_states(self, task: GroupTask, global_params: Tensor) -> Tensor:
        """Returns the clients' states [C, d]; [C, 0] if the correction keeps none."""
        if task.states is None:
            return global_params.new_empty(len(task.client_ids), 0)
        if len(task.states) == 1 and task.states[0] is not None and self._may_read_in_place(task.states[0]):
            return as_tensor(task.states[0]).view(1, -1)
        states = global_params.new_zeros(len(task.client_ids), len(global_params))
        for row, kept in zip(states, task.states, strict=True):
            if kept is not None:
                row.copy_(on_device(kept, self._device))
        return states

    def _build_update(self, trained: _Trained, task: GroupTask) -> GroupUpdate:
        """Returns the group's sums over its included clients."""
        metrics, delta = trained.metrics, trained.delta
        if task.factors is not None:
            factors = np.array(task.factors)
            included = metrics.included & (factors > 0)
            metrics = replace(metrics, included=included, delta_norms=metrics.delta_norms * factors)
        mask = torch.from_numpy(metrics.included).to(self._device).view(-1, 1)
        if not metrics.included.all():
            delta = delta.where(mask, 0.0)
        weights = to_column(
            metrics.examples if self._plan.weighted else np.ones_like(metrics.examples), self._device
        ).view(-1)
        states = self._compute_states(trained, delta, mask)
        buffers = trained.buffers
        return GroupUpdate(
            metrics=metrics,
            weighted_delta=(self._apply_factors(weights, task) @ delta).cpu().numpy(),
            weighted_buffers=None if buffers is None else _weight_buffers(buffers, metrics, float(weights[0])),
            states=None if states is None else states.cpu().numpy(),
            shared_changes={} if states is None else self._sum_shared_changes(trained, states),
            # copied, since on the CPU the rows are a view of the memory in which the next client group trains
            rows=delta.cpu().numpy().copy() if task.return_rows else None,
        )

    def _apply_factors(self, weights: Tensor, task: GroupTask) -> Tensor:
        """Returns each client's weight times its factor."""
        if task.factors is None:
            return weights
        return weights * on_device(np.array(task.factors, dtype=np.float32), self._device)

    def _compute_states(self, trained: _Trained, delta: Tensor, mask: Tensor) -> Tensor | None:
        """Returns the clients' new states [C, d]. A client that is not in ``mask`` [C, 1] keeps its old one."""
        local_round, next_state = trained.local_round, self._plan.correction.next_state
        if next_state is None:
            return None
        states = next_state(local_round, delta, to_column(trained.metrics.steps, self._device))
        return states if mask.all() else states.where(mask, local_round.state)

    def _sum_shared_changes(self, trained: _Trained, states: Tensor) -> dict[str, FloatVector]:
        """Returns Σ n_i·change_i for every shared vector. An excluded client has kept its state, so its change is 0."""
        examples = to_column(trained.metrics.examples, self._device).view(-1)
        return {
            name: (examples @ vector.change(trained.local_round, states)).cpu().numpy()
            for name, vector in self._plan.correction.shared.items()
        }


def _weight_buffers(buffers: BufferVector, metrics: ClientMetrics, weight: float) -> BufferVector:
    """Returns the buffers' term of the weighted sum; zeros for an excluded client."""
    return buffers * weight if metrics.included[0] else np.zeros_like(buffers)
