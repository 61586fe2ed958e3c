"""The round loop: a generator of reports. It knows a pool that trains client groups, and no Ray."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from fednar_ray.algorithms.server_optimizers import RoundAggregate
from fednar_ray.core.client_names import describe_client
from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.messages import EvalParams
from fednar_ray.core.reports import RoundReport
from fednar_ray.core.threads import use_one_thread
from fednar_ray.core.timing import Phases
from fednar_ray.federated.aggregation import RoundSums
from fednar_ray.federated.client_pool import ClientPool
from fednar_ray.federated.client_sampling import Selection
from fednar_ray.federated.collection import start_round, train_clients
from fednar_ray.federated.private_rounds import step_privately
from fednar_ray.federated.round_metrics import (
    compute_metrics,
    compute_norm_quantiles,
    compute_step_norms,
    compute_training_metrics,
)
from fednar_ray.federated.round_plan import RoundPlan
from fednar_ray.federated.secure_round import SecureSums
from fednar_ray.federated.server_state import FederationState, ServerSide

Evaluate = Callable[[EvalParams], Mapping[str, float]]


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
    start = state.take_start() or start_round(plan, state)
    scalars, selection = start.scalars, start.selection
    sums = train_clients(plan, pool, state, start, phases)
    phases.add_ahead(pool.take_seconds_ahead())
    privacy = plan.privacy
    if privacy is not None:
        then, metrics = step_privately(plan, privacy, now, start.broadcast, sums)
    elif selection.returned:
        _check_enough(plan, index, selection, sums)
        aggregate = sums.aggregate(len(plan.sizes), scalars.epsilon)
        then = _step_server(plan, now, sums, aggregate)
        metrics = compute_training_metrics(then, sums, aggregate)
    else:
        then, metrics = replace(now, next_round=index + 1), {}  # no client returned, so the model does not change
    if privacy is None:
        metrics |= compute_metrics(plan, now, scalars, selection, sums)
    if plan.examples is not None:
        metrics.pop("train_loss", None)  # no loss of a training example is released
        metrics |= plan.examples.compute_metrics(index + 1)
    eval_params = plan.algorithm.server.eval_params(then.server)
    if plan.is_evaluated(index):
        with phases.measure("evaluate"):
            metrics |= evaluate(EvalParams(round_index=index, parameters=eval_params, buffers=then.buffers))
    for vector in (then.server.parameters, eval_params, then.buffers):
        vector.flags.writeable = False
    report = RoundReport(
        round_index=index,
        metrics=metrics,
        client_ids=selection.returned if privacy is None else (),
        exclusions=sums.exclusions if privacy is None else {},
        step_norms=compute_step_norms(sums) if privacy is None else {},
        norm_quantiles=compute_norm_quantiles(sums) if privacy is None else (),
        parameters=then.server.parameters,
        eval_params=eval_params,
        buffers=then.buffers,
    )
    return report, then


def _check_enough(plan: RoundPlan, index: int, selection: Selection, sums: RoundSums | SecureSums) -> None:
    """Raises RoundAborted if exclusions leave fewer than ``min_clients`` of the clients that returned."""
    count = int(sums.find_included().sum())
    if count < min(plan.min_clients, len(selection.returned)):
        client_id, exclusion = next(iter(sums.exclusions.items()))
        text = f"{count} of {len(selection.returned)} client updates usable, at least {plan.min_clients} required"
        who = describe_client(client_id, plan.client_names)
        raise RoundAborted(index, f"{text}; {who} excluded: {exclusion}", exclusion.reason)


def _step_server(
    plan: RoundPlan, now: ServerSide, sums: RoundSums | SecureSums, aggregate: RoundAggregate
) -> ServerSide:
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
