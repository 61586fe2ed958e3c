"""Trains the clients of a round, and collects their updates: each is added to the sums or excluded, with a reason."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.messages import Broadcast, ClientMetrics, ClientsLost, GroupTask, GroupUpdate
from fednar_ray.core.schedules import RoundScalars
from fednar_ray.core.timing import Phases
from fednar_ray.federated.aggregation import RoundSums, number_terms
from fednar_ray.federated.client_pool import ClientPool
from fednar_ray.federated.client_sampling import Selection
from fednar_ray.federated.robust import norm_clip_factors
from fednar_ray.federated.round_plan import RoundPlan
from fednar_ray.federated.screening import NOT_FINITE, screen
from fednar_ray.federated.secure_round import SecureSums, train_securely
from fednar_ray.federated.server_state import FederationState, ServerSide
from fednar_ray.federated.vectorization import form_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStart:
    """What is known of a round before its clients train.

    Attributes:
        scalars: The annealed scalars.
        selection: The sampled clients, and those of them that train.
        broadcast: What each of them receives.
        tasks: The client groups, in dispatch order; empty if no client returned.
    """

    scalars: RoundScalars
    selection: Selection
    broadcast: Broadcast
    tasks: tuple[GroupTask, ...]


def start_round(plan: RoundPlan, state: FederationState) -> RoundStart:
    """Returns the start of the state's next round. Calling it again gives the same."""
    now, index = state.now, state.now.next_round
    scalars = plan.scalars(index)
    named = None if plan.participation is None else plan.participation[index]
    privacy = plan.privacy
    drawn = None if privacy is None or not privacy.settings.secret else privacy.draw_clients(index)
    selection = plan.availability.select(index, plan.clients_per_round, named, drawn)
    broadcast = Broadcast(
        round_index=index,
        scalars=scalars,
        parameters=now.server.parameters,
        shared=now.shared,
        buffers=now.buffers if plan.tracks_buffers else None,
        norm_bound=None if privacy is None else privacy.compute_bound(scalars, now.norm_bound),
    )
    client_ids = selection.returned
    steps = plan.workload.steps(plan.sizes[list(client_ids)])
    groups = form_groups(client_ids, steps, plan.group_size) if client_ids else []
    sums_only = plan.secure is None and not plan.two_phase and not plan.needs_rows
    terms = number_terms(len(groups), now.server.parameters.nbytes) if sums_only else [None] * len(groups)
    tasks = [_build_task(plan, state, group, term) for group, term in zip(groups, terms, strict=True)]
    tasks[:1] = [replace(task, verify=_is_verified(index)) for task in tasks[:1]]
    return RoundStart(scalars=scalars, selection=selection, broadcast=broadcast, tasks=tuple(tasks))


def train_clients(
    plan: RoundPlan, pool: ClientPool, state: FederationState, start: RoundStart, phases: Phases
) -> RoundSums | SecureSums:
    """Returns the sums over the included clients, and stages their new states."""
    if plan.secure is not None:
        return train_securely(plan.secure, pool, start.broadcast, start.tasks, plan.client_names, phases)
    robust = plan.aggregation if plan.needs_rows else None
    sums = RoundSums(
        round_index=start.broadcast.round_index,
        weighted=plan.algorithm.weighted,
        robust=robust,
        client_names=plan.client_names,
        quiet=plan.privacy is not None,
    )
    state.clients.discard()  # rows that an aborted round may have staged
    tasks: Sequence[GroupTask] = start.tasks
    if not tasks:
        return sums
    if plan.two_phase:
        with phases.measure("broadcast"):
            measured = pool.measure(start.broadcast, tasks)
        tasks = _screen(plan, state, sums, phases.measure_items("train", measured))
    with phases.measure("broadcast"):
        updates = pool.train(start.broadcast, [_lend_places(state, task) for task in tasks])
    for update in phases.measure_items("train", updates):
        _add_or_exclude(state, sums, update)
    return sums


def _is_verified(round_index: int) -> bool:
    """Returns whether a traced gradient is compared with an eager one: in rounds 1, 2, 4, 8, …, counted from 1."""
    return (round_index + 1).bit_count() == 1


def _build_task(plan: RoundPlan, state: FederationState, group: tuple[int, ...], term: int | None = None) -> GroupTask:
    stateful = plan.algorithm.client.next_state is not None
    return GroupTask(client_ids=group, states=tuple(map(state.clients.locate, group)) if stateful else None, term=term)


def _lend_places(state: FederationState, task: GroupTask) -> GroupTask:
    """Returns the task with places for the clients' new states, if these are kept in a file."""
    if task.states is None:
        return task
    places = [place for _ in task.client_ids if (place := state.clients.lend()) is not None]
    return replace(task, places=tuple(places)) if len(places) == len(task.client_ids) else task


def _screen(
    plan: RoundPlan, state: FederationState, sums: RoundSums, measured: Iterator[ClientMetrics | ClientsLost]
) -> list[GroupTask]:
    """Decides which clients are included, and returns the groups' tasks with each client's factor."""
    metrics = []
    for answer in measured:
        if isinstance(answer, ClientsLost):
            _exclude_all(sums, answer.client_ids, Exclusion(ExclusionReason.FAILED, answer.reason))
        else:
            metrics.append(answer)
    for client_id, exclusion in screen(metrics, plan.max_deviation).items():
        sums.exclude(client_id, exclusion)
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
        _exclude_all(sums, update.client_ids, Exclusion(ExclusionReason.FAILED, update.reason))
    elif (problem := _find_wrong_shape(update, state.now)) is not None:
        _exclude_all(sums, update.metrics.client_ids, Exclusion(ExclusionReason.WRONG_SHAPE, problem))
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


def _exclude_all(sums: RoundSums, client_ids: tuple[int, ...], exclusion: Exclusion) -> None:
    for client_id in client_ids:
        sums.exclude(client_id, exclusion)


def _add(state: FederationState, sums: RoundSums, update: GroupUpdate) -> None:
    metrics = update.metrics
    for client_id, included in zip(metrics.client_ids, metrics.included.tolist(), strict=True):
        if not included and client_id not in sums.exclusions:
            sums.exclude(client_id, metrics.exclusions.get(client_id, NOT_FINITE))
    sums.add(update)
    if update.states is not None:
        for client_id, row in zip(metrics.client_ids, update.states, strict=True):
            state.clients.stage(client_id, row)
