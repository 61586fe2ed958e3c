"""K local steps of one client group: a broadcast and a task in, a client group update out.  Torch, and no Ray.

The same class runs in the driver's process and inside an actor, so a placement cannot change a result.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fednar_ray.algorithms.client_corrections import ClientCorrection, LocalRound
from fednar_ray.algorithms.regularizers import Regularizer
from fednar_ray.core.buffers import check_unchanged, find_buffer_exclusion
from fednar_ray.core.exits import exits_as_errors
from fednar_ray.core.flat_params import BufferVector, FloatVector, ParameterLayout, flatten_buffers, load_buffers
from fednar_ray.core.messages import Broadcast, ClientMetrics, GroupTask, GroupUpdate
from fednar_ray.core.random import Purpose, global_generators, seed_sequence, torch_seed
from fednar_ray.core.schedules import Workload
from fednar_ray.core.transfers import StagingBuffer, on_device
from fednar_ray.data.batches import BatchPlan, ResidentShards
from fednar_ray.data.examples import Shards
from fednar_ray.federated.gradients import Gradient, GroupGradient, SingleGradient
from fednar_ray.models.tasks import CLASSIFICATION, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What stays the same in every round; sent to each trainer once."""

    model: nn.Module
    rule: ClientCorrection
    regularizer: Regularizer
    weighted: bool  # sums weigh a client by n_i, else by 1
    workload: Workload
    seed: int
    changed_buffers: tuple[str, ...]  # by name: averaged over clients, which then train one by one; all others stay
    corrupted: Mapping[int, float] = field(default_factory=dict)  # client id → what its update is multiplied by
    task: Task = CLASSIFICATION


HELD_BYTES = 2**30
"""The most that a trainer holds between a round's two phases; client groups beyond it are trained a second time."""


@dataclass(slots=True)
class _MetricSums:
    """What a client group's steps add up to, a number a client [C, 1]."""

    loss: Tensor
    clipped: Tensor
    decay: Tensor
    norm: Tensor


@dataclass(frozen=True, slots=True)
class _Trained:
    """A client group after its local steps."""

    figures: ClientMetrics
    delta: Tensor  # [C, d]
    buffers: BufferVector | None
    local_round: LocalRound

    @property
    def bytes(self) -> int:
        """What holding it takes."""
        return self.delta.nbytes * (1 if self.local_round.state is None else 2)


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside, as in an actor: sums over more threads give other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class GroupTrainer:
    """Trains client groups on one device; its buffers, models and traces last as long as it does."""

    def __init__(self, plan: TrainingPlan, shards: Shards, device: torch.device) -> None:
        self._plan = plan
        self._layout = ParameterLayout.of(plan.model)
        self._device = device
        self._shards = ResidentShards(shards, device)
        self._global_params, self._control = (
            StagingBuffer(self._layout.dimension, device),
            StagingBuffer(self._layout.dimension, device),
        )
        constant = (item for item in plan.model.named_buffers() if item[0] not in plan.changed_buffers)
        self._constant_buffers = {name: buffer.detach().to(device, copy=True) for name, buffer in constant}
        self._gradients: dict[int, SingleGradient | GroupGradient] = {}
        self._held: dict[tuple[int, tuple[int, ...]], _Trained] = {}

    def adopt(self, plan: TrainingPlan) -> None:
        """Take up another plan for the same model and shards: what is loaded, and what was traced, stays."""
        assert ParameterLayout.of(plan.model) == self._layout, "another model"
        self._plan = plan
        self._held.clear()

    def warm_up(self, client_ids: tuple[int, ...]) -> None:
        """Take and drop one gradient of a client group like those to come: a process's first costs over a second.

        Its examples are zeros, and what it raises is left to training: no client can keep a trainer from starting.
        """
        if not self._shards.sizes(client_ids).any():
            return
        steps = np.ones(len(client_ids), dtype=np.int64)
        fork, global_ = torch.random.fork_rng(devices=self._generators()), global_generators()
        with one_thread(), torch.no_grad(), fork, global_, suppress(Exception), exits_as_errors():
            plan = self._shards.plan(client_ids, steps, self._plan.workload.batch_size, 0, 0)
            self._gradient(len(client_ids))(plan.of_zeros(), 0)

    def train(self, broadcast: Broadcast, task: GroupTask) -> GroupUpdate:
        """The local round of one client group; what ``measure`` held of it is not trained again."""
        held = self._held.pop((broadcast.round_index, task.client_ids), None)
        with one_thread(), torch.no_grad():
            return self._update(self._trained(broadcast, task) if held is None else held, task)

    def measure(self, broadcast: Broadcast, task: GroupTask) -> ClientMetrics:
        """The figures of one client group's local round, which is held for ``train`` while there is memory for it."""
        self._held = {key: held for key, held in self._held.items() if key[0] == broadcast.round_index}
        with one_thread(), torch.no_grad():
            trained = self._trained(broadcast, task)
            if sum(held.bytes for held in self._held.values()) + trained.bytes <= HELD_BYTES:
                key = broadcast.round_index, task.client_ids
                self._held[key] = replace(
                    trained, delta=trained.delta.clone()
                )  # the next client group takes its memory
        return trained.figures

    def _generators(self) -> list[torch.device]:
        """The devices, beside the CPU, whose random generators training uses."""
        return [self._device] if self._device.type == "cuda" else []

    def _trained(self, broadcast: Broadcast, task: GroupTask) -> "_Trained":
        """Random layers draw from a generator addressed by the client group."""
        start = time.perf_counter()
        where = {"round_index": broadcast.round_index, "client_id": task.client_ids[0]}
        address = seed_sequence(self._plan.seed, Purpose.LAYERS, **where)
        with torch.random.fork_rng(devices=self._generators()), global_generators(address):
            torch.manual_seed(torch_seed(self._plan.seed, Purpose.LAYERS, **where))
            try:
                self._as_given(len(task.client_ids), address)
                return self._local_steps(broadcast, task, start)
            except BaseException:
                self._gradients.pop(len(task.client_ids), None)  # memory may have run out
                raise

    def _as_given(self, width: int, address: np.random.SeedSequence) -> None:
        """A client that trains alone starts with the module's attributes as they were given."""
        if width == 1:
            self._gradient(1).given.restore(address)

    def _local_steps(self, broadcast: Broadcast, task: GroupTask, start: float) -> "_Trained":
        gradient = self._gradient(len(task.client_ids))
        global_params = self._global_params.fill(broadcast.parameters)
        gradient.params.copy_(global_params)
        if broadcast.buffers is not None:
            load_buffers(gradient.module, broadcast.buffers, self._plan.changed_buffers)
        examples = self._shards.sizes(task.client_ids)
        steps = self._plan.workload.steps(examples)
        local_round = self._local_round(broadcast, task, global_params)
        batches = self._batches(broadcast, task, steps)
        if task.verify and isinstance(gradient, GroupGradient):
            gradient.verify(batches, 0)
        metric_sums = self._descend(gradient, batches, steps, local_round, broadcast)
        check_unchanged(gradient.module, self._constant_buffers)
        delta = gradient.params.sub_(global_params)  # in place: the next client group loads its parameters anew
        self._corrupt(task.client_ids, delta)
        changed = self._plan.changed_buffers
        buffers = flatten_buffers(gradient.module, changed) if changed else None
        norms = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
        usable = torch.isfinite(norms) & torch.isfinite(metric_sums.loss)
        exclusion = find_buffer_exclusion(gradient.module, changed)
        if exclusion is not None:
            usable = torch.zeros_like(usable)
        figures = ClientMetrics(
            client_ids=task.client_ids,
            usable=usable.view(-1).cpu().numpy(),
            examples=examples,
            steps=steps,
            clipped_steps=_numbers(metric_sums.clipped).astype(np.int64),
            effective_weight_decay=_numbers(metric_sums.decay) / steps,
            step_norms=_numbers(metric_sums.norm) / steps,
            losses=_numbers(metric_sums.loss) / steps,
            delta_norms=_numbers(norms),
            train_seconds=time.perf_counter() - start,
            exclusions={} if exclusion is None else dict.fromkeys(task.client_ids, exclusion),
        )
        return _Trained(figures, delta, buffers, local_round)

    def _corrupt(self, client_ids: tuple[int, ...], delta: Tensor) -> None:
        for row, client_id in zip(delta, client_ids, strict=True):
            if client_id in self._plan.corrupted:
                row *= self._plan.corrupted[client_id]

    def _gradient(self, width: int) -> SingleGradient | GroupGradient:
        if width not in self._gradients:
            single, group = SingleGradient, GroupGradient
            plan = (self._plan.model, self._layout, self._plan.task, self._device)
            self._gradients[width] = single(*plan) if width == 1 else group(*plan, width)
        return self._gradients[width]

    def _local_round(self, broadcast: Broadcast, task: GroupTask, global_params: Tensor) -> LocalRound:
        control = None if broadcast.control is None else self._control.fill(broadcast.control)
        state = None
        if task.states is not None:
            state = global_params.new_zeros(len(task.client_ids), len(global_params))
            for row, kept in zip(state, task.states, strict=True):
                if kept is not None:
                    row.copy_(on_device(kept, self._device))
        return LocalRound(
            global_params=global_params, control=control, state=state, local_lr=broadcast.scalars.local_lr
        )

    def _batches(self, broadcast: Broadcast, task: GroupTask, steps: npt.NDArray[np.int64]) -> BatchPlan:
        batch_size, seed = self._plan.workload.batch_size, self._plan.seed
        return self._shards.plan(task.client_ids, steps, batch_size, seed, broadcast.round_index)

    def _descend(
        self,
        gradient: Gradient,
        batches: BatchPlan,
        steps: npt.NDArray[np.int64],
        local_round: LocalRound,
        broadcast: Broadcast,
    ) -> _MetricSums:
        """x ← x − η_t·direction, K_i times for row i."""
        params, scalars = gradient.params, broadcast.scalars
        correct = self._plan.rule.correction(local_round)
        metric_sums = _MetricSums(*(params.new_zeros(len(params), 1) for _ in range(4)))
        taken, active, rate = self._column(steps), params.new_ones(len(params), 1), params.new_empty(len(params), 1)
        rate.fill_(scalars.local_lr)
        for step in range(int(steps.max())):
            if step >= steps.min():  # some rows have taken all their steps
                active = (taken > step).to(params.dtype)
                rate = scalars.local_lr * active
            grad, loss = gradient(batches, step)
            direction = self._plan.regularizer(correct(grad, params), params, scalars.weight_decay, scalars.clip_bound)
            params.addcmul_(direction.step, rate, value=-1)
            metric_sums.loss.addcmul_(loss.view(-1, 1), active)
            metric_sums.clipped.addcmul_(direction.scale < 1, active)
            metric_sums.decay.addcmul_(direction.decay, active)
            metric_sums.norm.addcmul_(direction.norm, active)
        return metric_sums

    def _column(self, values: npt.NDArray[np.int64]) -> Tensor:
        """[C] as a float column [C, 1] on the device."""
        return on_device(values.astype(np.float32), self._device).view(-1, 1)

    def _update(self, trained: "_Trained", task: GroupTask) -> GroupUpdate:
        """The client group's sums over the clients that count."""
        figures, delta = trained.figures, trained.delta
        if task.factors is not None:
            factors = np.array(task.factors)
            counts = figures.usable & (factors > 0)
            figures = replace(figures, usable=counts, delta_norms=figures.delta_norms * factors)
        usable = torch.from_numpy(figures.usable).to(self._device).view(-1, 1)
        if not figures.usable.all():
            delta = delta.where(usable, 0.0)
        weights = self._column(figures.examples if self._plan.weighted else np.ones_like(figures.examples)).view(-1)
        states, control_change = self._states(trained, delta, usable)
        buffers = trained.buffers
        return GroupUpdate(
            figures=figures,
            weighted_delta=(self._factored(weights, task) @ delta).cpu().numpy(),
            weighted_buffers=None if buffers is None else _weighted(buffers, figures, float(weights[0])),
            states=states,
            control_change=control_change,
            rows=delta.cpu().numpy().copy()
            if task.rows
            else None,  # on the CPU else a view of the next client group's memory
        )

    def _factored(self, weights: Tensor, task: GroupTask) -> Tensor:
        """Each client's weight times its factor."""
        if task.factors is None:
            return weights
        return weights * on_device(np.array(task.factors, dtype=np.float32), self._device)

    def _states(
        self, trained: "_Trained", delta: Tensor, usable: Tensor
    ) -> tuple[FloatVector | None, FloatVector | None]:
        """The clients' new states, and Σ n_i·(c_i⁺ − c_i); a client that is not usable keeps its old one."""
        rule, local_round, figures = self._plan.rule, trained.local_round, trained.figures
        if rule.next_state is None:
            return None, None
        assert local_round.state is not None
        state = rule.next_state(local_round, delta, self._column(figures.steps))
        if not usable.all():
            state = state.where(usable, local_round.state)
        if not rule.uses_control:
            return state.cpu().numpy(), None
        change = self._column(figures.examples).view(-1) @ local_round.state.neg_().add_(
            state
        )  # the old states' memory
        return state.cpu().numpy(), change.cpu().numpy()


def _numbers(values: Tensor) -> npt.NDArray[np.float64]:
    return values.view(-1).cpu().numpy().astype(np.float64)


def _weighted(buffers: BufferVector, figures: ClientMetrics, weight: float) -> BufferVector:
    """The buffers' share of the sum, zero for a client that does not count."""
    return buffers * weight if figures.usable[0] else np.zeros_like(buffers)
