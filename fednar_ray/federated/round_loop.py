"""The round loop: a generator of reports.  It knows a pool that trains client groups, and no Ray."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fednar_ray.algorithms.presets import Algorithm
from fednar_ray.config import AggregationSettings
from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.messages import (
    Broadcast,
    ClientMetrics,
    ClientsLost,
    GroupTask,
    GroupUpdate,
    MetricSums,
    Readout,
    RoundAggregate,
    RoundReport,
    Scores,
    ScoringTask,
)
from fednar_ray.core.schedules import RoundScalars, Workload
from fednar_ray.core.timing import Phases
from fednar_ray.federated.aggregation import RoundSums
from fednar_ray.federated.client_sampling import Availability, Selection
from fednar_ray.federated.client_trainer import one_thread
from fednar_ray.federated.robust import RULES, norm_clip_factors
from fednar_ray.federated.screening import NOT_FINITE, screen
from fednar_ray.federated.server_state import FederationState, ServerSide
from fednar_ray.federated.vectorization import form_groups

log = logging.getLogger("fednar_ray")

MOST_NORMS = 200
"""Of how many clients a round's record keeps ‖v‖: it travels with every checkpoint."""

Evaluate = Callable[[Readout], Mapping[str, float]]


class ClientPool(Protocol):
    """Trains client groups, and scores examples, somewhere.

    Results come in the order of the tasks, whatever the order of arrival. Of a client group that fails, its halves'
    results come in its place, or the clients that were lost.
    """

    def train(self, broadcast: Broadcast, tasks: Sequence[GroupTask]) -> Iterator[GroupUpdate | ClientsLost]:
        """The updates of ``tasks``."""

    def measure(self, broadcast: Broadcast, tasks: Sequence[GroupTask]) -> Iterator[ClientMetrics | ClientsLost]:
        """The figures of ``tasks``; the rest is held for ``train``, as far as there is memory."""

    def score(self, eval_params: Readout, tasks: Sequence[ScoringTask]) -> Iterator[Scores | MetricSums]:
        """The scores of ``tasks``."""

    def close(self) -> None:
        """Release what the pool holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """What the loop needs to know of an experiment."""

    rounds: int
    clients_per_round: int
    participation: Sequence[Sequence[int]] | None
    availability: Availability
    sizes: npt.NDArray[np.int64]  # [N] n_i
    workload: Workload
    width: int
    algorithm: Algorithm
    aggregation: AggregationSettings
    max_deviation: float | None  # of an update's norm, in median absolute deviations
    min_clients: int
    tracks_buffers: bool
    evaluate_every: int  # rounds; the last is always evaluated
    scalars: Callable[[int], RoundScalars]

    @property
    def two_phase(self) -> bool:
        """Do figures of the whole round decide what counts, before anything is added?"""
        return self.max_deviation is not None or self.aggregation.name != "mean"


def run_rounds(plan: RoundPlan, pool: ClientPool, state: FederationState, evaluate: Evaluate) -> Iterator[RoundReport]:
    """Train from the state's next round to ``plan.rounds``, a report a round; ``state`` moves on as a round ends.

    Raises RoundAborted for a round of which too few clients count.
    """
    log_seconds = 0.0
    while state.now.next_round < plan.rounds:
        phases = Phases(log_seconds)
        with one_thread():
            report, then = _round(plan, pool, state, evaluate, phases)
        state.advance(then)
        report = replace(report, metrics={**report.metrics, **phases.metrics()})
        end = time.perf_counter()
        yield report
        log_seconds = time.perf_counter() - end


def _round(
    plan: RoundPlan, pool: ClientPool, state: FederationState, evaluate: Evaluate, phases: Phases
) -> tuple[RoundReport, ServerSide]:
    now, index = state.now, state.now.next_round
    named = None if plan.participation is None else plan.participation[index]
    selection = plan.availability.select(index, plan.clients_per_round, named)
    sums = _train(plan, pool, state, selection.returned, phases)
    if selection.returned:
        _check_enough(plan, index, selection, sums)
        aggregate = sums.aggregate(len(plan.sizes), plan.scalars(index).epsilon)
        then = _server_step(plan, now, sums, aggregate)
        metrics = _training_metrics(then, sums, aggregate)
    else:
        then, metrics = replace(now, next_round=index + 1), {}  # nobody came back: the model stays as it is
    metrics |= _metrics(plan, now, selection, sums)
    eval_params = plan.algorithm.server.eval_params(then.server)
    if (index + 1) % plan.evaluate_every == 0 or index + 1 == plan.rounds:
        with phases.timed("evaluate"):
            metrics |= evaluate(Readout(round_index=index, parameters=eval_params, buffers=then.buffers))
    for vector in (then.server.parameters, eval_params, then.buffers):
        vector.flags.writeable = False
    report = RoundReport(
        round_index=index,
        metrics=metrics,
        client_ids=selection.returned,
        exclusions=sums.exclusions,
        step_norms=_norms_by_client(sums),
        parameters=then.server.parameters,
        eval_params=eval_params,
        buffers=then.buffers,
    )
    return report, then


def _train(
    plan: RoundPlan, pool: ClientPool, state: FederationState, client_ids: tuple[int, ...], phases: Phases
) -> RoundSums:
    """The sums over the clients that count; their new states are staged."""
    now, robust = state.now, plan.aggregation if plan.aggregation.name in RULES else None
    sums = RoundSums(round_index=now.next_round, weighted=plan.algorithm.weighted, robust=robust)
    state.clients.discard()  # of a round that was abandoned
    if not client_ids:
        return sums
    broadcast = Broadcast(
        round_index=now.next_round,
        scalars=plan.scalars(now.next_round),
        parameters=now.server.parameters,
        control=now.control,
        buffers=now.buffers if plan.tracks_buffers else None,
    )
    steps = plan.workload.steps(plan.sizes[list(client_ids)])
    tasks = [_task(plan, state, group) for group in form_groups(client_ids, steps, plan.width)]
    tasks[0] = replace(tasks[0], verify=_is_verified(now.next_round))
    if plan.two_phase:
        with phases.timed("broadcast"):
            measured = pool.measure(broadcast, tasks)
        tasks = _screen(plan, state, sums, phases.each("train", measured))
    with phases.timed("broadcast"):
        updates = pool.train(broadcast, tasks)
    for update in phases.each("train", updates):
        if isinstance(update, ClientsLost):
            _exclude(sums, update.client_ids, Exclusion(ExclusionReason.FAILED, update.reason))
        elif (problem := _misshapen(update, now)) is not None:
            _exclude(sums, update.figures.client_ids, Exclusion(ExclusionReason.WRONG_SHAPE, problem))
        else:
            _add(state, sums, update)
    return sums


def _is_verified(round_index: int) -> bool:
    """Is a traced gradient compared with an eager one? In the rounds 1, 2, 4, 8, …, counted from 1."""
    return (round_index + 1).bit_count() == 1


def _task(plan: RoundPlan, state: FederationState, group: tuple[int, ...]) -> GroupTask:
    stateful = plan.algorithm.local.next_state is not None
    return GroupTask(client_ids=group, states=tuple(map(state.clients.get, group)) if stateful else None)


def _screen(
    plan: RoundPlan, state: FederationState, sums: RoundSums, answers: Iterator[ClientMetrics | ClientsLost]
) -> list[GroupTask]:
    """The client groups again, now with what each client's update is to count."""
    figures = []
    for answer in answers:
        if isinstance(answer, ClientsLost):
            _exclude(sums, answer.client_ids, Exclusion(ExclusionReason.FAILED, answer.reason))
        else:
            figures.append(answer)
    for client_id, exclusion in screen(figures, plan.max_deviation).items():
        _exclude(sums, (client_id,), exclusion)
    factors = _factors(plan, figures, sums.exclusions)
    rows = plan.aggregation.name in RULES
    return [
        replace(_task(plan, state, f.client_ids), factors=tuple(factors[i] for i in f.client_ids), rows=rows)
        for f in figures
    ]


def _factors(plan: RoundPlan, figures: Sequence[ClientMetrics], out: Mapping[int, Exclusion]) -> dict[int, float]:
    """Of each client's update: 0 where it does not count, less than 1 where it is shortened."""
    norms = {
        i: norm for f in figures for i, norm in zip(f.client_ids, f.delta_norms.tolist(), strict=True) if i not in out
    }
    factors = dict.fromkeys(out, 0.0) | dict.fromkeys(norms, 1.0)
    if plan.aggregation.name == "norm_bound" and norms:
        shortened = norm_clip_factors(np.array(list(norms.values())), plan.aggregation.bound)
        factors |= zip(norms, shortened.tolist(), strict=True)
    return factors


def _misshapen(update: GroupUpdate, now: ServerSide) -> str | None:
    """Returns which vector of an update does not fit the model, and how; None if all fit."""
    wanted = {"weighted_delta": now.server.parameters.shape, "weighted_buffers": now.buffers.shape}
    for name, shape in wanted.items():
        vector = getattr(update, name)
        if vector is not None and vector.shape != shape:
            return f"{name.replace('_', ' ')} {list(vector.shape)} instead of {list(shape)}"
    return None


def _exclude(sums: RoundSums, client_ids: tuple[int, ...], exclusion: Exclusion) -> None:
    for client_id in client_ids:
        log.warning("round %d: client %d excluded: %s", sums.round_index, client_id, exclusion)
        sums.exclusions[client_id] = exclusion


def _add(state: FederationState, sums: RoundSums, update: GroupUpdate) -> None:
    figures = update.figures
    for client_id, usable in zip(figures.client_ids, figures.usable.tolist(), strict=True):
        if not usable and client_id not in sums.exclusions:
            _exclude(sums, (client_id,), figures.exclusions.get(client_id, NOT_FINITE))
    sums.add(update)
    if update.states is not None:
        for client_id, row in zip(figures.client_ids, update.states, strict=True):
            state.clients.stage(client_id, row)


def _check_enough(plan: RoundPlan, index: int, selection: Selection, sums: RoundSums) -> None:
    """Failures must leave ``min_clients``; that fewer were there to begin with is another matter."""
    count = int(sums.usable().sum())
    if count < min(plan.min_clients, len(selection.returned)):
        client_id, exclusion = next(iter(sums.exclusions.items()))
        text = f"{count} of {len(selection.returned)} client updates usable, at least {plan.min_clients} required"
        raise RoundAborted(index, f"{text}; client {client_id} excluded: {exclusion}", exclusion.reason)


def _server_step(plan: RoundPlan, now: ServerSide, sums: RoundSums, aggregate: RoundAggregate) -> ServerSide:
    buffers, control = sums.mean_buffers(), now.control
    if control is not None and sums.control_change is not None:
        control = control + sums.control_change / np.float32(plan.sizes.sum())
    return ServerSide(
        next_round=now.next_round + 1,
        server=plan.algorithm.server.step(now.server, aggregate),
        buffers=now.buffers if buffers is None else buffers,
        control=control,
    )


def _training_metrics(then: ServerSide, sums: RoundSums, aggregate: RoundAggregate) -> dict[str, float]:
    """What only a round with an update has."""
    weights = sums.example_weights()
    return {
        "train_loss": float(weights @ sums.column("losses")),
        "clip_fraction": float(sums.column("clipped_steps").sum() / sums.column("steps").sum()),
        "effective_weight_decay": float(weights @ sums.column("effective_weight_decay")),
        **_step_norms(sums),
        "update_norm": float(np.linalg.norm(aggregate.delta)),
        "parameter_norm": float(np.linalg.norm(then.server.parameters)),
        "server_lr": float(np.mean(then.server.server_lr if then.server.server_lr is not None else np.nan)),
    }


def _step_norms(sums: RoundSums) -> dict[str, float]:
    """‖v‖ in the mean over all steps, and what a tenth of the clients are below and above in theirs."""
    steps, norms = sums.column("steps"), sums.column("step_norms")
    low, high = np.quantile(norms, (0.1, 0.9))
    return {"step_norm": float(steps @ norms / steps.sum()), "step_norm_p10": float(low), "step_norm_p90": float(high)}


def _norms_by_client(sums: RoundSums) -> dict[int, float]:
    """Each client's mean ‖v‖, of those that count; of more than ``MOST_NORMS`` clients those with the lowest ids."""
    norms = {
        client_id: norm
        for figures in sums.figures
        for client_id, usable, norm in zip(
            figures.client_ids, figures.usable.tolist(), figures.step_norms.tolist(), strict=True
        )
        if usable and math.isfinite(norm)
    }
    return {client_id: norms[client_id] for client_id in sorted(norms)[:MOST_NORMS]}


def _metrics(plan: RoundPlan, now: ServerSide, selection: Selection, sums: RoundSums) -> dict[str, float]:
    """What every round has."""
    scalars, sent, trained = plan.scalars(now.next_round), _bytes_per_client(plan, now), int(sums.usable().sum())
    clock = {} if selection.virtual_seconds is None else {"virtual_seconds": selection.virtual_seconds}
    return {
        "local_lr": scalars.local_lr,
        "weight_decay": scalars.weight_decay,
        "clip_bound": scalars.clip_bound,
        "clients_sampled": float(len(selection.sampled)),
        "clients_dropped_out": float(selection.dropped_out),
        "clients_late": float(selection.late),
        "clients_trained": float(trained),
        "clients_failed": float(len(sums.exclusions)),
        "client_seconds": sum(f.train_seconds for f in sums.figures),
        "bytes_down": float(sent * len(selection.sampled)),
        "bytes_up": float(sent * trained),
        **clock,
    }


def _bytes_per_client(plan: RoundPlan, now: ServerSide) -> int:
    """What one client of a real federation would receive, and send: model, buffers, and SCAFFOLD's variates."""
    model = now.server.parameters.nbytes + (4 * len(now.buffers) if plan.tracks_buffers else 0)
    return model + (0 if now.control is None else now.control.nbytes)
