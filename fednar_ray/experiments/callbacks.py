"""The caller's callbacks: checked before anything is started, and new ones for each run of a comparison or search."""

from collections.abc import Callable, Collection, Iterator, Sequence

from fednar_ray.core.callbacks import RoundCallback, RunInfo
from fednar_ray.core.errors import ConfigError
from fednar_ray.core.metric_names import SPLITS
from fednar_ray.execution.pickling import copy_by_pickling
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.federated.evaluation import list_metric_names

CallbackSource = RoundCallback | Callable[[], RoundCallback]
"""A callback, of which each run gets a copy; or a class or function that returns a new one for each run."""


def prepare_callbacks(prepared: Prepared, callbacks: Sequence[RoundCallback], splits: Collection[str] = SPLITS) -> None:
    """Tells callbacks about the run before anything is started.

    Args:
        prepared: The run.
        callbacks: The caller's callbacks.
        splits: The splits that its rounds evaluate.

    Raises:
        BadInput: Something is not a callback, or does not fit the run.
    """
    problems = tuple(
        f"callbacks.{index}: {callback!r}: is not a callback; give an instance of a subclass of fr.RoundCallback"
        for index, callback in enumerate(callbacks)
        if not isinstance(callback, RoundCallback)
    )
    if problems:
        raise ConfigError(problems)
    experiment = prepared.experiment
    evaluation = experiment.evaluation
    metrics = list_metric_names(prepared.federation, splits, federated=evaluation.federated, own=evaluation.own_metrics)
    info = RunInfo(name=experiment.name, rounds=experiment.federation.rounds, primary=prepared.primary, metrics=metrics)
    for callback in callbacks:
        callback.on_prepare(info)


def build_callbacks(sources: Sequence[CallbackSource]) -> list[RoundCallback]:
    """Builds the callbacks of one run: copies of those that are given, and new ones of classes and functions.

    Raises:
        ConfigError: A source is no callback and returns none, or a callback cannot be copied. All problems are reported
            at once.
    """
    problems, built = list[str](), list[RoundCallback]()
    for index, source in enumerate(sources):
        try:
            callback = _build(source)
        except Exception as error:  # noqa: BLE001 - a user's object or function may raise anything
            problems.append(f"callbacks.{index}: {source!r}: {_explain(source, error)}")
            continue
        if isinstance(callback, RoundCallback):
            built.append(callback)
        else:
            returned = "" if callback is source else f"returns {callback!r}, which "
            problems.append(
                f"callbacks.{index}: {source!r}: {returned}is not a callback; give an instance of a subclass of "
                "fr.RoundCallback, or a function that returns one"
            )
    if problems:
        raise ConfigError(tuple(problems))
    return built


def _build(source: CallbackSource) -> object:
    if isinstance(source, RoundCallback):
        return copy_by_pickling(source)
    return source() if callable(source) else source


def _explain(source: CallbackSource, error: Exception) -> str:
    cause = f"{type(error).__name__}: {error}"
    if isinstance(source, RoundCallback):
        return f"cannot be copied for each run: {cause}; give a function that returns a new callback, or its class"
    return f"fails when it is called without arguments: {cause}"


def iter_numbered(sources: Sequence[CallbackSource]) -> Iterator[tuple[str, CallbackSource]]:
    """Yields the sources with the names that messages call them by."""
    return ((f"{index}: {source!r}", source) for index, source in enumerate(sources))
