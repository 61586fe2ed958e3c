"""The composition root: an experiment in, wired parts out, rounds drained."""

import copy
import hashlib
import logging
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fednar_ray.algorithms.registry import build_algorithm
from fednar_ray.algorithms.regularizers import REGULARIZERS
from fednar_ray.cohorts import ModelTraits, cohort_width, probe
from fednar_ray.config import Experiment
from fednar_ray.data.federation import Federation, load_federation
from fednar_ray.errors import ConfigError, ModelError, RunFailed
from fednar_ray.evaluation import Evaluator
from fednar_ray.execution.capacity import ActorPlan, ClusterResources, choose_placement, plan_dedicated, plan_pooled
from fednar_ray.execution.places import ActorPlace
from fednar_ray.execution.ray_pool import RayPool
from fednar_ray.execution.ray_session import RaySession
from fednar_ray.execution.serial import SerialPool
from fednar_ray.figures import draw_curves, draw_partition
from fednar_ray.local_training import TrainingPlan
from fednar_ray.messages import RoundRecord, RoundReport
from fednar_ray.models import build_model
from fednar_ray.rounds import FederationState, RoundPlan, run_rounds
from fednar_ray.tracking.journal import Journal, run_directory
from fednar_ray.tracking.mlflow import DataSummary, RunTracker, Store, flattened
from fednar_ray.vectors import FloatVector, ParameterLayout, flatten, flatten_buffers, load_buffers, load_parameters

log = logging.getLogger("fednar_ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished run."""

    experiment: Experiment
    history: tuple[RoundRecord, ...]  # one a round
    parameters: FloatVector  # [d] the final iterate
    model: nn.Module  # the evaluated parameters (FedExP: its average)
    run_id: str  # MLflow's
    tracking_uri: str
    directory: Path  # runs/<name>-<id>
    placement: str  # serial, pooled or dedicated
    places: tuple[ActorPlace, ...]  # where each actor lived; dedicated: by client
    cohort_width: int  # C

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last round's metrics."""
        return self.history[-1].metrics

    @property
    def parameters_sha256(self) -> str:
        """SHA-256 of the final parameters, flat little-endian float32."""
        return hashlib.sha256(np.ascontiguousarray(self.parameters, dtype="<f4").tobytes()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An experiment with its data and model, checked; nothing is started yet."""

    experiment: Experiment
    federation: Federation
    model: nn.Module
    traits: ModelTraits

    @property
    def model_bytes(self) -> int:
        """4·d."""
        return 4 * ParameterLayout.of(self.model).dimension


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A pool at work, and what was resolved for it."""

    pool: SerialPool | RayPool
    placement: str
    actors: int  # 0: the driver itself
    width: int

    def tags(self) -> dict[str, str]:
        """For the run's record."""
        return {
            "fednar.placement": self.placement,
            "fednar.actors": str(self.actors),
            "fednar.cohort_width": str(self.width),
        }


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
    prepared = prepare(experiment, federation, model)
    with _session(session) as ray_session, place(prepared, ray_session) as placed:
        yield from _rounds(prepared, placed)


def run(
    experiment: Experiment,
    *,
    federation: Federation | None = None,
    model: nn.Module | None = None,
    session: RaySession | None = None,
) -> Result:
    """Train, record in MLflow and in ``runs/``, and return the result. Arguments and errors as ``iter_rounds``."""
    prepared = prepare(experiment, federation, model)
    with _session(session) as ray_session:
        return drain(train(prepared, ray_session))


def _session(shared: RaySession | None) -> AbstractContextManager[RaySession]:
    """The caller's session, which stays open, or one for this run alone."""
    return nullcontext(shared) if shared is not None else RaySession()


def _open_store(experiment: Experiment) -> tuple[Store, str]:
    store = Store(experiment.tracking.uri)
    store.check()
    return store, store.experiment_id(experiment.tracking.experiment or experiment.name)


def drain(training: Generator[RoundReport, None, Result]) -> Result:
    """Run a training to its end."""
    while True:
        try:
            next(training)
        except StopIteration as end:
            result: Result = end.value
            return result


def train(
    prepared: Prepared, session: RaySession, tags: Mapping[str, str] | None = None, name: str | None = None
) -> Generator[RoundReport, None, Result]:
    """The rounds of a tracked run; the generator returns its Result. ``tags`` and ``name`` go to the MLflow run."""
    experiment = prepared.experiment
    with ThreadPoolExecutor(1) as background, ExitStack() as stack:
        opening = background.submit(_open_store, experiment)
        if experiment.execution.placement != "serial":
            _plan(prepared, session.resources())  # refuses what cannot fit before a local Ray starts
            session.connect()  # takes seconds, as does a new store
        store, experiment_id = opening.result()
        placed = stack.enter_context(place(prepared, session))
        tracker = stack.enter_context(RunTracker(store, experiment_id, name or experiment.name, tags or {}))
        directory = run_directory(experiment, tracker.run_id)
        journal = stack.enter_context(Journal(directory, experiment))
        _log_inputs(prepared, placed, tracker, directory)
        history: list[RoundRecord] = []
        report = None
        for report in _rounds(prepared, placed):
            tracker.log(report)
            journal.log(report)
            history.append(report.record())
            yield report
        if report is None:
            raise RunFailed("the experiment has no rounds left to train")
        final = _module_at(prepared.model, report)
        _log_outputs(prepared, tracker, directory, history, final)
        return Result(
            experiment=experiment,
            history=tuple(history),
            parameters=report.parameters,
            model=final,
            run_id=tracker.run_id,
            tracking_uri=tracker.uri,
            directory=directory,
            placement=placed.placement,
            places=tuple(placed.pool.places()),
            cohort_width=placed.width,
        )
    raise AssertionError("unreachable: no part of a training suppresses errors")


def prepare(experiment: Experiment, federation: Federation | None = None, model: nn.Module | None = None) -> Prepared:
    """Load the data, build the model, and check that they fit each other. Raises BadInput's kinds."""
    if federation is None and experiment.data is None:
        raise ConfigError(("data: missing; give a data section, or federation=",))
    if model is None and experiment.model is None:
        raise ConfigError(("model: missing; give a model section, or model=",))
    if federation is None:
        assert experiment.data is not None
        federation = load_federation(experiment.data, experiment.seed)
    _check_sampling(experiment, federation)
    if model is None:
        assert experiment.model is not None
        shape = federation.shards.examples.x.shape[1:]
        model = build_model(experiment.model, shape, federation.classes, experiment.seed)
    ParameterLayout.of(model)
    traits = probe(model, federation.shards.examples, federation.classes)
    if traits.alone_because is not None and experiment.execution.cohort_width != 1:
        log.warning("clients train one by one (cohort width 1): %s", traits.alone_because)
    if not np.isfinite(flatten(model)).all():
        raise ModelError("the model's parameters are not finite before training")
    return Prepared(experiment=experiment, federation=federation, model=model, traits=traits)


def _check_sampling(experiment: Experiment, federation: Federation) -> None:
    settings, sizes = experiment.federation, federation.shards.sizes
    present, problems = int((sizes > 0).sum()), []
    sampled = settings.clients_per_round
    if settings.participation is None and sampled is not None and sampled > present:
        problems.append(f"federation.clients_per_round: {sampled} is more than the clients with examples ({present})")
    for index, ids in enumerate(settings.participation or ()):
        wrong = [i for i in ids if i >= len(sizes) or not sizes[i]]
        if wrong:
            place = f"federation.participation.{index}"
            problems.append(f"{place}: {wrong}: no such clients, or without examples; ids run to {len(sizes) - 1}")
    if problems:
        raise ConfigError(tuple(problems))


@contextmanager
def place(prepared: Prepared, session: RaySession) -> Iterator[Placed]:
    """Resolve width, placement and actors, and open the pool."""
    settings, federation = prepared.experiment.execution, prepared.federation
    if settings.placement == "serial":
        width = _width(prepared, gpu=False)
        pool = SerialPool(_training_plan(prepared), federation.shards)
        yield Placed(pool=pool, placement="serial", actors=0, width=width)
        return
    placement, width, actors = _plan(prepared, session.resources())
    plan = _training_plan(prepared)
    if placement == "dedicated":
        ray_pool = RayPool.dedicated(session, actors, plan, federation.shards)
    else:
        ray_pool = RayPool.pooled(session, actors, plan, federation.shards, _largest_clients(prepared, width))
    with closing(ray_pool):
        yield Placed(pool=ray_pool, placement=placement, actors=actors.count, width=width)


def _plan(prepared: Prepared, cluster: ClusterResources) -> tuple[str, int, ActorPlan]:
    """Placement, cohort width and actors on a cluster. Raises CapacityError where they do not fit."""
    settings, clients = prepared.experiment.execution, prepared.federation.clients
    gpu = cluster.gpus > 0 and settings.gpus_per_actor != 0
    width = 1 if settings.placement == "dedicated" else _width(prepared, gpu)
    placement = choose_placement(settings, width, clients, cluster, prepared.model_bytes)
    if placement == "dedicated":
        return placement, width, plan_dedicated(settings, clients, cluster, prepared.model_bytes)
    cohorts = -(-_clients_per_round(prepared) // width)
    return placement, width, plan_pooled(settings, cohorts, cluster, prepared.model_bytes)


def _largest_clients(prepared: Prepared, width: int) -> tuple[int, ...]:
    """As many clients as a round's first cohort has, those with most examples."""
    count = -(-_clients_per_round(prepared) // -(-_clients_per_round(prepared) // width))
    return tuple(np.argsort(-prepared.federation.shards.sizes, kind="stable")[:count].tolist())


def _clients_per_round(prepared: Prepared) -> int:
    settings = prepared.experiment.federation
    if settings.participation is not None:
        return max(len(ids) for ids in settings.participation)
    return settings.clients_per_round or int((prepared.federation.shards.sizes > 0).sum())


def _width(prepared: Prepared, gpu: bool) -> int:
    wanted, because = prepared.experiment.execution.cohort_width, prepared.traits.alone_because
    if because is not None:
        return 1
    if wanted != "auto":
        return wanted
    batch_size = min(prepared.experiment.federation.batch_size, int(prepared.federation.shards.sizes.max()))
    return cohort_width(prepared.traits, _clients_per_round(prepared), batch_size, gpu)


def _training_plan(prepared: Prepared) -> TrainingPlan:
    experiment = prepared.experiment
    algorithm = build_algorithm(experiment.algorithm)
    return TrainingPlan(
        model=prepared.model,
        rule=algorithm.local,
        regularizer=REGULARIZERS[experiment.regularizer.name],
        weighted=algorithm.weighted,
        workload=experiment.federation.workload,
        seed=experiment.seed,
        tracks_buffers=prepared.traits.tracks_buffers,
    )


def _rounds(prepared: Prepared, placed: Placed) -> Iterator[RoundReport]:
    experiment, federation = prepared.experiment, prepared.federation
    algorithm = build_algorithm(experiment.algorithm)
    plan = RoundPlan(
        seed=experiment.seed,
        rounds=experiment.federation.rounds,
        clients_per_round=_clients_per_round(prepared),
        participation=experiment.federation.participation,
        sizes=federation.shards.sizes,
        workload=experiment.federation.workload,
        width=placed.width,
        algorithm=algorithm,
        tracks_buffers=prepared.traits.tracks_buffers,
        scalars=experiment.scalars,
    )
    state = FederationState.initial(algorithm, flatten(prepared.model), flatten_buffers(prepared.model))
    splits = {"validation": federation.validation, "test": federation.test}
    evaluate = Evaluator(prepared.model, {name: split for name, split in splits.items() if split is not None})
    return run_rounds(plan, placed.pool, state, evaluate)


def _module_at(model: nn.Module, report: RoundReport) -> nn.Module:
    module = copy.deepcopy(model).cpu()
    load_parameters(module, report.readout)
    load_buffers(module, report.buffers)
    return module.eval()


def _log_inputs(prepared: Prepared, placed: Placed, tracker: RunTracker, directory: Path) -> None:
    """What the run starts from."""
    federation = prepared.federation
    tracker.log_params(flattened(prepared.experiment))
    tracker.log_tags(placed.tags())
    block = federation.shards.examples
    digest = hashlib.sha256(block.x.data if block.x.flags.c_contiguous else block.x.tobytes())
    digest.update(block.y.data)
    tracker.log_data(
        DataSummary(
            name=federation.name,
            digest=digest.hexdigest()[:16],
            clients=federation.clients,
            examples=len(block),
            input_shape=block.x.shape[1:],
            classes=federation.classes,
        )
    )
    tracker.log_experiment(prepared.experiment)
    tracker.log_file(draw_partition(federation.label_counts(), directory / "partition.png"))


def _log_outputs(
    prepared: Prepared, tracker: RunTracker, directory: Path, history: list[RoundRecord], model: nn.Module
) -> None:
    """What the run ends with."""
    tracker.log_file(draw_curves(history, directory / "curves.png"))
    tracker.log_model(model, prepared.federation.test.x[:2])
    torch.save(model.state_dict(), directory / "model.pt")
