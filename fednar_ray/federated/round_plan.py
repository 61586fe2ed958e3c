"""What the round loop needs to know about an experiment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fednar_ray.algorithms.presets import Algorithm
from fednar_ray.config import AggregationSettings
from fednar_ray.core.client_names import ClientNames
from fednar_ray.core.schedules import RoundScalars, Workload
from fednar_ray.federated.client_sampling import Availability
from fednar_ray.federated.robust import RULES
from fednar_ray.privacy.examples import ExamplePrivacy
from fednar_ray.privacy.mechanism import ClientPrivacy
from fednar_ray.secure.plan import SecurePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """What the round loop needs to know about an experiment.

    Attributes:
        rounds: T.
        clients_per_round: How many clients a round samples.
        participation: Explicit client ids per round, instead of sampling.
        availability: Which of the sampled clients return.
        sizes: n_i, the examples of each client, [N].
        workload: Steps or epochs, and batch size.
        group_size: C, the most clients that train as one matrix.
        algorithm: Both halves of the federated optimizer.
        aggregation: How updates are combined.
        max_deviation: Screening limit for an update's norm, in median absolute deviations. None: no screening.
        min_clients: How many client updates a round needs.
        tracks_buffers: Whether the model has buffers that are averaged.
        evaluate_every: Rounds between evaluations. The last round is always evaluated.
        scalars: Returns the annealed scalars of a round.
        client_names: How messages call the clients.
        secure: How clients mask their updates; None: they do not.
        privacy: How the clients are protected; None: they are not.
        examples: How single examples of silos are protected; None: they are not.
    """

    rounds: int
    clients_per_round: int
    participation: Sequence[Sequence[int]] | None
    availability: Availability
    sizes: npt.NDArray[np.int64]
    workload: Workload
    group_size: int
    algorithm: Algorithm
    aggregation: AggregationSettings
    max_deviation: float | None
    min_clients: int
    tracks_buffers: bool
    evaluate_every: int
    scalars: Callable[[int], RoundScalars]
    client_names: ClientNames = ()
    secure: SecurePlan | None = None
    privacy: ClientPrivacy | None = None
    examples: ExamplePrivacy | None = None

    @property
    def two_phase(self) -> bool:
        """Whether the metrics of all clients decide which updates are included, before anything is added."""
        return self.max_deviation is not None or self.aggregation.name != "mean"

    @property
    def needs_rows(self) -> bool:
        """Whether the aggregation needs every client's own update, not only sums."""
        return self.aggregation.name in RULES

    def is_evaluated(self, round_index: int) -> bool:
        """Returns whether the round's parameters are evaluated."""
        return (round_index + 1) % self.evaluate_every == 0 or round_index + 1 == self.rounds
