"""Trains an experiment round by round, without tracking or writing anything."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fednar_ray.config import Experiment
from fednar_ray.core.blocks import LARGE_BYTES
from fednar_ray.core.flat_params import flatten, flatten_buffers
from fednar_ray.core.freed_memory import keep_freed_memory
from fednar_ray.core.metric_names import SPLITS
from fednar_ray.core.reports import RoundReport
from fednar_ray.data.federation import Federation
from fednar_ray.experiments.given import Given, add_metrics, name_metrics
from fednar_ray.experiments.placement import ExecutionPlan, open_pool, plan_execution
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.experiments.private_runs import draw_unsaved_key
from fednar_ray.federated.client_pool import ClientPool
from fednar_ray.federated.client_states import ClientStates
from fednar_ray.federated.evaluation import Evaluation
from fednar_ray.federated.round_loop import run_rounds
from fednar_ray.federated.round_plan import RoundPlan
from fednar_ray.federated.server_state import FederationState
from fednar_ray.models.dense import NumericSequential

if TYPE_CHECKING:  # rounds in this process import no Ray
    from fednar_ray.execution.session import RaySession


KEPT_VECTORS = 8
"""For how many vectors of a large model this process keeps memory: more than a round's sums and server step need."""


def iter_rounds(
    experiment: Experiment,
    *,
    federation: Federation | None = None,
    model: nn.Module | None = None,
    metrics: Sequence[Callable[..., Any]] = (),
    session: "RaySession | None" = None,
) -> Iterator[RoundReport]:
    """Trains an experiment, and yields one report per round. Nothing is tracked or written.

    Args:
        experiment: The experiment.
        federation: The data, in place of the experiment's ``data`` section.
        model: The model, in place of the experiment's ``model`` section. It is copied; training starts from its
            parameters.
        metrics: Metrics of your own: functions of (y, predictions), or of (y, outputs) if the second parameter is
            called outputs, that return a number, of which higher is better. They are added to ``evaluation.metrics``.
        session: The Ray session. Without one, all calls share one Ray until the process ends; see ``fr.shutdown``.

    Yields:
        The report of each round, with its metrics and the parameters after it.

    Raises:
        BadInput: An argument, the data or the model is invalid. It is raised before the first round.
        RunFailed: A round cannot be completed.

    Examples:
        >>> for report in fr.iter_rounds(fr.load("digits.yaml")):
        ...     print(report.round_index, report.metrics["train_loss"])
    """
    from fednar_ray.execution.shared_session import open_session

    given = Given(federation=federation, model=model, metrics=name_metrics(metrics))
    experiment = add_metrics(experiment, given.metrics)
    with open_session(session) as ray_session:
        prepared = draw_unsaved_key(given.prepare(experiment, ray_session))
        plan = plan_execution(prepared, ray_session)
        with open_pool(prepared, plan, ray_session) as pool:
            yield from train_rounds(prepared, plan, pool, build_initial_state(prepared))


def build_client_states(prepared: Prepared, directory: Path | None = None) -> ClientStates:
    """Returns client states without any client. What exceeds their memory is written to a file in ``directory``."""
    limit = prepared.experiment.execution.state_memory_bytes
    return ClientStates(prepared.model_bytes // 4, None if limit == "auto" else limit, directory)


def build_initial_state(prepared: Prepared, directory: Path | None = None) -> FederationState:
    """Returns the state before round 0; ``directory`` as in ``build_client_states``."""
    return FederationState.start(
        prepared.algorithm,
        flatten(prepared.model),
        flatten_buffers(prepared.model, prepared.traits.changed_buffers),
        build_client_states(prepared, directory),
        None if prepared.privacy is None else prepared.privacy.initial_bound,
    )


def build_round_plan(prepared: Prepared, execution_plan: ExecutionPlan) -> RoundPlan:
    """Builds what the round loop needs to know about a prepared experiment."""
    experiment, federation = prepared.experiment, prepared.federation
    return RoundPlan(
        rounds=experiment.federation.rounds,
        clients_per_round=prepared.clients_per_round,
        participation=experiment.federation.participation,
        availability=prepared.availability,
        sizes=federation.shards.sizes,
        workload=experiment.federation.workload,
        group_size=execution_plan.group_size,
        algorithm=prepared.algorithm,
        aggregation=experiment.aggregation,
        max_deviation=experiment.screening.max_deviation,
        min_clients=experiment.execution.min_clients,
        tracks_buffers=prepared.traits.tracks_buffers,
        evaluate_every=experiment.evaluation.every,
        scalars=experiment.compute_scalars,
        client_names=federation.client_names,
        secure=prepared.build_secure_plan(),
        privacy=prepared.privacy,
        examples=prepared.examples,
    )


def train_rounds(
    prepared: Prepared,
    execution_plan: ExecutionPlan,
    pool: ClientPool,
    state: FederationState,
    splits: Collection[str] = SPLITS,
) -> Iterator[RoundReport]:
    """Runs the round loop of a prepared experiment.

    Args:
        prepared: The experiment with its data and model.
        execution_plan: Where clients are trained.
        pool: The pool that trains and evaluates.
        state: The state before the next round. It is advanced by each round.
        splits: The splits that are evaluated.

    Yields:
        The report of each round.
    """
    experiment, federation = prepared.experiment, prepared.federation
    if prepared.model_bytes >= LARGE_BYTES:
        keep_freed_memory(KEPT_VECTORS * prepared.model_bytes, prepared.model_bytes)
    by_client, federated = execution_plan.placement == "dedicated", experiment.evaluation.federated
    texts = not isinstance(prepared.model, NumericSequential)
    evaluation = Evaluation(
        federation,
        pool.score,
        splits,
        federated=federated,
        by_client=by_client,
        texts=texts,
        task=prepared.task,
        own_metrics=prepared.own_metrics,
    )
    return run_rounds(build_round_plan(prepared, execution_plan), pool, state, evaluation)
