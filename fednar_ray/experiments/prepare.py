"""Loads the data and the model of an experiment, and checks that they fit. It starts nothing."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fednar_ray.algorithms.presets import Algorithm, build_algorithm
from fednar_ray.config import Experiment
from fednar_ray.config.algorithm import OwnAlgorithmSettings
from fednar_ray.config.tables import FolderSettings
from fednar_ray.core.errors import ConfigError, ModelError
from fednar_ray.core.exits import exits_as_errors
from fednar_ray.core.flat_params import ParameterLayout, flatten
from fednar_ray.core.metric_names import find_primary_problem
from fednar_ray.core.module_state import copy_model
from fednar_ray.core.stages import announce
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.data.files import load_file_federation, load_silo_federation
from fednar_ray.data.loading import load_federation
from fednar_ray.data.sources.client_files import list_silo_files
from fednar_ray.execution.pickling import check_correction_is_picklable, check_model_is_picklable
from fednar_ray.experiments.model_shape import build_experiment_model
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.experiments.private_examples import ALONE_BECAUSE, build_example_privacy
from fednar_ray.experiments.private_runs import build_privacy
from fednar_ray.experiments.sampling import build_availability, check_sampling
from fednar_ray.experiments.secure_checks import check_secure_aggregation
from fednar_ray.federated.model_traits import ModelTraits, probe
from fednar_ray.federated.own_metrics import OwnMetric, load_own_metrics
from fednar_ray.federated.single_examples import check_single_example_batches
from fednar_ray.models.lazy import initialize_lazy_layers
from fednar_ray.models.losses import build_task, compute_class_weights
from fednar_ray.models.tasks import Task

if TYPE_CHECKING:  # a run in this process imports no Ray
    from fednar_ray.execution.session import RaySession

log = logging.getLogger("fednar_ray")

MISSING_DATA = "data: missing; set a data section, or pass federation="


def prepare(
    experiment: Experiment,
    federation: FederatedData | None = None,
    model: nn.Module | None = None,
    session: "RaySession | None" = None,
    functions: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
) -> Prepared:
    """Loads the data, builds the model, and checks that they fit each other.

    Args:
        experiment: The experiment.
        federation: The data, in place of the experiment's ``data`` section.
        model: The model, in place of the experiment's ``model`` section. It is copied.
        session: The Ray session whose nodes have the data, if the experiment names silos.
        functions: The functions at paths of ``evaluation.metrics`` that are not imported.

    Raises:
        BadInput: Data or model are missing, cannot be loaded, or do not fit each other or the settings.
    """
    if federation is None and experiment.data is None:
        raise ConfigError((MISSING_DATA,))
    if model is None and experiment.model is None:
        raise ConfigError(("model: missing; set a model section, or pass model=",))
    given = None if model is None else copy_model(model)
    algorithm = _build_algorithm(experiment)
    if federation is None:
        federation = load_experiment_data(experiment, session)
    check_sampling(experiment, federation)
    if given is None:
        assert experiment.model is not None
        given = copy_model(build_experiment_model(experiment.model, federation, experiment.seed))
    model = given
    initialize_lazy_layers(model, _get_first_inputs(federation), experiment.seed)
    ParameterLayout.of(model)
    examples, task = federation.shards.examples, _build_task(experiment, federation)
    own_metrics = _load_metrics(experiment, federation, functions)
    announce("trying the model on the data")
    with exits_as_errors():
        precision = experiment.execution.precision
        traits = probe(model, examples, federation.classes, task, federation.transform, precision)
    restricted = _restrict(traits, experiment)
    if restricted is traits and traits.alone_because is not None and experiment.execution.vectorize != 1:
        log.warning("clients train one by one (group size 1): %s", traits.alone_because)
    if not np.isfinite(flatten(model)).all():
        raise ModelError("the model's parameters are not finite before training")
    if experiment.execution.placement != "serial":
        check_model_is_picklable(model)
    return Prepared(
        experiment=experiment,
        algorithm=algorithm,
        federation=federation,
        model=model,
        traits=restricted,
        availability=build_availability(experiment, federation),
        task=task,
        own_metrics=own_metrics,
        functions=functions,
        privacy=build_privacy(experiment, federation, traits, algorithm),
        examples=build_example_privacy(experiment, federation, traits),
    )


def _restrict(traits: ModelTraits, experiment: Experiment) -> ModelTraits:
    """Returns the traits of a model whose clients train one by one if their single examples are protected."""
    protected = experiment.privacy is not None and experiment.privacy.examples is not None
    return replace(traits, alone_because=ALONE_BECAUSE) if protected else traits


def _build_algorithm(experiment: Experiment) -> Algorithm:
    """Builds the algorithm. Private clients have equal weights."""
    algorithm, privacy = build_algorithm(experiment.algorithm), experiment.privacy
    return algorithm._replace(weighted=False) if privacy is not None and privacy.protects_clients else algorithm


def _build_task(experiment: Experiment, federation: FederatedData) -> Task:
    """Builds the task with the loss of the experiment. Raises ModelError if it does not fit the data."""
    model, classes, counts = experiment.model, federation.classes, federation.label_counts().sum(axis=0)
    return build_task(
        federation.task,
        class_weights=compute_class_weights(None if model is None else model.class_weights, federation.task, counts),
        loss=None if model is None else model.loss,
        target_scale=federation.target_scale,
        classes=classes,
    )


def _load_metrics(
    experiment: Experiment, federation: FederatedData, functions: Mapping[str, Callable[..., Any]]
) -> tuple[OwnMetric, ...]:
    """Loads the user's own metrics, and checks that the task has the primary metric. Raises ConfigError."""
    settings, task = experiment.evaluation, federation.task
    problem = find_primary_problem(settings.primary, settings.own_metrics, task)
    if problem is not None:
        raise ConfigError((problem,))
    return load_own_metrics(settings.metrics or (), federation, functions)


def _get_first_inputs(federation: FederatedData) -> Tensor:
    """Returns two examples in the form that the model takes."""
    x = torch.from_numpy(federation.shards.examples.x[[0, -1]])
    return x if federation.transform is None else federation.transform.normalize(x)


def check_model_and_algorithm(prepared: Prepared) -> None:
    """Checks the model and the algorithm's functions under the settings, which may differ between trials of one model.

    Raises:
        BadInput: The model cannot train on a batch that some client has, or a user's function does not fit.
    """
    experiment, federation = prepared.experiment, prepared.federation
    settings, sizes = experiment.federation, federation.shards.sizes
    if prepared.traits.alone_because is not None or _trains_alone(experiment):
        sampled = set(range(len(sizes))) if settings.participation is None else set().union(*settings.participation)
        check_single_example_batches(
            prepared.model,
            _get_first_inputs(federation),
            sizes,
            sorted(sampled),
            settings.workload,
            federation.client_names,
        )
    if isinstance(experiment.algorithm, OwnAlgorithmSettings):
        prepared.algorithm.server.init(flatten(prepared.model))
        if experiment.execution.placement != "serial":
            check_correction_is_picklable(experiment.algorithm.function, prepared.algorithm.client)
    if experiment.secure_aggregation is not None:
        check_secure_aggregation(
            experiment.secure_aggregation, federation, prepared.algorithm, prepared.traits, prepared.clients_per_round
        )


def _trains_alone(experiment: Experiment) -> bool:
    """Returns whether the settings require that clients train one by one."""
    execution = experiment.execution
    alone = execution.vectorize == 1 or execution.placement == "dedicated" or execution.silos is not None
    return alone or experiment.secure_aggregation is not None


def load_experiment_data(experiment: Experiment, session: "RaySession | None" = None) -> FederatedData:
    """Loads the data of an experiment. Files that stay in their silos are only described.

    Silos are asked on their own nodes, unless the placement is serial.

    Raises:
        ConfigError: The experiment has no data section.
        DataError: The data cannot be loaded or trained on.
        CapacityError: A silo has no node in the cluster.
    """
    data, execution = experiment.data, experiment.execution
    if data is None:
        raise ConfigError((MISSING_DATA,))
    announce("loading the data")
    seed = experiment.seed if data.seed is None else data.seed
    if isinstance(data, FolderSettings) and execution.silos is not None:
        from fednar_ray.execution.session import RaySession
        from fednar_ray.execution.survey import LocalSurvey, RemoteSurvey

        files = list_silo_files(data, {name: silo.data for name, silo in execution.silos.items()})
        ask = LocalSurvey() if execution.placement == "serial" else RemoteSurvey(session or RaySession(), execution)
        return load_silo_federation(files, data, seed, ask)
    return load_file_federation(data, seed) if isinstance(data, FolderSettings) else load_federation(data, seed)


def adapt(prepared: Prepared, experiment: Experiment) -> Prepared:
    """Returns the same data and model under other settings. Raises BadInput if these do not fit."""
    before = prepared.experiment
    same = (before.data, before.model, before.seed) == (experiment.data, experiment.model, experiment.seed)
    assert same, "the data, the model or the seed differ"
    check_sampling(experiment, prepared.federation)
    availability = build_availability(experiment, prepared.federation)
    algorithm = _build_algorithm(experiment)
    return replace(
        prepared,
        experiment=experiment,
        algorithm=algorithm,
        traits=_restrict(prepared.traits, experiment),
        privacy=build_privacy(experiment, prepared.federation, prepared.traits, algorithm),
        examples=build_example_privacy(experiment, prepared.federation, prepared.traits),
        availability=availability,
        own_metrics=_load_metrics(experiment, prepared.federation, prepared.functions),
    )
