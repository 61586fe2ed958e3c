"""The composition root: an experiment in, wired parts out, rounds drained."""

import copy
import hashlib
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fednar_ray.config import Experiment
from fednar_ray.data.federation import Federation
from fednar_ray.errors import RunFailed
from fednar_ray.execution.places import ActorPlace
from fednar_ray.execution.ray_session import RaySession
from fednar_ray.figures import draw_curves, draw_partition
from fednar_ray.messages import RoundRecord, RoundReport
from fednar_ray.placement import Resolved, place, resolve
from fednar_ray.preparation import Prepared, prepare
from fednar_ray.tracking.journal import Journal, run_directory
from fednar_ray.tracking.mlflow import DataSummary, RunTracker, Store, flattened
from fednar_ray.training import rounds_of, shared_or_own
from fednar_ray.vectors import FloatVector, load_buffers, load_parameters


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


def run(
    experiment: Experiment,
    *,
    federation: Federation | None = None,
    model: nn.Module | None = None,
    session: RaySession | None = None,
) -> Result:
    """Train, record in MLflow and in ``runs/``, and return the result. Arguments and errors as ``iter_rounds``."""
    prepared = prepare(experiment, federation, model)
    with shared_or_own(session) as ray_session:
        return drain(train(prepared, ray_session))


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


def train(
    prepared: Prepared, session: RaySession, tags: Mapping[str, str] | None = None, name: str | None = None
) -> Generator[RoundReport, None, Result]:
    """The rounds of a tracked run; the generator returns its Result. ``tags`` and ``name`` go to the MLflow run."""
    experiment = prepared.experiment
    with ThreadPoolExecutor(1) as background, ExitStack() as stack:
        opening = background.submit(open_store, experiment)  # a new one takes seconds, as does Ray
        resolved = resolve(prepared, session)
        pool = stack.enter_context(place(prepared, resolved, session))
        store, experiment_id = opening.result()
        tracker = stack.enter_context(RunTracker(store, experiment_id, name or experiment.name, tags or {}))
        directory = run_directory(experiment, tracker.run_id)
        journal = stack.enter_context(Journal(directory, experiment))
        _log_inputs(prepared, resolved, tracker, directory)
        history: list[RoundRecord] = []
        report = None
        for report in rounds_of(prepared, resolved, pool):
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
            placement=resolved.placement,
            places=tuple(pool.places()),
            cohort_width=resolved.width,
        )
    raise AssertionError("unreachable: no part of a training suppresses errors")


def _module_at(model: nn.Module, report: RoundReport) -> nn.Module:
    module = copy.deepcopy(model).cpu()
    load_parameters(module, report.readout)
    load_buffers(module, report.buffers)
    return module.eval()


def _log_inputs(prepared: Prepared, resolved: Resolved, tracker: RunTracker, directory: Path) -> None:
    """What the run starts from."""
    federation = prepared.federation
    tracker.log_params(flattened(prepared.experiment))
    tracker.log_tags(resolved.tags())
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
