"""Runs an experiment from Python, and registers the model of a run."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import nn

from fednar_ray.config import Experiment
from fednar_ray.core.callbacks import RoundCallback
from fednar_ray.core.errors import ConfigError
from fednar_ray.core.generators import drain
from fednar_ray.data.federation import Federation
from fednar_ray.execution.session import RaySession
from fednar_ray.execution.shared_session import open_session
from fednar_ray.experiments.given import Given, add_metrics, name_metrics
from fednar_ray.experiments.result import Result
from fednar_ray.experiments.resume import resume_from
from fednar_ray.experiments.train import train
from fednar_ray.report.notebook_progress import open_progress
from fednar_ray.tracking.registration import check_registration, register_model
from fednar_ray.tracking.store import Store


def run(
    experiment: Experiment | None = None,
    *,
    federation: Federation | None = None,
    model: nn.Module | None = None,
    metrics: Sequence[Callable[..., Any]] = (),
    callbacks: Sequence[RoundCallback] = (),
    session: RaySession | None = None,
    progress: bool | None = None,
    resume: str | Path | None = None,
    resume_newest: bool = False,
    may_change: Sequence[str] = (),
) -> Result:
    """Trains an experiment, and records it in MLflow and in ``runs/``.

    Args:
        experiment: The experiment. It can be left out if ``resume`` names a run, which then keeps its experiment.
        federation: The data, in place of the experiment's ``data`` section.
        model: The model, in place of the experiment's ``model`` section. It is copied; training starts from its
            parameters.
        metrics: Metrics of your own: functions of (y, predictions), or of (y, outputs) if the second parameter is
            called outputs, that return a number, of which higher is better. They are added to ``evaluation.metrics``.
        callbacks: What observes the run, and may end it, such as ``fr.EarlyStopping``. See ``fr.RoundCallback``.
        session: The Ray session. Without one, all calls share one Ray until the process ends; see ``fr.shutdown``.
        progress: Whether to show the progress. None: in a notebook and in IPython.
        resume: A run to resume from its newest whole checkpoint: its name, id or directory, or the path or URI of its
            checkpoints.
        resume_newest: Whether to resume the newest run of the experiment. If it has none, a new run is started.
        may_change: Keys or sections of the experiment that may differ from those that the run was started with.
            ``federation.rounds`` may always grow, and ``execution`` and ``checkpoint`` may always change. A run that a
            callback has ended is finished; it continues only if it is resumed with more rounds than it had planned.

    Returns:
        The finished run.

    Raises:
        BadInput: An argument, the data or the model is invalid. Nothing has been trained.
        RunFailed: The run had started and could not be finished.

    Examples:
        >>> result = fr.run(fr.load("digits"))
        >>> longer = fr.run(fr.load("digits", ["federation.rounds=200"]), resume=result.directory)
    """
    if resume is not None and resume_newest:
        raise ConfigError(("resume: set only one of resume= and resume_newest=",))
    if experiment is None and resume is None:
        raise ConfigError(("experiment: missing; pass experiment=, or resume= to continue a run",))
    given = Given(federation=federation, model=model, metrics=name_metrics(metrics))
    if experiment is not None:
        experiment = add_metrics(experiment, given.metrics)
    resumption = None
    if resume is not None or resume_newest:
        resumption = resume_from(None if resume is None else str(resume), experiment, may_change)
    settings = experiment if resumption is None else resumption.experiment
    assert settings is not None
    with open_session(session) as ray_session, open_progress(progress, settings.federation.rounds) as show:
        prepared = given.prepare(settings, ray_session)
        with closing(train(prepared, ray_session, resumption=resumption, callbacks=callbacks)) as training:
            return drain(
                training, lambda report: show(report.round_index + 1, settings.name, report.metrics, prepared.primary)
            )


def register(result: Result, name: str) -> int:
    """Registers a run's model in MLflow's model registry.

    Args:
        result: The run.
        name: The registered model, which is created if it is new.

    Returns:
        The version that the model got.

    Raises:
        BadInput: MLflow does not accept the name.
        TrackingUnavailable: MLflow does not answer, or has not received the model yet.
    """
    store = Store(result.tracking_uri)
    check_registration(store, name)
    return register_model(store, result.run_id, name)
