"""What a caller gives in Python in place of sections of the experiment: data, a model, and metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from fednar_ray.config import Experiment, build_document
from fednar_ray.core.callbacks import RoundCallback
from fednar_ray.core.errors import ConfigError
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.execution.pickling import check_model_is_picklable, check_object_is_picklable
from fednar_ray.experiments.callbacks import CallbackSource, build_callbacks, iter_numbered
from fednar_ray.experiments.prepare import load_experiment_data, prepare
from fednar_ray.experiments.prepared import Prepared

if TYPE_CHECKING:  # a run in this process imports no Ray
    from fednar_ray.execution.session import RaySession


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Given:
    """The objects that a caller gives. Two of them are equal only if they are the same object.

    Attributes:
        federation: The data, in place of the ``data`` section.
        model: The model, in place of the ``model`` section.
        metrics: The functions of metrics that have no importable path, by the path that the experiment names.
        callbacks: What observes each run of a comparison or search, and may end it.
    """

    federation: FederatedData | None = None
    model: nn.Module | None = None
    metrics: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    callbacks: tuple[CallbackSource, ...] = ()

    def build_callbacks(self) -> list[RoundCallback]:
        """Builds the callbacks of one run; see ``build_callbacks``."""
        return build_callbacks(self.callbacks)

    def prepare(self, experiment: Experiment, session: "RaySession | None" = None) -> Prepared:
        """Prepares an experiment with the given objects; see ``prepare``."""
        return prepare(experiment, self.federation, self.model, session, self.metrics)

    def load_data(self, experiment: Experiment, session: "RaySession | None" = None) -> FederatedData:
        """Returns the given data, or loads those of the experiment."""
        return self.federation if self.federation is not None else load_experiment_data(experiment, session)

    def replace_sections(self, experiment: Experiment) -> Experiment:
        """Returns the experiment without the sections that are replaced, and with the metrics."""
        replaced = {"data": self.federation, "model": self.model}
        experiment = experiment.model_copy(
            update={section: None for section, given in replaced.items() if given is not None}
        )
        return add_metrics(experiment, self.metrics)

    def check_values(self, place: str, keys: Iterable[str]) -> None:
        """Raises ConfigError if one of these keys belongs to a section that is replaced."""
        replaced = {"data": self.federation, "model": self.model}
        names = {"data": "federation=", "model": "model="}
        problems = tuple(
            f"{place}.{key}: {names[section]} replaces the section {section}; remove the key, or leave out "
            f"{names[section]}"
            for key in keys
            if (section := key.partition(".")[0]) in replaced and replaced[section] is not None
        )
        if problems:
            raise ConfigError(problems)

    def check_can_travel(self) -> None:
        """Raises BadInput if a model, a metric or a callback cannot be sent to the processes of trials."""
        if self.model is not None:
            check_model_is_picklable(self.model)
        for path, function in self.metrics.items():
            check_object_is_picklable("metrics", path, function)
        for name, source in iter_numbered(self.callbacks):
            check_object_is_picklable("callbacks", name, source)


NOTHING_GIVEN = Given()


def name_metrics(functions: Sequence[Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Returns the functions by the paths that an experiment names them by: ``module:name``.

    Raises:
        ConfigError: One is not a function with a name.
    """
    problems = tuple(
        f"metrics.{index}: {function!r}: has no name; define it with def"
        for index, function in enumerate(functions)
        if not callable(function) or not getattr(function, "__name__", "").isidentifier()
    )
    if problems:
        raise ConfigError(problems)
    return {f"{function.__module__}:{function.__name__}": function for function in functions}


def add_metrics(experiment: Experiment, paths: Iterable[str]) -> Experiment:
    """Returns the experiment with these metrics after its own. Raises ConfigError if two have the same name."""
    named = experiment.evaluation.metrics or ()
    added = [path for path in paths if path not in named]
    if not added:
        return experiment
    return build_document(experiment).build_variant({"evaluation.metrics": [*named, *added]})
