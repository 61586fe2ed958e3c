"""One experiment: the sections together, and what must hold across them."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ModelWrapValidatorHandler, model_validator
from pydantic_core import InitErrorDetails, ValidationError

from fednar_ray.config import contradictions, problems, renamed
from fednar_ray.config.algorithm import AlgorithmSection, FedAvgSettings, RegularizerSettings
from fednar_ray.config.base import Settings, Size
from fednar_ray.config.data import DataSection
from fednar_ray.config.execution import ExecutionSettings
from fednar_ray.config.federation import EvaluationSettings, FederationSettings
from fednar_ray.config.model import ModelSection
from fednar_ray.config.recording import CheckpointSettings, TrackingSettings
from fednar_ray.config.robustness import (
    AggregationSettings,
    AttackSettings,
    AvailabilitySettings,
    ScreeningSettings,
)
from fednar_ray.core.credentials import refusal, secrets_within
from fednar_ray.core.schedules import RoundScalars, annealed

CHANGEABLE = (
    "algorithm.local_lr",
    "algorithm.local_lr_anneal",
    "algorithm.epsilon",
    "algorithm.epsilon_anneal",
    "regularizer.weight_decay",
    "regularizer.weight_decay_anneal",
    "regularizer.clip_bound",
    "regularizer.clip_bound_anneal",
)
"""What may change from one round to the next: the rest is built into a run."""


class Experiment(Settings):
    """One experiment, as the ``experiment`` section of a file describes it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "experiment"
    seed: Size = 0
    data: DataSection | None = None
    model: ModelSection | None = None
    federation: FederationSettings = FederationSettings(local_epochs=1)
    algorithm: AlgorithmSection = FedAvgSettings()
    regularizer: RegularizerSettings = RegularizerSettings()
    availability: AvailabilitySettings = AvailabilitySettings()
    attacks: AttackSettings = AttackSettings()
    screening: ScreeningSettings = ScreeningSettings()
    aggregation: AggregationSettings = AggregationSettings()
    execution: ExecutionSettings = ExecutionSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    tracking: TrackingSettings = TrackingSettings()
    changes: Mapping[Size, Mapping[str, float]] | None = None
    """Round → what takes another value from then on, by dotted key, as population-based training finds it."""

    @model_validator(mode="wrap")
    @classmethod
    def _all_problems_at_once(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Report what is wrong across sections together with what is wrong within them.

        An address that carries a secret is refused before all else, so that no other report can repeat it. A key that
        has another name than in earlier versions is refused too, with its name now.
        """
        secrets = [problems.problem(place, "…", refusal("", found)[2:]) for place, found in secrets_within(values)]
        if secrets:
            raise ValidationError.from_exception_data(cls.__name__, secrets[: problems.LIMIT_PROBLEMS])
        values, old = renamed.under_new_names(values)
        try:
            experiment = handler(values)
        except ValidationError as error:
            details = [*old, *problems.as_details(error.errors(include_url=False), cls)]
            across = contradictions.across_sections(contradictions.valid_sections(cls, values))
            raise ValidationError.from_exception_data(cls.__name__, [*details, *across]) from None
        details = [*old, *contradictions.across_sections(dict(experiment)), *experiment._change_problems()]
        if details:
            raise ValidationError.from_exception_data(cls.__name__, details)
        return experiment

    def scalars(self, round_index: int) -> RoundScalars:
        """η_t, λ_t, A_t and ε_t."""
        now = self.in_force(round_index)
        algorithm, regularizer = now.algorithm, now.regularizer
        return RoundScalars(
            local_lr=annealed(algorithm.local_lr, algorithm.local_lr_anneal, round_index),
            weight_decay=annealed(regularizer.weight_decay, regularizer.weight_decay_anneal, round_index),
            clip_bound=annealed(regularizer.clip_bound, regularizer.clip_bound_anneal, round_index),
            epsilon=algorithm.epsilon_at(round_index),
        )

    def in_force(self, round_index: int) -> "Experiment":
        """With what has changed by that round."""
        now = self
        for since in sorted(self.changes or ()):
            if since <= round_index:
                for key, value in (self.changes or {})[since].items():
                    section, name = key.split(".")
                    changed = getattr(now, section).model_copy(update={name: value})
                    now = now.model_copy(update={section: changed})
        return now

    def _change_problems(self) -> Iterator[InitErrorDetails]:
        for since, values in (self.changes or {}).items():
            for key, value in values.items():
                place = ("changes", since, key)
                if since >= self.federation.rounds:
                    yield problems.problem(place, value, f"federation.rounds is {self.federation.rounds}")
                elif key not in CHANGEABLE:
                    yield problems.problem(place, value, f"cannot change within a run; {', '.join(CHANGEABLE)} can")
                else:
                    yield from self._value_problems(place, value)

    def _value_problems(self, place: tuple[str | int, ...], value: float) -> Iterator[InitErrorDetails]:
        section, name = str(place[-1]).split(".")
        settings = getattr(self, section)
        try:
            contradictions.section_adapter(type(self), section).validate_python({**settings.model_dump(), name: value})
        except ValidationError as error:
            yield problems.problem(place, value, error.errors()[0]["msg"].removeprefix("Value error, "))
