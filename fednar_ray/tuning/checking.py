"""What is wrong with a search and shows only with its data at hand, found before Ray starts."""

from collections.abc import Iterator

from fednar_ray.config import Document, Experiment
from fednar_ray.core.errors import ConfigError
from fednar_ray.data.federation import FederatedData
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.prepare import federation_of, prepare
from fednar_ray.federated.evaluation import metric_names

ALWAYS = ("train_loss",)  # what every round reports


def check_trials(document: Document, session: RaySession) -> None:
    """Prepares the experiment as a trial does, and looks whether trials report the search's metric.

    Raises:
        ConfigError: They do not; the message has the metrics that they report.
        BadInput: The data or the model cannot be used.
    """
    assert document.search is not None
    prepared = prepare(document.experiment, session=session)
    problems = list(_metric_problems(document, document.experiment, prepared.federation, "search.metric"))
    if not problems:
        for place, experiment in _other_data(document):
            problems += _metric_problems(document, experiment, federation_of(experiment, session), place)
    if problems:
        raise ConfigError(tuple(problems))


def _other_data(document: Document) -> Iterator[tuple[str, Experiment]]:
    """The experiment under each searched value that decides which examples there are, and what their labels mean."""
    assert document.search is not None
    for key, domain in document.search.space.items():
        if key.startswith("data.") and not key.startswith("data.partition."):
            for value in domain.extremes:
                yield f"search.space.{key}: {value!r}: search.metric", document.varied({key: value})


def _metric_problems(
    document: Document, experiment: Experiment, federation: FederatedData, place: str
) -> Iterator[str]:
    assert document.search is not None
    metric = document.search.metric
    names = (*metric_names(federation, ("validation",), federated=experiment.evaluation.federated), *ALWAYS)
    if metric not in names:
        yield f"{place}: {metric!r}: no round of a trial on these data reports it; there are {', '.join(names)}"
