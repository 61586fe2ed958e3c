"""A run among several that one process trains together, and the data and models that such runs share."""

import json
from collections.abc import Callable
from functools import lru_cache

import torch

from fednar_ray.config import Experiment
from fednar_ray.execution.pool import ExecutionPool
from fednar_ray.execution.serial import SerialPool
from fednar_ray.experiments.given import Given
from fednar_ray.experiments.placement import CPU_DEVICE, SerialTrainer
from fednar_ray.experiments.prepare import adapt
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.collection import RoundStart, start_round
from fednar_ray.federated.round_plan import RoundPlan
from fednar_ray.federated.server_state import FederationState


class PackMember:
    """A run whose rounds a ``PackTrainer`` may train ahead.

    Args:
        trainer: Trains clients in this process. Members with the same data and model share it.
    """

    def __init__(self, trainer: SerialTrainer) -> None:
        self.trainer = trainer
        self._position: tuple[GroupTrainer, RoundPlan, FederationState] | None = None

    def enter(self, pool: ExecutionPool, plan: RoundPlan, state: FederationState) -> None:
        """Says what the member trains from now on. A member with actors of its own is never trained ahead."""
        self._position = (pool.trainer, plan, state) if isinstance(pool, SerialPool) else None
        if self._position is not None:
            self._position[0].held.clear()

    def start_next_round(self) -> tuple[GroupTrainer, RoundStart] | None:
        """Returns the member's trainer and its next round; None before it has entered, and after its last round."""
        if self._position is None:
            return None
        trainer, plan, state = self._position
        if state.now.next_round >= plan.rounds:
            return None
        return trainer, state.keep_start(start_round(plan, state))


PrepareShared = Callable[[Experiment], tuple[Prepared, PackMember]]
"""Prepares an experiment; those with the same data, model and seed share what they load."""


def build_shared_preparation(given: Given, device: torch.device = CPU_DEVICE, most: int = 8) -> PrepareShared:
    """Builds a function that prepares experiments, and loads data and models once for all that share them.

    Args:
        given: What takes the place of the experiments' sections.
        device: Where this process trains clients.
        most: How many data sets and models are kept for the next experiments.
    """

    @lru_cache(maxsize=most)
    def load(sections: str, seed: int) -> tuple[Prepared, SerialTrainer]:
        prepared = given.prepare(Experiment.model_validate({**json.loads(sections), "seed": seed}))
        return prepared, SerialTrainer(prepared, device)

    def prepare(experiment: Experiment) -> tuple[Prepared, PackMember]:
        sections = {"data": experiment.data, "model": experiment.model}
        dumped = {key: section.model_dump(mode="json") for key, section in sections.items() if section is not None}
        prepared, trainer = load(json.dumps(dumped), experiment.seed)
        return adapt(prepared, experiment), PackMember(trainer)

    return prepare
