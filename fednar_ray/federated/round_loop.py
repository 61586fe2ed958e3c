"""The round loop: a generator of reports. It knows a pool that trains client groups, and no Ray."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fednar_ray.algorithms.presets import Algorithm
from fednar_ray.algorithms.server_optimizers import RoundAggregate
from fednar_ray.config import AggregationSettings
from fednar_ray.core.client_names import ClientNames, describe_client
from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.messages import (
    Broadcast,
    ClientMetrics,
    ClientsLost,
    EvalParams,
    GroupTask,
    GroupUpdate,
    Scores,
    ScoringTask,
)
from fednar_ray.core.metric_sums import MetricSums
from fednar_ray.core.reports import RoundReport
from fednar_ray.core.schedules import RoundScalars, Workload
from fednar_ray.core.step_norms import merge_quantiles
from fednar_ray.core.timing import Phases
from fednar_ray.federated.aggregation import RoundSums
from fednar_ray.federated.client_sampling import Availability, Selection
from fednar_ray.federated.client_trainer import use_one_thread
from fednar_ray.federated.robust import RULES, norm_clip_factors
from fednar_ray.federated.screening import NOT_FINITE, screen
from fednar_ray.federated.server_state import FederationState, ServerSide
from fednar_ray.federated.vectorization import form_groups

log = logging.getLogger("fednar_ray")

MOST_NORMS = 200
"""Maximum number of clients whose step norm is stored per round. Every checkpoint contains these norms."""

Evaluate = Callable[[EvalParams], Mapping[str, float]]


class ClientPool(Protocol):
    """Trains client groups and evaluates examples, in this process or on actors.

    Results are in the order of the tasks. If a group fails, they contain the results of its halves instead, or the
    clients that were lost.
    """

    def train(self, broadcast: Broadcast, tasks: Sequence[GroupTask]) -> Iterator[GroupUpdate | ClientsLost]:
        """Yields the update of each task."""

    def measure(self, broadcast: Broadcast, tasks: Sequence[GroupTask]) -> Iterator[ClientMetrics | ClientsLost]:
        """Trains each task and yields its metrics. The updates are held for ``train`` while there is memory."""

    def score(self, eval_params: EvalParams, tasks: Sequence[ScoringTask]) -> Iterator[Scores | MetricSums]:
        """Yields the scores of each task, or their sums."""

    def close(self) -> None:
        """Releases what the pool holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """What the round loop needs to know about an experiment.

    Attributes:
        rounds: T.
        clients_per_round: How many clients a round samples.
        participation: Explicit client ids per round, instead of sampling.
        availability: Which of the sampled clients return.
        sizes: n_i, the examples of each client, [N].
        workload: Steps or epochs, and batch size.
        group_size: C, the most clients that train as one matrix.
        algorithm: Both halves of the federated optimizer.
        aggregation: How updates are combined.
        max_deviation: Screening limit for an update's norm, in median absolute deviations. None: no screening.
        min_clients: How many client updates a round needs.
        tracks_buffers: Whether the model has buffers that are averaged.
        evaluate_every: Rounds between evaluations. The last round is always evaluated.
        scalars: Returns the annealed scalars of a round.
        client_names: How messages call the clients.
    """

    rounds: int
    clients_per_round: int
    participation: Sequence[Sequence[int]] | None
    availability: Availability
    sizes: npt.NDArray[np.int64]
    workload: Workload
    group_size: int
    algorithm: Algorithm
    aggregation: AggregationSettings
    max_deviation: float | None
    min_clients: int
    tracks_buffers: bool
    evaluate_every: int
    scalars: Callable[[int], RoundScalars]
    client_names: ClientNames = ()

    @property
    def two_phase(self) -> bool:
        """Whether the metrics of all clients decide which updates are included, before anything is added."""
        return self.max_deviation is not None or self.aggregation.name != "mean"

    @property
    def needs_rows(self) -> bool:
        """Whether the aggregation needs every client's own update, not only sums."""
        return self.aggregation.name in RULES

    def is_evaluated(self, round_index: int) -> bool:
        """Returns whether the round's parameters are evaluated."""
        return (round_index + 1) % self.evaluate_every == 0 or round_index + 1 == self.rounds


def run_rounds(plan: RoundPlan, pool: ClientPool, state: FederationState, evaluate: Evaluate) -> Iterator[RoundReport]:
    """Trains from the state's next round to the last one.

    Args:
        plan: The settings of the rounds.
        pool: Trains and evaluates clients.
        state: The state to start from. It advances at the end of every round.
        evaluate: Computes the metrics of the parameters to evaluate.

    Yields:
        One report per round.

    Raises:
        RoundAborted: Too few client updates remain in a round.
    """
    log_seconds = 0.0
    while state.now.next_round < plan.rounds:
        phases = Phases(log_seconds)
        with use_one_thread():
            report, then = _run_round(plan, pool, state, evaluate, phases)
        state.advance(then)
        report = replace(report, metrics={**report.metrics, **phases.compute_metrics()})
        end = time.perf_counter()
        yield report
        log_seconds = time.perf_counter() - end


def _run_round(
    plan: RoundPlan, pool: ClientPool, state: FederationState, evaluate: Evaluate, phases: Phases
) -> tuple[RoundReport, ServerSide]:
    now, index = state.now, state.now.next_round
    scalars = plan.scalars(index)
    named = None if plan.participation is None else plan.participation[index]
    selection = plan.availability.select(index, plan.clients_per_round, named)
    sums = _train(plan, pool, state, scalars, selection.returned, phases)
    if selection.returned:
        _check_enough(plan, index, selection, sums)
        aggregate = sums.aggregate(len(plan.sizes), scalars.epsilon)
        then = _step_server(plan, now, sums, aggregate)
        metrics = _compute_training_metrics(then, sums, aggregate)
    else:
        then, metrics = replace(now, next_round=index + 1), {}  # no client returned, so the model does not change
    metrics |= _compute_metrics(plan, now, scalars, selection, sums)
    eval_params = plan.algorithm.server.eval_params(then.server)
    if plan.is_evaluated(index):
        with phases.measure("evaluate"):
            metrics |= evaluate(EvalParams(round_index=index, parameters=eval_params, buffers=then.buffers))
    for vector in (then.server.parameters, eval_params, then.buffers):
        vector.flags.writeable = False
    report = RoundReport(
        round_index=index,
        metrics=metrics,
        client_ids=selection.returned,
        exclusions=sums.exclusions,
        step_norms=_compute_step_norms(sums),
        norm_quantiles=_compute_norm_quantiles(sums),
        parameters=then.server.parameters,
        eval_params=eval_params,
        buffers=then.buffers,
    )
    return report, then


def _train(
    plan: RoundPlan,
    pool: ClientPool,
    state: FederationState,
    scalars: RoundScalars,
    client_ids: tuple[int, ...],
    phases: Phases,
) -> RoundSums:
    """Returns the sums over the included clients, and stages their new states."""
    now, robust = state.now, plan.aggregation if plan.needs_rows else None
    sums = RoundSums(
        round_index=now.next_round,
        weighted=plan.algorithm.weighted,
        robust=robust,
        client_names=plan.client_names,
    )
    state.clients.discard()  # rows that an aborted round may have staged
    if not client_ids:
        return sums
    broadcast = Broadcast(
        round_index=now.next_round,
        scalars=scalars,
        parameters=now.server.parameters,
        shared=now.shared,
        buffers=now.buffers if plan.tracks_buffers else None,
    )
    steps = plan.workload.steps(plan.sizes[list(client_ids)])
    tasks = [_build_task(plan, state, group) for group in form_groups(client_ids, steps, plan.group_size)]
    tasks[0] = replace(tasks[0], verify=_is_verified(now.next_round))
    if plan.two_phase:
        with phases.measure("broadcast"):
            measured = pool.measure(broadcast, tasks)
        tasks = _screen(plan, state, sums, phases.measure_items("train", measured))
    with phases.measure("broadcast"):
        updates = pool.train(broadcast, tasks)
    for update in phases.measure_items("train", updates):
        _add_or_exclude(state, sums, update)
    return sums


def _is_verified(round_index: int) -> bool:
    """Returns whether a traced gradient is compared with an eager one: in rounds 1, 2, 4, 8, …, counted from 1."""
    return (round_index + 1).bit_count() == 1


def _build_task(plan: RoundPlan, state: FederationState, group: tuple[int, ...]) -> GroupTask:
    stateful = plan.algorithm.client.next_state is not None
    return GroupTask(client_ids=group, states=tuple(map(state.clients.get, group)) if stateful else None)


def _screen(
    plan: RoundPlan, state: FederationState, sums: RoundSums, measured: Iterator[ClientMetrics | ClientsLost]
) -> list[GroupTask]:
    """Decides which clients are included, and returns the groups' tasks with each client's factor."""
    metrics = []
    for answer in measured:
        if isinstance(answer, ClientsLost):
            _exclude(sums, answer.client_ids, Exclusion(ExclusionReason.FAILED, answer.reason))
        else:
            metrics.append(answer)
    for client_id, exclusion in screen(metrics, plan.max_deviation).items():
        _exclude(sums, (client_id,), exclusion)
    factors = _compute_factors(plan, metrics, sums.exclusions)
    return [
        replace(
            _build_task(plan, state, group.client_ids),
            factors=tuple(factors[i] for i in group.client_ids),
            return_rows=plan.needs_rows,
        )
        for group in metrics
    ]


def _compute_factors(
    plan: RoundPlan, metrics: Sequence[ClientMetrics], excluded: Mapping[int, Exclusion]
) -> dict[int, float]:
    """Returns each client's factor: 0 if it is excluded, below 1 if its update is too long, else 1."""
    norms = {
        client_id: norm
        for group in metrics
        for client_id, norm in zip(group.client_ids, group.delta_norms.tolist(), strict=True)
        if client_id not in excluded
    }
    factors = dict.fromkeys(excluded, 0.0) | dict.fromkeys(norms, 1.0)
    if plan.aggregation.name == "norm_bound" and norms:
        clipped = norm_clip_factors(np.array(list(norms.values())), plan.aggregation.bound)
        factors |= zip(norms, clipped.tolist(), strict=True)
    return factors


def _add_or_exclude(state: FederationState, sums: RoundSums, update: GroupUpdate | ClientsLost) -> None:
    if isinstance(update, ClientsLost):
        _exclude(sums, update.client_ids, Exclusion(ExclusionReason.FAILED, update.reason))
    elif (problem := _find_wrong_shape(update, state.now)) is not None:
        _exclude(sums, update.metrics.client_ids, Exclusion(ExclusionReason.WRONG_SHAPE, problem))
    else:
        _add(state, sums, update)


def _find_wrong_shape(update: GroupUpdate, now: ServerSide) -> str | None:
    """Returns which vector of an update does not fit the model, and how; None if all fit."""
    wanted = {"weighted_delta": now.server.parameters.shape, "weighted_buffers": now.buffers.shape}
    for name, shape in wanted.items():
        vector = getattr(update, name)
        if vector is not None and vector.shape != shape:
            return f"{name.replace('_', ' ')} {list(vector.shape)} instead of {list(shape)}"
    return None


def _exclude(sums: RoundSums, client_ids: tuple[int, ...], exclusion: Exclusion) -> None:
    for client_id in client_ids:
        who = describe_client(client_id, sums.client_names)
        log.warning("round %d: %s excluded: %s", sums.round_index, who, exclusion)
        sums.exclusions[client_id] = exclusion


def _add(state: FederationState, sums: RoundSums, update: GroupUpdate) -> None:
    metrics = update.metrics
    for client_id, included in zip(metrics.client_ids, metrics.included.tolist(), strict=True):
        if not included and client_id not in sums.exclusions:
            _exclude(sums, (client_id,), metrics.exclusions.get(client_id, NOT_FINITE))
    sums.add(update)
    if update.states is not None:
        for client_id, row in zip(metrics.client_ids, update.states, strict=True):
            state.clients.stage(client_id, row)


def _check_enough(plan: RoundPlan, index: int, selection: Selection, sums: RoundSums) -> None:
    """Raises RoundAborted if exclusions leave fewer than ``min_clients`` of the clients that returned."""
    count = int(sums.find_included().sum())
    if count < min(plan.min_clients, len(selection.returned)):
        client_id, exclusion = next(iter(sums.exclusions.items()))
        text = f"{count} of {len(selection.returned)} client updates usable, at least {plan.min_clients} required"
        who = describe_client(client_id, plan.client_names)
        raise RoundAborted(index, f"{text}; {who} excluded: {exclusion}", exclusion.reason)


def _step_server(plan: RoundPlan, now: ServerSide, sums: RoundSums, aggregate: RoundAggregate) -> ServerSide:
    buffers, examples = sums.compute_mean_buffers(), int(plan.sizes.sum())
    shared = {
        name: vector.update(now.shared[name], sums.shared_changes[name], examples)
        for name, vector in plan.algorithm.client.shared.items()
    }
    return ServerSide(
        next_round=now.next_round + 1,
        server=plan.algorithm.server.step(now.server, aggregate),
        buffers=now.buffers if buffers is None else buffers,
        shared=shared,
    )


def _compute_training_metrics(then: ServerSide, sums: RoundSums, aggregate: RoundAggregate) -> dict[str, float]:
    """Returns the metrics that only a round with an update has."""
    weights = sums.compute_example_weights()
    return {
        "train_loss": float(weights @ sums.get_column("losses")),
        "clip_fraction": float(sums.get_column("clipped_steps").sum() / sums.get_column("steps").sum()),
        "effective_weight_decay": float(weights @ sums.get_column("effective_weight_decay")),
        **_compute_step_norm_metrics(sums),
        "update_norm": float(np.linalg.norm(aggregate.delta)),
        "parameter_norm": float(np.linalg.norm(then.server.parameters)),
        "server_lr": float(np.mean(then.server.server_lr if then.server.server_lr is not None else np.nan)),
    }


def _compute_step_norm_metrics(sums: RoundSums) -> dict[str, float]:
    """Returns the mean ‖v‖ over all steps, and the first and ninth decile of the clients' means."""
    steps, norms = sums.get_column("steps"), sums.get_column("step_norms")
    low, high = np.quantile(norms, (0.1, 0.9))
    return {"step_norm": float(steps @ norms / steps.sum()), "step_norm_p10": float(low), "step_norm_p90": float(high)}


def _compute_step_norms(sums: RoundSums) -> dict[int, float]:
    """Returns the mean ‖v‖ of each included client; of more than ``MOST_NORMS``, those with the lowest ids."""
    norms = {
        client_id: norm
        for group in sums.metrics
        for client_id, included, norm in zip(
            group.client_ids, group.included.tolist(), group.step_norms.tolist(), strict=True
        )
        if included and math.isfinite(norm)
    }
    return {client_id: norms[client_id] for client_id in sorted(norms)[:MOST_NORMS]}


def _compute_norm_quantiles(sums: RoundSums) -> tuple[float, ...]:
    """Returns the quantiles of ‖v‖ over the steps of the included clients."""
    points = [group.norm_points[group.included] for group in sums.metrics]
    return merge_quantiles(points, [group.steps[group.included] for group in sums.metrics])


def _compute_metrics(
    plan: RoundPlan, now: ServerSide, scalars: RoundScalars, selection: Selection, sums: RoundSums
) -> dict[str, float]:
    """Returns the metrics that every round has."""
    sent, trained = _count_bytes_per_client(plan, now), int(sums.find_included().sum())
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
        "client_seconds": sum(group.train_seconds for group in sums.metrics),
        "bytes_down": float(sent * len(selection.sampled)),
        "bytes_up": float(sent * trained),
        **clock,
    }


def _count_bytes_per_client(plan: RoundPlan, now: ServerSide) -> int:
    """Returns the bytes that a client of a real federation receives, and sends: model, buffers and shared vectors."""
    model = now.server.parameters.nbytes + (4 * len(now.buffers) if plan.tracks_buffers else 0)
    return model + sum(vector.nbytes for vector in now.shared.values())
