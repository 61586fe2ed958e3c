"""The composition root: an experiment in, wired parts out, rounds drained."""

import copy
import hashlib
import logging
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fednar_ray.alerts import Alert, alerts_of
from fednar_ray.checkpoint.storage import open_storage
from fednar_ray.checkpoint.store import CheckpointStore
from fednar_ray.checkpointing import Checkpointing
from fednar_ray.config import Experiment, digest, dotted
from fednar_ray.data.federation import Federation
from fednar_ray.errors import ConfigError
from fednar_ray.execution.places import ActorPlace
from fednar_ray.execution.prometheus import RoundMetrics
from fednar_ray.execution.ray_session import RaySession
from fednar_ray.federation_state import FederationState
from fednar_ray.figures import draw_curves, draw_partition, draw_step_norms
from fednar_ray.lookout import Lookout, chance_of
from fednar_ray.messages import RoundRecord, RoundReport
from fednar_ray.placement import Resolved, place, resolve
from fednar_ray.preparation import Prepared, prepare
from fednar_ray.resumption import Resumption, resume_from
from fednar_ray.runs import FINISHED, storage_of
from fednar_ray.tracking.journal import ROUNDS_FILE, Journal, run_directory
from fednar_ray.tracking.mlflow import DataSummary, RunTracker, Store
from fednar_ray.tracking.system_metrics import system_metrics
from fednar_ray.training import initial_state, rounds_of, shared_or_own
from fednar_ray.vectors import FloatVector, load_buffers, load_parameters

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
    places: tuple[ActorPlace, ...]  # where each actor lived; dedicated: by client; none where nothing was left to train
    cohort_width: int  # C
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

    Raises TrackingUnavailable where MLflow does not answer, or has not got the model yet.
    """
    return Store(result.tracking_uri).register_model(result.run_id, name)


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
) -> Generator[RoundReport, None, Result]:
    """The rounds of a tracked run; the generator returns its Result. ``tags`` and ``name`` go to a new MLflow run."""
    if resumption is not None and resumption.kept.finished and not _rounds_left(prepared, resumption):
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
        tracker = stack.enter_context(
            RunTracker(identity.store, identity.run_id, identity.directory, resumed=resumption is not None)
        )
        stack.enter_context(_system_metrics(prepared, identity, resumption))
        journal = stack.enter_context(_journal(prepared, identity.directory, resumption))
        if resumption is None:
            _log_inputs(prepared, resolved, tracker, identity.directory, data_digest)
        tracker.log(journal)  # a run that goes on may owe rounds of before
        label = name or identity.directory.name
        lookout = stack.enter_context(Lookout(label, prepared, tracker, journal.records()))
        state = _state(prepared, resumption, identity.directory)
        checkpoints = stack.enter_context(
            _checkpointing(prepared, resolved, identity, state, journal, data_digest, resumption)
        )
        prometheus = RoundMetrics(identity.directory.name)
        for report in rounds_of(prepared, resolved, pool, state):
            journal.log(report)
            tracker.log(journal)
            checkpoints.round_ended()
            lookout.round_ended(report)
            prometheus.round_ended(report)
            yield report
        places = tuple(pool.places())
        history = journal.records()[: prepared.experiment.federation.rounds]
        final = _model_of(prepared, state)
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
            cohort_width=resolved.width,
            resumed_from_round=None if resumption is None else resumption.checkpoint.next_round,
            alerts=lookout.alerts,
        )
    (result.directory / FINISHED).touch()
    return result


def _rounds_left(prepared: Prepared, resumption: Resumption) -> bool:
    return resumption.checkpoint.next_round < prepared.experiment.federation.rounds


def _finished(prepared: Prepared, resumption: Resumption) -> Result:
    """The result of a run that left nothing to do, from its last checkpoint."""
    state = FederationState.restored(resumption.checkpoint, initial_state(prepared))
    with Journal(resumption.kept.directory, prepared.experiment, lines=resumption.checkpoint.history) as journal:
        history = journal.records()
    facts = resumption.checkpoint.facts
    return Result(
        experiment=prepared.experiment,
        history=history,
        parameters=state.now.server.parameters,
        model=_model_of(prepared, state),
        run_id=resumption.run_id,
        tracking_uri=resumption.tracking_uri,
        directory=resumption.kept.directory,
        placement=facts["placement"],
        places=(),
        cohort_width=facts["cohort_width"],
        resumed_from_round=resumption.checkpoint.next_round,
        alerts=alerts_of(prepared.experiment, history, chance_of(prepared.federation)),
    )


def _opened(experiment: Experiment, resumption: Resumption | None) -> tuple[Store, str | None]:
    """The store, which must answer where the run is new; and the id of its MLflow experiment."""
    return open_store(experiment) if resumption is None else (Store(resumption.tracking_uri), None)


def _identity(
    experiment: Experiment,
    store: Store,
    experiment_id: str | None,
    name: str | None,
    tags: Mapping[str, str],
    resumption: Resumption | None,
) -> _Identity:
    """A new MLflow run, once everything else is at work; or the one that goes on, whether its store answers or not."""
    if resumption is not None:
        return _Identity(store=store, run_id=resumption.run_id, directory=resumption.kept.directory)
    assert experiment_id is not None
    run_id = store.create_run(experiment_id, name or experiment.name, tags)
    return _Identity(store=store, run_id=run_id, directory=run_directory(experiment, run_id))


def _system_metrics(
    prepared: Prepared, identity: _Identity, resumption: Resumption | None
) -> AbstractContextManager[None]:
    wanted = prepared.experiment.tracking.system_metrics
    return system_metrics(wanted, identity.run_id, identity.store.uri, resumed=resumption is not None)


def _journal(prepared: Prepared, directory: Path, resumption: Resumption | None) -> Journal:
    if resumption is None:
        return Journal(directory, prepared.experiment)
    (directory / FINISHED).unlink(missing_ok=True)
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
    resolved: Resolved,
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
        "cohort_width": resolved.width,
    }
    written = None if resumption is None else resumption.checkpoint.next_round
    return Checkpointing(_store(prepared, identity, resumption), settings.every, state, journal, facts, written)


def _store(prepared: Prepared, identity: _Identity, resumption: Resumption | None) -> CheckpointStore:
    """Of the run's checkpoints; the one that was loaded from, unless they go elsewhere now."""
    keep, location = prepared.experiment.checkpoint.keep, storage_of(prepared.experiment, identity.directory)
    if resumption is None or resumption.kept.storage != location:
        return CheckpointStore(open_storage(location), keep)
    resumption.checkpoints.keep = keep
    return resumption.checkpoints


def _model_of(prepared: Prepared, state: FederationState) -> nn.Module:
    """The model that is evaluated."""
    module = copy.deepcopy(prepared.model).cpu()
    load_parameters(module, prepared.algorithm.server.readout(state.now.server))
    load_buffers(module, state.now.buffers)
    return module.eval()


def _log_inputs(prepared: Prepared, resolved: Resolved, tracker: RunTracker, directory: Path, data_digest: str) -> None:
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
    tracker.log_file(draw_partition(federation.label_counts(), directory / "partition.png"))


def _log_outputs(
    prepared: Prepared, tracker: RunTracker, directory: Path, history: Sequence[RoundRecord], model: nn.Module
) -> None:
    """What the run ends with."""
    tracker.log_file(draw_curves(history, directory / "curves.png"))
    tracker.log_file(draw_step_norms(history, directory / "step_norms.png"))
    tracker.log_file(directory / ROUNDS_FILE)
    out = [(r.round_index, client_id, why) for r in history for client_id, why in r.failures.items()]
    if out:
        rows = [{"round": index, "client": client_id, "reason": why} for index, client_id, why in out]
        tracker.log_table(rows, "clients_that_did_not_count.json")
    tracker.save_model(model, prepared.federation.inputs(prepared.federation.test.x[:2]))
    torch.save(model.state_dict(), directory / "model.pt")
