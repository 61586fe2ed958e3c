"""One experiment: the sections together, and what must hold across them."""

from typing import Annotated, Any, Self

from pydantic import Field, ModelWrapValidatorHandler, model_validator
from pydantic_core import ValidationError

from fednar_ray.config import checks
from fednar_ray.config.settings import (
    AggregationSettings,
    AlgorithmSettings,
    AvailabilitySettings,
    CheckpointSettings,
    CorruptionSettings,
    DataSettings,
    EvaluationSettings,
    ExecutionSettings,
    FederationSettings,
    ModelSettings,
    RegularizerSettings,
    ScreeningSettings,
    Settings,
    Size,
    TrackingSettings,
)
from fednar_ray.schedules import RoundScalars, annealed


class Experiment(Settings):
    """One experiment, as the ``experiment`` section of a file describes it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "experiment"
    seed: Size = 0
    data: DataSettings | None = None
    model: ModelSettings | None = None
    federation: FederationSettings = FederationSettings(local_epochs=1)
    algorithm: AlgorithmSettings = AlgorithmSettings()
    regularizer: RegularizerSettings = RegularizerSettings()
    availability: AvailabilitySettings = AvailabilitySettings()
    corruption: CorruptionSettings = CorruptionSettings()
    screening: ScreeningSettings = ScreeningSettings()
    aggregation: AggregationSettings = AggregationSettings()
    execution: ExecutionSettings = ExecutionSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="wrap")
    @classmethod
    def _all_problems_at_once(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Report what is wrong across sections together with what is wrong within them."""
        try:
            experiment = handler(values)
        except ValidationError as error:
            details = checks.as_details(error, cls)
            across = checks.across_sections(checks.valid_sections(cls, values))
            raise ValidationError.from_exception_data(cls.__name__, [*details, *across]) from None
        details = list(checks.across_sections(dict(experiment)))
        if details:
            raise ValidationError.from_exception_data(cls.__name__, details)
        return experiment

    def scalars(self, round_index: int) -> RoundScalars:
        """η_t, λ_t, A_t and ε_t."""
        algorithm, regularizer = self.algorithm, self.regularizer
        return RoundScalars(
            local_lr=annealed(algorithm.local_lr, algorithm.local_lr_anneal, round_index),
            weight_decay=annealed(regularizer.weight_decay, regularizer.weight_decay_anneal, round_index),
            clip_bound=annealed(regularizer.clip_bound, regularizer.clip_bound_anneal, round_index),
            epsilon=annealed(algorithm.epsilon or 0.0, algorithm.epsilon_anneal or 1.0, round_index),
        )
