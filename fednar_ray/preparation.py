"""An experiment with its data and model, checked against each other; nothing is started yet."""

import logging
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from fednar_ray.algorithms.registry import build_algorithm
from fednar_ray.algorithms.regularizers import REGULARIZERS
from fednar_ray.availability import Availability, load_trace
from fednar_ray.cohorts import ModelTraits, probe
from fednar_ray.config import Experiment
from fednar_ray.corruption import corrupted_clients
from fednar_ray.data.federation import Federation, load_federation
from fednar_ray.errors import ConfigError, ModelError
from fednar_ray.local_training import TrainingPlan
from fednar_ray.models import build_model
from fednar_ray.vectors import ParameterLayout, flatten

log = logging.getLogger("fednar_ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a run starts from."""

    experiment: Experiment
    federation: Federation
    model: nn.Module
    traits: ModelTraits
    availability: Availability

    @property
    def model_bytes(self) -> int:
        """4·d."""
        return 4 * ParameterLayout.of(self.model).dimension

    @property
    def clients_per_round(self) -> int:
        """|S|; of an explicit schedule, the most that a round names."""
        settings = self.experiment.federation
        if settings.participation is not None:
            return max(len(ids) for ids in settings.participation)
        return settings.clients_per_round or int((self.federation.shards.sizes > 0).sum())

    def training_plan(self) -> TrainingPlan:
        """What every trainer of this run needs."""
        algorithm = build_algorithm(self.experiment.algorithm)
        return TrainingPlan(
            model=self.model,
            rule=algorithm.local,
            regularizer=REGULARIZERS[self.experiment.regularizer.name],
            weighted=algorithm.weighted,
            workload=self.experiment.federation.workload,
            seed=self.experiment.seed,
            tracks_buffers=self.traits.tracks_buffers,
            corrupted=corrupted_clients(self.experiment.corruption, self.federation.clients, self.experiment.seed),
        )


def prepare(experiment: Experiment, federation: Federation | None = None, model: nn.Module | None = None) -> Prepared:
    """Load the data, build the model, and check that they fit each other. Raises BadInput's kinds."""
    if federation is None and experiment.data is None:
        raise ConfigError(("data: missing; give a data section, or federation=",))
    if model is None and experiment.model is None:
        raise ConfigError(("model: missing; give a model section, or model=",))
    if federation is None:
        assert experiment.data is not None
        federation = load_federation(experiment.data, experiment.seed)
    _check_sampling(experiment, federation)
    if model is None:
        assert experiment.model is not None
        shape = federation.shards.examples.x.shape[1:]
        model = build_model(experiment.model, shape, federation.classes, experiment.seed)
    ParameterLayout.of(model)
    traits = probe(model, federation.shards.examples, federation.classes)
    if traits.alone_because is not None and experiment.execution.cohort_width != 1:
        log.warning("clients train one by one (cohort width 1): %s", traits.alone_because)
    if not np.isfinite(flatten(model)).all():
        raise ModelError("the model's parameters are not finite before training")
    return Prepared(
        experiment=experiment,
        federation=federation,
        model=model,
        traits=traits,
        availability=_availability(experiment, federation),
    )


def adapted(prepared: Prepared, experiment: Experiment) -> Prepared:
    """The same data and model under other settings. Raises BadInput's kinds."""
    before = prepared.experiment
    same = (before.data, before.model, before.seed) == (experiment.data, experiment.model, experiment.seed)
    assert same, "other data, or another model"
    _check_sampling(experiment, prepared.federation)
    return replace(prepared, experiment=experiment, availability=_availability(experiment, prepared.federation))


def _availability(experiment: Experiment, federation: Federation) -> Availability:
    settings = experiment.availability
    rounds, clients = experiment.federation.rounds, federation.clients
    trace = None if settings.trace is None else load_trace(settings.trace, clients, rounds)
    sizes, workload = federation.shards.sizes, experiment.federation.workload
    return Availability(settings, seed=experiment.seed, sizes=sizes, workload=workload, trace=trace)


def _check_sampling(experiment: Experiment, federation: Federation) -> None:
    settings, sizes = experiment.federation, federation.shards.sizes
    present, problems = int((sizes > 0).sum()), []
    sampled = settings.clients_per_round
    if settings.participation is None and sampled is not None and sampled > present:
        problems.append(f"federation.clients_per_round: {sampled} is more than the clients with examples ({present})")
    for index, ids in enumerate(settings.participation or ()):
        wrong = [i for i in ids if i >= len(sizes) or not sizes[i]]
        if wrong:
            place = f"federation.participation.{index}"
            problems.append(f"{place}: {wrong}: no such clients, or without examples; ids run to {len(sizes) - 1}")
    if problems:
        raise ConfigError(tuple(problems))
