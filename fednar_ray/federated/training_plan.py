"""What a trainer of client groups needs to know about an experiment."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from fednar_ray.algorithms.client_corrections import ClientCorrection
from fednar_ray.algorithms.regularizers import Regularizer
from fednar_ray.config.execution import Precision
from fednar_ray.core.module_state import copy_without_values
from fednar_ray.core.schedules import Workload
from fednar_ray.data.batches import GroupShape
from fednar_ray.models.tasks import CLASSIFICATION, Task
from fednar_ray.privacy.examples import ExamplePrivacy
from fednar_ray.secure.plan import SecurePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """The settings that are the same in every round. They are sent to each trainer once.

    Attributes:
        model: The network with its initial parameters.
        correction: The client's half of the algorithm.
        regularizer: How a step is bounded and decayed.
        weighted: Whether sums weight a client by its examples n_i, or by 1.
        workload: Batch size, and steps or epochs per round.
        seed: The experiment's seed.
        changed_buffers: The names of the buffers that training changes. They are averaged over clients, which then
            train one by one; all other buffers keep their values.
        attack_factors: By client id, what a simulated attacker's update is multiplied by.
        task: The loss.
        addressed: Whether the model's layers draw random numbers, and all by operators that ``addressed_draws`` knows.
        program: The shape of the compiled program that takes the local steps; None: they are not compiled.
        precision: In what gradients are computed.
        secure: How clients mask their updates; None: they do not.
        examples: How single examples are protected; None: they are not. Clients then train one by one.
    """

    model: nn.Module
    correction: ClientCorrection
    regularizer: Regularizer
    weighted: bool
    workload: Workload
    seed: int
    changed_buffers: tuple[str, ...]
    attack_factors: Mapping[int, float] = field(default_factory=dict)
    task: Task = CLASSIFICATION
    addressed: bool = False
    program: GroupShape | None = None
    precision: Precision = "float32"
    secure: SecurePlan | None = None
    examples: ExamplePrivacy | None = None

    def without_values(self) -> "TrainingPlan":
        """Returns the plan for another process: each broadcast holds the parameters, so the model needs none."""
        return replace(self, model=copy_without_values(self.model))
