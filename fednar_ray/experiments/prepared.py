"""An experiment with its data and model, ready to be trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from fednar_ray.algorithms.presets import Algorithm
from fednar_ray.algorithms.regularizers import REGULARIZERS
from fednar_ray.config import Experiment
from fednar_ray.core.flat_params import ParameterLayout
from fednar_ray.core.metric_names import choose_primary
from fednar_ray.data.batches import GroupShape
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.federated.attacks import draw_attack_factors
from fednar_ray.federated.client_sampling import Availability
from fednar_ray.federated.model_traits import ModelTraits
from fednar_ray.federated.own_metrics import OwnMetric
from fednar_ray.federated.training_plan import TrainingPlan
from fednar_ray.models.tasks import Task
from fednar_ray.privacy.examples import ExamplePrivacy
from fednar_ray.privacy.keys import NoiseKey
from fednar_ray.privacy.mechanism import ClientPrivacy
from fednar_ray.secure.plan import SecurePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An experiment with its data and model, which fit each other."""

    experiment: Experiment
    algorithm: Algorithm
    federation: FederatedData
    model: nn.Module
    traits: ModelTraits
    availability: Availability
    task: Task
    own_metrics: tuple[OwnMetric, ...]
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)  # of metrics that cannot be imported
    privacy: ClientPrivacy | None = None  # None: clients are not protected
    examples: ExamplePrivacy | None = None  # None: single examples are not protected

    @property
    def key(self) -> NoiseKey | None:
        """Where noise comes from; None: nothing is noised, or a secret run has not been given its key yet."""
        return next((each.key for each in (self.privacy, self.examples) if each is not None), None)

    def with_key(self, key: NoiseKey) -> "Prepared":
        """Returns the same with the key of its noise."""
        privacy = None if self.privacy is None else self.privacy.with_key(key)
        return replace(self, privacy=privacy, examples=None if self.examples is None else self.examples.with_key(key))

    @property
    def primary(self) -> str:
        """The metric that counts, without its split."""
        return choose_primary_metric(self.experiment, self.federation)

    def digest_data(self) -> str:
        """Returns a digest of the clients' examples; of private clients one that only the run's own key can compute."""
        digest = self.federation.digest()
        return digest if self.key is None else self.key.seal(digest)

    @property
    def model_bytes(self) -> int:
        """Size of the parameters, 4·d."""
        return 4 * ParameterLayout.of(self.model).dimension

    @property
    def clients_per_round(self) -> int:
        """|S|, the number of clients per round; of Poisson samples, that on average, if all clients had examples; of an
        explicit schedule, the largest number that a round names."""
        settings = self.experiment.federation
        if settings.participation is not None:
            return max(len(ids) for ids in settings.participation)
        if settings.clients_per_round is None and settings.sampling == "poisson":
            return self.federation.num_clients  # each takes part for certain
        return settings.clients_per_round or int((self.federation.shards.sizes > 0).sum())

    def build_training_plan(self, program: GroupShape | None = None) -> TrainingPlan:
        """Builds what every trainer of this run needs. ``program`` is the shape of compiled steps, if there are any."""
        clients, seed = self.federation.num_clients, self.experiment.seed
        return TrainingPlan(
            model=self.model,
            correction=self.algorithm.client,
            regularizer=REGULARIZERS[self.experiment.regularizer.name],
            weighted=self.algorithm.weighted,
            workload=self.experiment.federation.workload,
            seed=seed,
            changed_buffers=self.traits.changed_buffers,
            attack_factors=draw_attack_factors(self.experiment.attacks, clients, seed),
            task=self.task,
            addressed=self.traits.addressed,
            program=program,
            precision=self.experiment.execution.precision,
            secure=self.build_secure_plan(),
            examples=None if self.examples is None else self.examples.for_training(),
        )

    def build_secure_plan(self, run: str = "") -> SecurePlan | None:
        """Builds what the clients agree on who mask their updates, for a run of this name; None if they do not."""
        settings, federation = self.experiment.secure_aggregation, self.experiment.federation
        if settings is None:
            return None
        private = None if self.privacy is None else self.privacy.settings.bound
        return SecurePlan(
            run=run,
            seed=self.experiment.seed,
            threshold=settings.threshold,
            bits=settings.bits,
            clip=settings.clip if private is None else private.norm,
            steps=federation.local_steps if self.experiment.regularizer.name == "fednar" else None,
            most_examples=settings.max_examples or int(self.federation.shards.sizes.max()),
            weighted=self.algorithm.weighted,
            directory=settings.directory,
        )


def choose_primary_metric(experiment: Experiment, federation: FederatedData) -> str:
    """Returns the metric that counts, without its split: the experiment's own choice, or the default of the task."""
    if experiment.privacy is None or federation.task != "binary":
        counts = federation.label_counts().sum(axis=0)
    else:  # the counts of training labels are private
        counts = np.bincount(federation.test.y.astype(np.int64), minlength=2)
    return experiment.evaluation.primary or choose_primary(federation.task, counts)
