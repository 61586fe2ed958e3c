"""The sections ``federation`` and ``evaluation``: rounds, local work, and what is evaluated."""

from fednar_ray.config.base import Count, Settings, Size
from fednar_ray.core.schedules import Workload


class FederationSettings(Settings):
    """Rounds, clients, and local work."""

    rounds: Count = 30
    """Number of rounds, T."""
    clients_per_round: Count | None = None
    """The number of clients sampled per round, |S|. null: every client."""
    local_steps: Count | None = None
    """Local steps per client and round, K. Set either this or ``local_epochs``."""
    local_epochs: Count | None = None
    """Passes of each client over its examples per round."""
    batch_size: Count = 32
    """Examples per local step. A client with fewer uses all of its examples in each step."""
    participation: tuple[tuple[Size, ...], ...] | None = None
    """One list of client ids per round, instead of sampling."""

    @property
    def workload(self) -> Workload:
        """The local work of one client in one round."""
        return Workload(batch_size=self.batch_size, local_steps=self.local_steps, local_epochs=self.local_epochs)


class EvaluationSettings(Settings):
    """What is evaluated, and how often. Actors evaluate in large batches."""

    every: Count = 1
    """Rounds from one evaluation to the next. The last round is always evaluated."""
    federated: bool = False
    """Whether to evaluate clients on their own examples as well: the mean over all, and over the worst tenth."""
