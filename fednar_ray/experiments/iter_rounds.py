"""Rounds of an experiment as a stream of reports: wired, and neither tracked nor written."""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from torch import nn

from fednar_ray.config import Experiment
from fednar_ray.core.flat_params import flatten, flatten_buffers
from fednar_ray.core.reports import RoundReport
from fednar_ray.data.federation import Federation
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.placement import ExecutionPlan, place, resolve
from fednar_ray.experiments.prepare import Prepared, prepare
from fednar_ray.federated.client_states import ClientStates
from fednar_ray.federated.evaluation import SPLITS, Evaluation
from fednar_ray.federated.round_loop import ClientPool, RoundPlan, run_rounds
from fednar_ray.federated.server_state import FederationState
from fednar_ray.models.dense import NumericSequential


def iter_rounds(
    experiment: Experiment,
    *,
    federation: Federation | None = None,
    model: nn.Module | None = None,
    session: RaySession | None = None,
) -> Iterator[RoundReport]:
    """Train, yielding a report a round; nothing is tracked or written.

    ``federation`` and ``model`` stand in for the ``data`` and ``model`` sections; ``model`` is copied, and gives
    the start.  ``session`` is a Ray that several runs share; without one, Ray is started or joined for this run
    alone.  Raises BadInput's kinds before training, RunFailed's during it.
    """
    with shared_or_own(session) as ray_session:
        prepared = prepare(experiment, federation, model, ray_session)
        resolved = resolve(prepared, ray_session)
        with place(prepared, resolved, ray_session) as pool:
            yield from rounds_of(prepared, resolved, pool, initial_state(prepared))


def shared_or_own(session: RaySession | None) -> AbstractContextManager[RaySession]:
    """The caller's session, which stays open, or one for this run alone."""
    return nullcontext(session) if session is not None else RaySession()


def client_states(prepared: Prepared, directory: Path | None = None) -> ClientStates:
    """No client has a state yet; what exceeds the memory for them goes to ``directory``."""
    limit = prepared.experiment.execution.state_memory_bytes
    return ClientStates(prepared.model_bytes // 4, None if limit == "auto" else limit, directory)


def initial_state(prepared: Prepared, directory: Path | None = None) -> FederationState:
    """What round 0 starts from."""
    return FederationState.initial(
        prepared.algorithm,
        flatten(prepared.model),
        flatten_buffers(prepared.model, prepared.traits.changed_buffers),
        client_states(prepared, directory),
    )


def rounds_of(
    prepared: Prepared,
    resolved: ExecutionPlan,
    pool: ClientPool,
    state: FederationState,
    splits: Collection[str] = SPLITS,
) -> Iterator[RoundReport]:
    """The round loop of a prepared experiment, on a pool, from a state that moves along; ``splits`` are evaluated."""
    experiment, federation = prepared.experiment, prepared.federation
    plan = RoundPlan(
        rounds=experiment.federation.rounds,
        clients_per_round=prepared.clients_per_round,
        participation=experiment.federation.participation,
        availability=prepared.availability,
        sizes=federation.shards.sizes,
        workload=experiment.federation.workload,
        group_size=resolved.width,
        algorithm=prepared.algorithm,
        aggregation=experiment.aggregation,
        max_deviation=experiment.screening.max_deviation,
        min_clients=experiment.execution.min_clients,
        tracks_buffers=prepared.traits.tracks_buffers,
        evaluate_every=experiment.evaluation.every,
        scalars=experiment.scalars,
    )
    by_client, federated = resolved.placement == "dedicated", experiment.evaluation.federated
    texts = not isinstance(prepared.model, NumericSequential)
    evaluation = Evaluation(federation, pool.score, splits, federated=federated, by_client=by_client, texts=texts)
    return run_rounds(plan, pool, state, evaluation)
