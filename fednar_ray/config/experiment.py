"""The section ``experiment``: all settings of a run, and checks across its sections."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import InitErrorDetails, ValidationError

from fednar_ray.config import contradictions, problems, renamed
from fednar_ray.config.algorithm import ALGORITHM_VARIANTS, AlgorithmSection, FedAvgSettings, RegularizerSettings
from fednar_ray.config.base import Example, Settings, Size
from fednar_ray.config.data import DataSection
from fednar_ray.config.execution import ExecutionSettings
from fednar_ray.config.federation import EvaluationSettings, FederationSettings
from fednar_ray.config.model import MODEL_VARIANTS, ModelSection
from fednar_ray.config.privacy import PrivacySettings
from fednar_ray.config.recording import CheckpointSettings, ReportSettings, TrackingSettings
from fednar_ray.config.robustness import (
    AggregationSettings,
    AttackSettings,
    AvailabilitySettings,
    ScreeningSettings,
)
from fednar_ray.config.secure_aggregation import SecureAggregationSettings
from fednar_ray.core.credentials import describe_secret, find_secrets
from fednar_ray.core.schedules import RoundScalars, anneal

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
"""The settings that can change from one round to the next. The others are fixed when a run starts."""


class Experiment(Settings):
    """All settings of a run: the ``experiment`` section of a file.

    Experiments are immutable. ``Experiment.model_validate({...})`` builds one from nested dictionaries, and
    ``fednar_ray.load`` reads one from a file.

    Raises:
        ValidationError: pydantic's error, with everything that is wrong within and across the sections.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100), Example("clinics")] = (
        "experiment"
    )
    """Name of the experiment, in MLflow and of the run directories: letters, digits, ``.``, ``_`` and ``-``."""
    seed: Annotated[Size, Example(7)] = 0
    """Seed of all randomness: the same seed gives bit-identical parameters."""
    data: DataSection | None = None
    model: ModelSection | None = None
    federation: FederationSettings = FederationSettings(local_epochs=1)
    algorithm: AlgorithmSection = FedAvgSettings()
    regularizer: RegularizerSettings = RegularizerSettings()
    availability: AvailabilitySettings = AvailabilitySettings()
    attacks: AttackSettings = AttackSettings()
    screening: ScreeningSettings = ScreeningSettings()
    aggregation: AggregationSettings = AggregationSettings()
    secure_aggregation: SecureAggregationSettings | None = None
    privacy: Annotated[
        PrivacySettings | None,
        Example(None, "federation.sampling=poisson", "federation.clients_per_round=4", "privacy.noise_multiplier=1.1"),
    ] = None
    execution: ExecutionSettings = ExecutionSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    tracking: TrackingSettings = TrackingSettings()
    report: ReportSettings = ReportSettings()
    changes: Annotated[Mapping[Size, Mapping[str, float]] | None, Example({10: {"regularizer.clip_bound": 1.0}})] = None
    """Round → {dotted key: value}: settings that change from this round on, as population-based training sets them."""

    @model_validator(mode="wrap")
    @classmethod
    def _validate_all(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Reports what is wrong across sections together with what is wrong within them.

        An address that contains a secret is refused first, so that no other report can repeat it. A key by its name in
        an earlier version is refused as well, with its current name.
        """
        secrets = [
            problems.build_problem(place, "…", describe_secret("", found)[2:]) for place, found in find_secrets(values)
        ]
        if secrets:
            raise ValidationError.from_exception_data(cls.__name__, secrets[: problems.LIMIT_PROBLEMS])
        values, old = renamed.rename_keys(values)
        try:
            experiment = handler(values)
        except ValidationError as error:
            details = [*old, *problems.convert_errors(error.errors(include_url=False), cls)]
            across = contradictions.find_contradictions(contradictions.validate_sections(cls, values))
            raise ValidationError.from_exception_data(cls.__name__, [*details, *across]) from None
        details = [*old, *contradictions.find_contradictions(dict(experiment)), *experiment._find_change_problems()]
        if details:
            raise ValidationError.from_exception_data(cls.__name__, details)
        return experiment

    def __repr__(self) -> str:
        data = None if self.data is None else f"{self.data.source} data"
        model = None if self.model is None else MODEL_VARIANTS.describe(self.model)
        rounds = f"{self.federation.rounds} rounds"
        clients = self.federation.clients_per_round
        sampled = rounds if clients is None else f"{rounds} of {clients} clients"
        algorithm = ALGORITHM_VARIANTS.describe(self.algorithm)
        parts = [part for part in (data, model, sampled, algorithm, self.regularizer.name) if part is not None]
        return f"<Experiment {self.name}: {', '.join(parts)}; seed {self.seed}>"

    __str__ = __repr__

    def compute_scalars(self, round_index: int) -> RoundScalars:
        """Computes η_t, λ_t, A_t and ε_t of round t."""
        now = self.apply_changes(round_index)
        algorithm, regularizer = now.algorithm, now.regularizer
        return RoundScalars(
            local_lr=anneal(algorithm.local_lr, algorithm.local_lr_anneal, round_index),
            weight_decay=anneal(regularizer.weight_decay, regularizer.weight_decay_anneal, round_index),
            clip_bound=anneal(regularizer.clip_bound, regularizer.clip_bound_anneal, round_index),
            epsilon=algorithm.compute_epsilon(round_index),
        )

    def apply_changes(self, round_index: int) -> "Experiment":
        """Returns the experiment with the values of ``changes`` that apply in a round."""
        now = self
        for since in sorted(self.changes or ()):
            if since <= round_index:
                for key, value in (self.changes or {})[since].items():
                    section, name = key.split(".")
                    changed = getattr(now, section).model_copy(update={name: value})
                    now = now.model_copy(update={section: changed})
        return now

    def _find_change_problems(self) -> Iterator[InitErrorDetails]:
        for since, values in (self.changes or {}).items():
            for key, value in values.items():
                place = ("changes", since, key)
                if since >= self.federation.rounds:
                    yield problems.build_problem(place, value, f"federation.rounds is {self.federation.rounds}")
                elif key not in CHANGEABLE:
                    yield problems.build_problem(
                        place, value, f"cannot change within a run; {', '.join(CHANGEABLE)} can"
                    )
                else:
                    yield from self._find_value_problems(place, value)

    def _find_value_problems(self, place: tuple[str | int, ...], value: float) -> Iterator[InitErrorDetails]:
        section, name = str(place[-1]).split(".")
        settings = getattr(self, section)
        try:
            contradictions.build_section_adapter(type(self), section).validate_python(
                {**settings.model_dump(), name: value}
            )
        except ValidationError as error:
            yield problems.build_problem(place, value, error.errors()[0]["msg"].removeprefix("Value error, "))
