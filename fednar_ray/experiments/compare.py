"""Compares regularizers from Python, as ``fednar compare`` does."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from fednar_ray.config import Document, Experiment, build_document
from fednar_ray.core.errors import ConfigError
from fednar_ray.data.federation import Federation
from fednar_ray.execution.session import RaySession
from fednar_ray.execution.shared_session import open_session
from fednar_ray.experiments.callbacks import CallbackSource
from fednar_ray.experiments.comparison.record import ComparisonRecord, find, plan_runs
from fednar_ray.experiments.comparison.result import Comparison
from fednar_ray.experiments.comparison.running import run_comparison
from fednar_ray.experiments.given import Given, name_metrics
from fednar_ray.report.notebook_progress import open_progress


def compare(
    experiment: Experiment | None = None,
    *,
    regularizers: Sequence[str] | None = None,
    weight_decays: Sequence[float] | None = None,
    seeds: int | None = None,
    target_accuracy: float | None = None,
    target_rmse: float | None = None,
    target: float | None = None,
    final_rounds: int | None = None,
    federation: Federation | None = None,
    model: nn.Module | None = None,
    metrics: Sequence[Callable[..., Any]] = (),
    callbacks: Sequence[CallbackSource] = (),
    session: RaySession | None = None,
    progress: bool | None = None,
    resume: str | None = None,
) -> Comparison:
    """Trains an experiment with several regularizers and seeds, and records the runs in MLflow and in ``runs/``.

    Every variant is trained with every seed, each as a run of its own, as ``fednar compare`` does.

    Args:
        experiment: The experiment. It can be left out if ``resume`` names a comparison.
        regularizers: Their names; the table shows the difference to the first. Default: decoupled and fednar.
        weight_decays: The weight decays λ. Default: only the experiment's own.
        seeds: The number of seeds, counted up from the experiment's. Default: 3.
        target_accuracy: Rounds and bytes are counted until a run reaches this test accuracy. Default: 0.8.
        target_rmse: For regression: the same for this test RMSE, in the unit of the label.
        target: The same for any other primary metric.
        final_rounds: The final value of a run is the mean over this many last rounds. Default: 10.
        federation: The data, in place of the experiment's ``data`` section.
        model: The model, in place of the experiment's ``model`` section. Every run starts from its parameters.
        metrics: Metrics of your own, as in ``fr.run``.
        callbacks: What observes each run, and may end it, such as ``fr.EarlyStopping``. Each run gets its own: a copy
            of a callback, or a new one of a class or of a function without arguments.
        session: The Ray session. Without one, all calls share one Ray until the process ends; see ``fr.shutdown``.
        progress: Whether to show the progress. None: in a notebook and in IPython.
        resume: The name, id or directory of a comparison to resume as it was started. If it was given a federation, a
            model, metrics or callbacks, give the same ones again.

    Returns:
        The comparison, with a row per variant and the rounds of each run.

    Raises:
        BadInput: An argument, the data or the model is invalid. Nothing has been trained.
        RunFailed: A run failed.

    Examples:
        >>> comparison = fr.compare(fr.load("digits"), regularizers=["decoupled", "fednar"], seeds=3)
        >>> comparison.to_frame()[["regularizer", "seed", "final_accuracy"]]
    """
    given = Given(federation=federation, model=model, metrics=name_metrics(metrics), callbacks=tuple(callbacks))
    settings: dict[str, Any] = {"regularizers": regularizers, "weight_decays": weight_decays, "seeds": seeds}
    settings |= {"target_accuracy": target_accuracy, "target_rmse": target_rmse, "target": target}
    settings = {key: value for key, value in {**settings, "final_rounds": final_rounds}.items() if value is not None}
    document, record = _find_document(experiment, settings, given, resume)
    rounds = document.experiment.federation.rounds
    runs = len(plan_runs(document.experiment, document.compare))
    with open_session(session) as ray_session, open_progress(progress, runs * rounds, every=rounds) as show:
        return run_comparison(document, ray_session, show, record, given)


def _find_document(
    experiment: Experiment | None, settings: Mapping[str, Any], given: Given, resume: str | None
) -> tuple[Document, ComparisonRecord | None]:
    """Builds what is compared, or finds the comparison that is resumed."""
    if resume is not None:
        if experiment is not None or settings:
            what = "it takes no experiment and no settings"
            raise ConfigError((f"resume: {resume!r} is resumed as it was started; {what}",))
        record = find(resume)
        return record.document, record
    if experiment is None:
        raise ConfigError(("experiment: missing; pass experiment=, or resume= to continue a comparison",))
    return build_document(given.replace_sections(experiment), compare=settings), None
