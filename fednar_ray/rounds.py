"""The round loop: a generator of reports.  It knows a pool that trains cohorts, and no Ray."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fednar_ray.aggregation import RoundSums
from fednar_ray.algorithms.registry import Algorithm
from fednar_ray.algorithms.server_rules import ServerState
from fednar_ray.cohorts import form_cohorts
from fednar_ray.local_training import one_thread
from fednar_ray.messages import (
    Broadcast,
    CohortTask,
    CohortUpdate,
    Readout,
    RoundAggregate,
    RoundReport,
    Scores,
    ScoringTask,
)
from fednar_ray.schedules import RoundScalars, Workload
from fednar_ray.seeding import Purpose, generator
from fednar_ray.vectors import BufferVector, FloatVector

log = logging.getLogger("fednar_ray")

Evaluate = Callable[[Readout], Mapping[str, float]]


class ClientPool(Protocol):
    """Trains cohorts, and scores examples, somewhere."""

    def train(self, broadcast: Broadcast, tasks: Sequence[CohortTask]) -> Iterator[CohortUpdate]:
        """The updates of ``tasks``, in the order of ``tasks`` whatever the order of arrival."""

    def score(self, readout: Readout, tasks: Sequence[ScoringTask]) -> Iterator[Scores]:
        """The scores of ``tasks``, in their order."""

    def close(self) -> None:
        """Release what the pool holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """What the loop needs to know of an experiment."""

    seed: int
    rounds: int
    clients_per_round: int
    participation: Sequence[Sequence[int]] | None
    sizes: npt.NDArray[np.int64]  # [N] n_i
    workload: Workload
    width: int
    algorithm: Algorithm
    tracks_buffers: bool
    evaluate_every: int  # rounds; the last is always evaluated
    scalars: Callable[[int], RoundScalars]


@dataclass(slots=True, kw_only=True)
class FederationState:
    """Everything that the next round needs."""

    server: ServerState
    buffers: BufferVector  # [b]
    control: FloatVector | None  # [d] SCAFFOLD's c
    clients: dict[int, FloatVector] = field(default_factory=dict)  # [d] each; a client not named is still zero
    next_round: int = 0

    @classmethod
    def initial(cls, algorithm: Algorithm, parameters: FloatVector, buffers: BufferVector) -> "FederationState":
        """The state before round 0."""
        control = np.zeros_like(parameters) if algorithm.local.uses_control else None
        return cls(server=algorithm.server.init(parameters), buffers=buffers, control=control)


def run_rounds(plan: RoundPlan, pool: ClientPool, state: FederationState, evaluate: Evaluate) -> Iterator[RoundReport]:
    """Train from ``state.next_round`` to ``plan.rounds``, a report a round; ``state`` moves along.

    Raises RoundAborted for a round in which no client's update is finite.
    """
    while state.next_round < plan.rounds:
        start = time.perf_counter()
        with one_thread():
            client_ids = sample(plan, state.next_round)
            sums = _train(plan, pool, state, client_ids)
            scalars = plan.scalars(state.next_round)
            aggregate = sums.aggregate(len(plan.sizes), scalars.epsilon)
            _server_step(plan, state, sums, aggregate)
            readout = plan.algorithm.server.readout(state.server)
            metrics = _metrics(plan, state, sums, aggregate)
            if (state.next_round + 1) % plan.evaluate_every == 0 or state.next_round + 1 == plan.rounds:
                metrics |= evaluate(_readout(state, readout))
        metrics["round_seconds"] = time.perf_counter() - start
        report = _report(state, readout, client_ids, sums, metrics)
        state.next_round += 1
        yield report


def _readout(state: FederationState, parameters: FloatVector) -> Readout:
    return Readout(round_index=state.next_round, parameters=parameters, buffers=state.buffers)


def sample(plan: RoundPlan, round_index: int) -> tuple[int, ...]:
    """S: the round's clients, sorted; drawn without replacement from those with examples."""
    if plan.participation is not None:
        return tuple(sorted(plan.participation[round_index]))
    present = np.flatnonzero(plan.sizes) if not plan.sizes.all() else len(plan.sizes)
    rng = generator(plan.seed, Purpose.SAMPLING, round_index=round_index)
    return tuple(sorted(rng.choice(present, plan.clients_per_round, replace=False).tolist()))


def _train(plan: RoundPlan, pool: ClientPool, state: FederationState, client_ids: tuple[int, ...]) -> RoundSums:
    broadcast = Broadcast(
        round_index=state.next_round,
        scalars=plan.scalars(state.next_round),
        parameters=state.server.parameters,
        control=state.control,
        buffers=state.buffers if plan.tracks_buffers else None,
    )
    steps = plan.workload.steps(plan.sizes[list(client_ids)])
    tasks = [_task(plan, state, cohort) for cohort in form_cohorts(client_ids, steps, plan.width)]
    sums = RoundSums(round_index=state.next_round, weighted=plan.algorithm.weighted)
    new_states: dict[int, FloatVector] = {}
    for update in pool.train(broadcast, tasks):
        sums.add(update)
        if update.states is not None:  # copied: a row alone would keep its whole message in the object store
            new_states.update((i, row.copy()) for i, row in zip(update.figures.client_ids, update.states, strict=True))
    state.clients.update(new_states)
    return sums


def _task(plan: RoundPlan, state: FederationState, cohort: tuple[int, ...]) -> CohortTask:
    stateful = plan.algorithm.local.next_state is not None
    return CohortTask(client_ids=cohort, states=tuple(state.clients.get(i) for i in cohort) if stateful else None)


def _server_step(plan: RoundPlan, state: FederationState, sums: RoundSums, aggregate: RoundAggregate) -> None:
    state.server = plan.algorithm.server.step(state.server, aggregate)
    buffers = sums.mean_buffers()
    if buffers is not None:
        state.buffers = buffers
    if state.control is not None and sums.control_change is not None:
        state.control = state.control + sums.control_change / np.float32(plan.sizes.sum())


def _metrics(plan: RoundPlan, state: FederationState, sums: RoundSums, aggregate: RoundAggregate) -> dict[str, float]:
    weights, usable, scalars = sums.example_weights(), sums.usable(), plan.scalars(state.next_round)
    down, up = _bytes_per_client(plan, state)
    return {
        "train_loss": float(weights @ sums.column("losses")),
        "clip_fraction": float(sums.column("clipped_steps").sum() / sums.column("steps").sum()),
        "effective_weight_decay": float(weights @ sums.column("effective_weight_decay")),
        "update_norm": float(np.linalg.norm(aggregate.delta)),
        "server_lr": float(np.mean(state.server.server_lr if state.server.server_lr is not None else np.nan)),
        "local_lr": scalars.local_lr,
        "weight_decay": scalars.weight_decay,
        "clip_bound": scalars.clip_bound,
        "clients_trained": float(usable.sum()),
        "clients_failed": float((~usable).sum()),
        "client_seconds": sum(f.train_seconds for f in sums.figures),
        "bytes_down": float(down * len(usable)),
        "bytes_up": float(up * usable.sum()),
    }


def _bytes_per_client(plan: RoundPlan, state: FederationState) -> tuple[int, int]:
    """What one client of a real federation would receive and send: model, buffers, and SCAFFOLD's variates."""
    model = state.server.parameters.nbytes + (4 * len(state.buffers) if plan.tracks_buffers else 0)
    control = 0 if state.control is None else state.control.nbytes
    return model + control, model + control


def _report(
    state: FederationState,
    readout: FloatVector,
    client_ids: tuple[int, ...],
    sums: RoundSums,
    metrics: Mapping[str, float],
) -> RoundReport:
    for vector in (state.server.parameters, readout, state.buffers):
        vector.flags.writeable = False
    failures = _failures(sums)
    for client_id, reason in failures.items():
        log.warning("round %d: client %d does not count: %s", state.next_round, client_id, reason)
    return RoundReport(
        round_index=state.next_round,
        metrics=metrics,
        client_ids=client_ids,
        failures=failures,
        parameters=state.server.parameters,
        readout=readout,
        buffers=state.buffers,
    )


def _failures(sums: RoundSums) -> dict[int, str]:
    """Why clients of the round did not count."""
    reason = "its loss or update is not finite"
    pairs = ((i, ok) for f in sums.figures for i, ok in zip(f.client_ids, f.usable.tolist(), strict=True))
    return {client_id: reason for client_id, usable in pairs if not usable}
