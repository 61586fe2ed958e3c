"""The composition root: an experiment in, wired parts out, rounds drained."""

import hashlib
import logging
import shlex
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fednar_ray.checkpoint.storage import open_storage
from fednar_ray.checkpoint.store import CheckpointStore
from fednar_ray.config import Experiment, digest, dotted
from fednar_ray.core.errors import ConfigError, RunFailed, first_line
from fednar_ray.core.flat_params import FloatVector, flatten_buffers, load_buffers, load_parameters
from fednar_ray.core.messages import RoundRecord, RoundReport
from fednar_ray.core.module_state import leaf_copy
from fednar_ray.core.preprocessing import join_preprocessing
from fednar_ray.data.federation import Federation
from fednar_ray.execution.actor_info import ActorInfo
from fednar_ray.execution.prometheus import RoundMetrics
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.alerts import Alert, alerts_of
from fednar_ray.experiments.alerts.callback import AlertCallback, chance_of
from fednar_ray.experiments.checkpoint_callback import Checkpointing
from fednar_ray.experiments.iter_rounds import initial_state, rounds_of, shared_or_own
from fednar_ray.experiments.placement import ExecutionPlan, place, resolve
from fednar_ray.experiments.prepare import Prepared, prepare
from fednar_ray.experiments.resume import Resumption, resume_from
from fednar_ray.federated.server_state import FederationState
from fednar_ray.report.plots import draw_curves, draw_partition, draw_step_norms
from fednar_ray.tracking.journal import Journal
from fednar_ray.tracking.lines import sole_writer, writing
from fednar_ray.tracking.mlflow import DataSummary, RunTracker, Store
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.run_lookup import checkpoint_location
from fednar_ray.tracking.system_metrics import system_metrics
from fednar_ray.tracking.tags import COPIED_FROM_TAG

log = logging.getLogger("fednar_ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished run."""

    experiment: Experiment
    history: tuple[RoundRecord, ...]  # one a round
    parameters: FloatVector  # [d] the final iterate
    model: nn.Module  # takes raw inputs, as the data hold them; with the evaluated parameters (FedExP: their average)
    run_id: str  # MLflow's
    tracking_uri: str
    directory: Path  # runs/<name>-<id>
    placement: str  # serial, pooled or dedicated
    places: tuple[ActorInfo, ...]  # where each actor lived; dedicated: by client; none where nothing was left to train
    group_size: int  # C
    resumed_from_round: int | None  # None: begun in this process
    alerts: tuple[Alert, ...]  # what was wrong

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last round's metrics."""
        return self.history[-1].metrics

    @property
    def parameters_sha256(self) -> str:
        """SHA-256 of the final parameters, flat little-endian float32."""
        return hashlib.sha256(np.ascontiguousarray(self.parameters, dtype="<f4").tobytes()).hexdigest()


def run(
    experiment: Experiment | None = None,
    *,
    federation: Federation | None = None,
    model: nn.Module | None = None,
    session: RaySession | None = None,
    resume: str | Path | bool = False,
    may_change: Sequence[str] = (),
) -> Result:
    """Train, record in MLflow and in ``runs/``, and return the result. Arguments and errors as ``iter_rounds``.

    ``resume`` names a run (its name, id, directory, or the place of its checkpoints) that goes on from its newest
    whole checkpoint, ``experiment`` None: as it was begun.  True takes the newest run of the experiment, or begins one.
    ``may_change``: keys of the experiment that may differ from then; more rounds, and where it trains, always may.
    """
    if experiment is None and (resume is True or not resume):
        raise ConfigError(("experiment: missing; only a run that resume= names brings its own",))
    wanted = None if resume is True else str(resume)
    resumption = resume_from(wanted, experiment, may_change) if resume else None
    settings = resumption.experiment if resumption is not None else experiment
    assert settings is not None
    with shared_or_own(session) as ray_session:
        prepared = prepare(settings, federation, model, ray_session)
        return drain(train(prepared, ray_session, resumption=resumption))


def register(result: Result, name: str) -> int:
    """The result's model as the next version of ``name`` in MLflow's registry; returns the version.

    Raises BadInput where MLflow does not accept the name, and TrackingUnavailable where it does not answer, or has not
    got the model yet.
    """
    store = Store(result.tracking_uri)
    store.check_registration(name)
    return store.register_model(result.run_id, name)


def open_store(experiment: Experiment) -> tuple[Store, str]:
    """The experiment's tracking store, which answers, and the id of its MLflow experiment there."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Identity:
    """A run's place in MLflow and on disk."""

    store: Store
    run_id: str
    directory: Path


def train(
    prepared: Prepared,
    session: RaySession,
    *,
    tags: Mapping[str, str] | None = None,
    name: str | None = None,
    resumption: Resumption | None = None,
    started: Callable[[Path, int], None] | None = None,
    ready_first: bool = False,
) -> Generator[RoundReport, None, Result]:
    """The rounds of a tracked run; the generator returns its Result. ``tags`` and ``name`` go to a new MLflow run.

    ``started`` is called with the run directory and the client group width of a new run, before its first round.
    ``ready_first``: the first round begins when all actors have started and warmed up, so that no round contains that.
    """
    if resumption is not None:
        _check_buffers(prepared, resumption)
    if resumption is not None and resumption.kept.files.finished and not _rounds_left(prepared, resumption):
        return _finished(prepared, resumption)
    # an address with a password is refused before Ray starts
    Store(prepared.experiment.tracking.uri if resumption is None else resumption.tracking_uri)
    with ThreadPoolExecutor(1) as background, ExitStack() as stack:
        opening = background.submit(_opened, prepared.experiment, resumption)
        digesting = background.submit(prepared.federation.digest)
        resolved = resolve(prepared, session)
        pool = stack.enter_context(place(prepared, resolved, session))
        opened, data_digest = opening.result(), digesting.result()
        _check_data(data_digest, resumption)
        identity = _identity(prepared.experiment, *opened, name, tags or {}, resumption)
        stack.enter_context(_with_how_to_resume(prepared.experiment, identity.directory))
        copied = resumption is not None and identity.run_id != resumption.run_id
        resumed = resumption is not None and not copied
        tracker = stack.enter_context(
            RunTracker(identity.store, identity.run_id, identity.directory, resumed=resumed, copied=copied)
        )
        if started is not None and resumption is None:
            started(identity.directory, resolved.width)
        stack.enter_context(_system_metrics(prepared, identity, resumption))
        journal = stack.enter_context(_journal(prepared, identity.directory, resumption))
        if resumption is None:
            _log_inputs(prepared, resolved, tracker, identity.directory, data_digest)
        tracker.log(journal)  # a run that goes on may owe rounds of before
        label = name or identity.directory.name
        lookout = stack.enter_context(AlertCallback(label, prepared, tracker, journal.records()))
        state = _state(prepared, resumption, identity.directory)
        checkpoints = stack.enter_context(
            _checkpointing(prepared, resolved, identity, state, journal, data_digest, resumption)
        )
        prometheus = RoundMetrics(identity.directory.name)
        if ready_first:
            pool.wait_until_ready()
        for report in rounds_of(prepared, resolved, pool, state):
            journal.log(report)
            tracker.log(journal)
            checkpoints.round_ended()
            lookout.round_ended(report)
            prometheus.round_ended(report)
            yield report
        places = tuple(pool.actor_infos())
        history = journal.records()[: prepared.experiment.federation.rounds]
        final = _saved_model(prepared, state)
        _log_outputs(prepared, tracker, identity.directory, history, final)
        result = Result(
            experiment=prepared.experiment,
            history=history,
            parameters=state.now.server.parameters,
            model=final,
            run_id=identity.run_id,
            tracking_uri=identity.store.uri,
            directory=identity.directory,
            placement=resolved.placement,
            places=places,
            group_size=resolved.width,
            resumed_from_round=None if resumption is None else resumption.checkpoint.next_round,
            alerts=lookout.alerts,
        )
    finished = RunDirectory(result.directory).finished_mark
    with writing(finished):
        finished.touch()
    return result


def _check_buffers(prepared: Prepared, resumption: Resumption) -> None:
    """Raises ConfigError where the checkpoint averages other buffers than this model does."""
    kept = len(resumption.checkpoint.arrays["buffers"])
    now = len(flatten_buffers(prepared.model, prepared.traits.changed_buffers))
    if kept != now:
        text = f"its checkpoint has {kept} values of averaged buffers, and this model has {now}"
        raise ConfigError(
            (f"{resumption.kept.name}: {text}; resume it with the model and version that it started with",)
        )


def _rounds_left(prepared: Prepared, resumption: Resumption) -> bool:
    return resumption.checkpoint.next_round < prepared.experiment.federation.rounds


def _finished(prepared: Prepared, resumption: Resumption) -> Result:
    """The result of a run that left nothing to do, from its last checkpoint."""
    state = FederationState.restored(resumption.checkpoint, initial_state(prepared))
    directory = resumption.kept.directory
    with (
        sole_writer(directory),
        Journal(directory, prepared.experiment, lines=resumption.checkpoint.history) as journal,
    ):
        history = journal.records()
    facts = resumption.checkpoint.facts
    return Result(
        experiment=prepared.experiment,
        history=history,
        parameters=state.now.server.parameters,
        model=_saved_model(prepared, state),
        run_id=resumption.run_id,
        tracking_uri=resumption.tracking_uri,
        directory=resumption.kept.directory,
        placement=facts["placement"],
        places=(),
        group_size=facts["vectorize"],
        resumed_from_round=resumption.checkpoint.next_round,
        alerts=alerts_of(prepared.experiment, history, chance_of(prepared.federation)),
    )


def _opened(experiment: Experiment, resumption: Resumption | None) -> tuple[Store, str | None]:
    """The store, which must answer where an MLflow run is to be made there; and the id of its experiment then."""
    if resumption is None:
        return open_store(experiment)
    store = Store(resumption.tracking_uri)
    if not _is_copy(resumption, store):
        return store, None
    store.check()
    return store, store.experiment_id(experiment.tracking.experiment or experiment.name)


def _is_copy(resumption: Resumption, store: Store) -> bool:
    """Whether the run's directory was copied, so that another one goes on in its MLflow run."""
    original, identity = resumption.copied_from, resumption.identity
    if original is not None:
        log.warning("%s is a copy of %s: it gets an MLflow run of its own", resumption.kept.directory, original)
        return True
    if identity is None or identity.writer is None:
        return False
    writer = store.last_writer(identity.run_id)
    if writer is None or writer in identity.writers:
        return False
    log.warning(
        "MLflow run %s was resumed from another copy of %s: this one gets an MLflow run of its own",
        identity.run_id, resumption.kept.directory,
    )  # fmt: skip
    return True


def _identity(
    experiment: Experiment,
    store: Store,
    experiment_id: str | None,
    name: str | None,
    tags: Mapping[str, str],
    resumption: Resumption | None,
) -> _Identity:
    """A new MLflow run, once everything else is at work; or the one that goes on, whether its store answers or not."""
    if resumption is not None and experiment_id is None:
        return _Identity(store=store, run_id=resumption.run_id, directory=resumption.kept.directory)
    assert experiment_id is not None
    copied = {} if resumption is None else {COPIED_FROM_TAG: resumption.run_id}
    run_id = store.create_run(experiment_id, name or experiment.name, {**tags, **copied})
    directory = RunDirectory.of_run(experiment.name, run_id).path if resumption is None else resumption.kept.directory
    return _Identity(store=store, run_id=run_id, directory=directory)


def _system_metrics(
    prepared: Prepared, identity: _Identity, resumption: Resumption | None
) -> AbstractContextManager[None]:
    wanted = prepared.experiment.tracking.system_metrics
    return system_metrics(wanted, identity.run_id, identity.store.uri, resumed=resumption is not None)


def _journal(prepared: Prepared, directory: Path, resumption: Resumption | None) -> Journal:
    if resumption is None:
        return Journal(directory, prepared.experiment)
    RunDirectory(directory).finished_mark.unlink(missing_ok=True)
    journal = Journal(directory, prepared.experiment, lines=resumption.checkpoint.history)
    if resumption.anew:
        journal.truncate(resumption.checkpoint.next_round)
    return journal


def _check_data(data_digest: str, resumption: Resumption | None) -> None:
    if resumption is not None and data_digest != resumption.data_digest:
        raise ConfigError((f"{resumption.kept.name}: the data are not those that it was begun with",))


def _state(prepared: Prepared, resumption: Resumption | None, directory: Path) -> FederationState:
    if resumption is None:
        return initial_state(prepared, directory)
    d, kept = prepared.model_bytes // 4, len(resumption.checkpoint.arrays["parameters"])
    if d != kept:
        raise ConfigError((f"{resumption.kept.name}: its model has {kept} parameters, and this one {d}",))
    log.warning("%s goes on from round %d", resumption.kept.name, resumption.checkpoint.next_round)
    return FederationState.restored(resumption.checkpoint, initial_state(prepared, directory))


def _checkpointing(
    prepared: Prepared,
    resolved: ExecutionPlan,
    identity: _Identity,
    state: FederationState,
    journal: Journal,
    data_digest: str,
    resumption: Resumption | None,
) -> Checkpointing:
    settings = prepared.experiment.checkpoint
    facts = {
        "experiment": prepared.experiment.model_dump(mode="json", exclude_none=True),
        "experiment_sha256": digest(prepared.experiment),
        "data_digest": data_digest,
        "run_id": identity.run_id,
        "tracking_uri": identity.store.uri,
        "placement": resolved.placement,
        "vectorize": resolved.width,
    }
    written = None if resumption is None else resumption.checkpoint.next_round
    return Checkpointing(_store(prepared, identity, resumption), settings.every, state, journal, facts, written)


def _store(prepared: Prepared, identity: _Identity, resumption: Resumption | None) -> CheckpointStore:
    """Of the run's checkpoints; the one that was loaded from, unless they go elsewhere now."""
    keep, location = prepared.experiment.checkpoint.keep, checkpoint_location(prepared.experiment, identity.directory)
    if resumption is None or resumption.kept.storage != location:
        return CheckpointStore(open_storage(location), keep)
    resumption.checkpoints.keep = keep
    return resumption.checkpoints


def _model_of(prepared: Prepared, state: FederationState) -> nn.Module:
    """The model that is evaluated."""
    module = leaf_copy(prepared.model).cpu()
    load_parameters(module, prepared.algorithm.server.eval_params(state.now.server))
    load_buffers(module, state.now.buffers, prepared.traits.changed_buffers)
    return module.eval()


def _saved_model(prepared: Prepared, state: FederationState) -> nn.Module:
    """The model that is evaluated, behind what the run does to raw inputs."""
    return join_preprocessing(prepared.federation.preprocessing, _model_of(prepared, state))


def _log_inputs(
    prepared: Prepared, resolved: ExecutionPlan, tracker: RunTracker, directory: Path, data_digest: str
) -> None:
    """What the run starts from."""
    federation = prepared.federation
    tracker.log_params(dotted(prepared.experiment))
    tracker.log_tags(resolved.tags())
    block = federation.shards.examples
    tracker.log_data(
        DataSummary(
            name=federation.name,
            digest=data_digest[:16],
            clients=federation.clients,
            examples=len(block),
            input_shape=block.x.shape[1:],
            classes=federation.classes,
        )
    )
    tracker.log_experiment(prepared.experiment)
    counts = federation.label_counts()
    _log_picture(tracker, lambda path: draw_partition(counts, path), RunDirectory(directory).partition_plot)


def _log_outputs(
    prepared: Prepared, tracker: RunTracker, directory: Path, history: Sequence[RoundRecord], model: nn.Module
) -> None:
    """What the run ends with."""
    _log_picture(tracker, lambda path: draw_curves(history, path), RunDirectory(directory).curves_plot)
    _log_picture(tracker, lambda path: draw_step_norms(history, path), RunDirectory(directory).step_norms_plot)
    tracker.log_file(RunDirectory(directory).journal)
    out = [(r.round_index, client_id, str(why)) for r in history for client_id, why in r.exclusions.items()]
    if out:
        rows = [{"round": index, "client": client_id, "reason": why} for index, client_id, why in out]
        tracker.log_table(rows, RunDirectory(directory).excluded_clients_table.name)
    preprocessing = prepared.federation.preprocessing
    columns = None if preprocessing is None else preprocessing.columns
    tracker.save_model(model, prepared.federation.build_example(), columns)
    _save_parameters(model, RunDirectory(directory).parameters)


def _log_picture(tracker: RunTracker, draw: Callable[[Path], Path], path: Path) -> None:
    """Draws a picture and logs it. One that cannot be written is warned about: the run does without it."""
    try:
        draw(path)
    except OSError as error:
        log.warning("%s was not drawn: %s", path, error.strerror or error)
        with suppress(OSError):
            path.unlink()  # half a picture
    else:
        tracker.log_file(path)


def _save_parameters(model: nn.Module, path: Path) -> None:
    """Raises RunFailed where there is no room."""
    try:
        with writing(path):
            torch.save(model.state_dict(), path)
    except RuntimeError as error:  # torch's own, for a file that it cannot write
        raise RunFailed(f"{path} cannot be written: {first_line(error)}") from error


@contextmanager
def _with_how_to_resume(experiment: Experiment, directory: Path) -> Iterator[None]:
    """Adds to what ended a run how it is resumed."""
    try:
        yield
    except RunFailed as error:
        if experiment.checkpoint.every is not None and RunDirectory(directory).journal.exists():
            error.add_note(f"once that is mended, resume with: fednar run --resume {shlex.quote(directory.name)}")
        raise
