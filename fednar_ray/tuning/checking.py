"""Finds what is wrong with a search and its data before Ray starts."""

from collections.abc import Iterator
from dataclasses import replace

from fednar_ray.config import Document, Experiment
from fednar_ray.core.errors import ConfigError
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.callbacks import prepare_callbacks
from fednar_ray.experiments.given import NOTHING_GIVEN, Given
from fednar_ray.experiments.prepare import load_experiment_data
from fednar_ray.federated.evaluation import list_metric_names
from fednar_ray.tuning.trial_callbacks import TRIAL_SPLITS

ALWAYS_REPORTED = ("train_loss",)


def check_trials(document: Document, session: RaySession, given: Given = NOTHING_GIVEN) -> Document:
    """Prepares the experiment as a trial does, and checks that trials report the search's metric.

    Returns:
        The document, whose search names its metric and mode even if they were ``auto``.

    Raises:
        ConfigError: A searched key belongs to a section that a given object replaces; or trials do not report the
            metric, and the message lists the metrics that they report.
        BadInput: The data or the model cannot be used.
    """
    assert document.search is not None
    given.check_values("search.space", document.search.space)
    given.check_values("search.baseline", document.search.baseline)
    given.check_can_travel()
    prepared = given.prepare(document.experiment, session)
    prepare_callbacks(prepared, given.build_callbacks(), TRIAL_SPLITS)
    search = document.search.resolve_metric(prepared.primary)
    document = replace(document, search=search)
    problems = list(search.find_mode_problems())
    problems += list(_find_metric_problems(document, document.experiment, prepared.federation, "search.metric"))
    if not problems:
        for place, experiment in _vary_data(document):
            federation = load_experiment_data(experiment, session)
            problems += _find_metric_problems(document, experiment, federation, place)
    if problems:
        raise ConfigError(tuple(problems))
    return document


def _vary_data(document: Document) -> Iterator[tuple[str, Experiment]]:
    """Yields the experiment under each searched value that changes the examples or the meaning of their labels."""
    assert document.search is not None
    for key, domain in document.search.space.items():
        if key.startswith("data.") and not key.startswith("data.partition."):
            for value in domain.extremes:
                yield f"search.space.{key}: {value!r}: search.metric", document.build_variant({key: value})


def _find_metric_problems(
    document: Document, experiment: Experiment, federation: FederatedData, place: str
) -> Iterator[str]:
    assert document.search is not None
    metric = document.search.metric
    evaluation = experiment.evaluation
    names = list_metric_names(federation, ("validation",), federated=evaluation.federated, own=evaluation.own_metrics)
    always = ALWAYS_REPORTED if experiment.privacy is None else ()  # the clients' losses are private
    if metric not in (*names, *always):
        there = ", ".join((*names, *always))
        yield f"{place}: {metric!r}: trials on these data do not report it; use one of {there}"
