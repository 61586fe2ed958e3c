"""The sections ``federation`` and ``evaluation``: rounds, local work, and what is evaluated."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fednar_ray.config.base import Count, Example, FunctionPath, Settings, Size
from fednar_ray.core.metric_names import HIGHER_IS_BETTER
from fednar_ray.core.schedules import Workload


class FederationSettings(Settings):
    """Rounds, clients, and local work."""

    rounds: Annotated[Count, Example(100)] = 30
    """Number of rounds, T."""
    clients_per_round: Annotated[Count | None, Example(10)] = None
    """The number of clients sampled per round, |S|. null: every client."""
    sampling: Annotated[Literal["uniform", "poisson"], Example("poisson", "federation.clients_per_round=4")] = "uniform"
    """uniform: exactly ``clients_per_round`` of the clients. poisson: each client by itself with the probability
    ``clients_per_round``/N, so that a round has this many on average; differential privacy needs it."""
    local_steps: Annotated[Count | None, Example(20, "federation.local_epochs=null")] = None
    """Local steps per client and round, K. Set either this or ``local_epochs``."""
    local_epochs: Annotated[Count | None, Example(2, "federation.local_steps=null")] = None
    """Passes of each client over its examples per round."""
    batch_size: Annotated[Count, Example(16)] = 32
    """Examples per local step. A client with fewer uses all of its examples in each step."""
    participation: Annotated[tuple[tuple[Size, ...], ...] | None, Example(((0, 1), (2, 3)), "federation.rounds=2")] = (
        None
    )
    """One list of client ids per round, instead of sampling."""

    @property
    def workload(self) -> Workload:
        """The local work of one client in one round."""
        return Workload(batch_size=self.batch_size, local_steps=self.local_steps, local_epochs=self.local_epochs)


class EvaluationSettings(Settings):
    """What is evaluated, and how often. Actors evaluate in large batches."""

    every: Annotated[Count, Example(5)] = 1
    """Rounds from one evaluation to the next. The last round is always evaluated."""
    federated: Annotated[bool, Example(True)] = False
    """Whether to evaluate clients on their own examples as well: the mean over all, and over the worst tenth."""
    primary: Annotated[str | None, Example("macro_f1")] = None
    """The metric that counts, without its split, such as auc, or one of your own. Summaries, comparisons and plots show
    it, and it guides a search. null: accuracy; auc for binary labels of which one has a share below 20 %; rmse in
    regression."""
    metrics: Annotated[
        Annotated[tuple[FunctionPath, ...], Field(min_length=1)] | None, Example(("mymetrics:top_5",))
    ] = None
    """Metrics of your own: module:function, importable. Each is called with (y, predictions), or with (y, outputs) if
    its second parameter is called outputs, and returns a number, of which higher is better."""

    @field_validator("metrics")
    @classmethod
    def _check_names(cls, paths: tuple[str, ...] | None) -> tuple[str, ...] | None:
        names = list(map(name_metric_function, paths or ()))
        taken = [name for name in names if name in HIGHER_IS_BETTER or names.count(name) > 1]
        if taken:
            raise ValueError(f"two metrics are called {taken[0]}; rename the function")
        return paths

    @property
    def own_metrics(self) -> tuple[str, ...]:
        """The names of the user's own metrics: those of their functions."""
        return tuple(map(name_metric_function, self.metrics or ()))


def name_metric_function(path: str) -> str:
    """Returns the name of the metric that the function at ``path`` computes: the function's own."""
    return re.split("[.:]", path)[-1]
