"""Metrics of a user's own, named by the paths of their functions."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.config.federation import name_metric_function
from fednar_ray.core.errors import ConfigError
from fednar_ray.core.exits import exits_as_errors
from fednar_ray.core.import_path import import_callable
from fednar_ray.data.federated_data import FederatedData

Numbers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnMetric:
    """A metric that a function of the user computes.

    Attributes:
        name: The function's name.
        function: (y [n], predictions [n]) → a number. Predictions are classes, 0 and 1, or numbers in the label's unit.
            If ``takes_outputs``, the second argument is the model's outputs instead: [n, classes] in classification,
            the logits [n] for binary labels; in regression they are the predictions.
        takes_outputs: Whether the function's second parameter is called ``outputs``.
    """

    name: str
    function: Callable[[Numbers, Numbers], Any]
    takes_outputs: bool


def load_own_metrics(
    paths: Sequence[str], federation: FederatedData, functions: Mapping[str, Callable[..., Any]]
) -> tuple[OwnMetric, ...]:
    """Imports the functions of ``evaluation.metrics``, and tries each on the test labels.

    Args:
        paths: The paths of the functions.
        federation: The data.
        functions: The functions at some of the paths, which are not imported.

    Raises:
        ConfigError: A function cannot be imported, fails, or does not return a finite number; or the examples are at
            silos. All problems are reported at once.
    """
    if paths and federation.metrics_only:
        text = "needs the predictions for single examples, which may not leave a silo; remove it"
        raise ConfigError((f"evaluation.metrics: {', '.join(paths)}: {text}",))
    found, problems = [], []
    for path in paths:
        try:
            function = functions[path] if path in functions else import_callable(path)
            metric = OwnMetric(
                name=name_metric_function(path), function=function, takes_outputs=_takes_outputs(function)
            )
            _try(metric, federation)
        except (ImportError, ValueError) as error:
            problems.append(f"evaluation.metrics: {path}: {error}")
        else:
            found.append(metric)
    if problems:
        raise ConfigError(tuple(problems))
    return tuple(found)


def compute_own_metrics(
    metrics: Sequence[OwnMetric], y: Numbers, predictions: Numbers, outputs: Numbers | None, task: str
) -> Mapping[str, float]:
    """Computes the user's metrics of a split.

    Args:
        metrics: The metrics.
        y: The labels, [n].
        predictions: As in ``Scores``.
        outputs: The model's outputs [n, o]; None if no metric takes them.
        task: The name of the task.
    """
    if task != "classification":
        outputs, predictions = predictions, (predictions > 0).astype(np.int64) if task == "binary" else predictions
    arguments = {False: predictions, True: outputs}
    calls: list[tuple[OwnMetric, Any]] = [(each, arguments[each.takes_outputs]) for each in metrics]
    return {each.name: float(each.function(y, argument)) for each, argument in calls}


def _takes_outputs(function: Callable[..., Any]) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some functions in C have no signature
        return False
    return len(parameters) > 1 and parameters[1] == "outputs"


def _try(metric: OwnMetric, federation: FederatedData) -> None:
    """Calls the metric with the test labels and artificial predictions. Raises ValueError if it cannot be used."""
    y, task = federation.test.y, federation.task
    predictions: Numbers = np.roll(y, 1)
    outputs: Numbers | None = np.eye(federation.classes, dtype=np.float32)[predictions.astype(np.int64)] if (
        task == "classification"
    ) else None  # fmt: skip
    if task == "binary":
        predictions = 2.0 * predictions - 1
    try:
        with exits_as_errors():
            value = compute_own_metrics([metric], y, predictions, outputs, task)[metric.name]
    except Exception as error:
        second = "outputs" if metric.takes_outputs else "predictions"
        raise ValueError(
            f"fails when called with y [{len(y)}] and {second}, or returns no number: {type(error).__name__}: {error}"
        ) from error
    if not np.isfinite(value):
        raise ValueError(f"returns {value} for {len(y)} test labels; a finite number is needed")
