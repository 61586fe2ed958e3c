"""The sections ``federation`` and ``evaluation``: rounds, local work, and what is evaluated."""

from fednar_ray.config.base import Count, Settings, Size
from fednar_ray.core.schedules import Workload


class FederationSettings(Settings):
    """Rounds, clients, and local work."""

    rounds: Count = 30  # T
    clients_per_round: Count | None = None
    """|S|; null samples every client."""
    local_steps: Count | None = None  # K
    local_epochs: Count | None = None
    batch_size: Count = 32
    """At or above a shard's size: full-batch training."""
    participation: tuple[tuple[Size, ...], ...] | None = None
    """One list of client ids a round, instead of sampling."""

    @property
    def workload(self) -> Workload:
        """The local work of a round."""
        return Workload(batch_size=self.batch_size, local_steps=self.local_steps, local_epochs=self.local_epochs)


class EvaluationSettings(Settings):
    """What is evaluated, and how often; on the actors, in large batches."""

    every: Count = 1
    """Rounds from one evaluation to the next; the last round is always evaluated."""
    federated: bool = False
    """Also each client's accuracy on its own examples: the mean over clients, and over the worst tenth of them."""
