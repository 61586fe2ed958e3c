"""Clients that are absent, slow or hostile: ``availability``, ``attacks``, ``screening`` and ``aggregation``."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fednar_ray.config.base import Example, NonNegative, Positive, Settings, Share, check_number


class OnOffSettings(Settings):
    """Clients alternate between being present and absent. The length of each spell is geometric."""

    on_rounds: Annotated[float, BeforeValidator(check_number), Field(ge=1), Example(20.0)]
    """Mean length of a spell of presence, in rounds."""
    off_rounds: Annotated[float, BeforeValidator(check_number), Field(ge=1), Example(5.0)]
    """Mean length of a spell of absence, in rounds."""


class SpeedSettings(Settings):
    """How fast clients train, in simulated time: log-normal around ``steps_per_second``."""

    steps_per_second: Annotated[float, BeforeValidator(check_number), Field(ge=1e-6), Example(2.0)] = 1.0
    """Local steps per simulated second of the median client."""
    spread: Annotated[NonNegative, Field(le=10), Example(0.5)] = 0.0
    """Standard deviation of the logarithm of the clients' speeds."""
    jitter: Annotated[NonNegative, Field(le=10), Example(0.2)] = 0.0
    """Standard deviation of the logarithm of the factor by which a client's speed varies from round to round."""


class AvailabilitySettings(Settings):
    """Clients that are absent, drop out or are late. Time is simulated: nothing waits."""

    dropout: Annotated[Share, Example(0.1)] = 0.0
    """The probability that a sampled client returns nothing in a round."""
    trace: Annotated[str | None, Example("present.csv")] = None
    """A CSV or .npy file with one row per client and one column per round: 1 where the client is present, else 0."""
    on_off: OnOffSettings | None = None
    speed: SpeedSettings | None = None
    deadline_seconds: Annotated[Positive | None, Example(30.0, "availability.speed.steps_per_second=2.0")] = None
    """Virtual seconds after which a round ends. Clients that are not done by then are late and excluded. null: none."""
    over_sampling: Annotated[
        float, BeforeValidator(check_number), Field(ge=1), Example(1.5, "federation.clients_per_round=10")
    ] = 1.0
    """Sample this many times ``clients_per_round`` clients, and use the first ``clients_per_round`` that return."""

    @model_validator(mode="after")
    def _check_deadline(self) -> Self:
        if self.deadline_seconds is not None and self.speed is None:
            raise ValueError("deadline_seconds needs availability.speed, which gives clients their speeds")
        return self


class AttackSettings(Settings):
    """Simulated attacks: fixed shares of the clients, drawn by seed, send wrong updates."""

    nan: Annotated[Share, Example(0.1)] = 0.0
    """The share of the clients that send NaN."""
    scaled: Annotated[Share, Example(0.1)] = 0.0
    """The share of the clients that multiply their update by ``factor``."""
    factor: Annotated[float, BeforeValidator(check_number), Example(-10.0, "attacks.scaled=0.1")] = 100.0
    """What the clients of ``scaled`` multiply their update by."""

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.nan + self.scaled > 1:
            raise ValueError(f"nan {self.nan:g} and scaled {self.scaled:g} are together more than 1")
        return self


class ScreeningSettings(Settings):
    """Which updates are excluded. Updates that are not finite, or of the wrong shape, always are."""

    max_deviation: Annotated[Positive | None, Example(5.0)] = None
    """Exclude updates whose norm is above the round's median by more than this many robust standard deviations. One is
    1.4826 median absolute deviations, or a tenth of the median if that is more. null: exclude none by norm."""


class AggregationSettings(Settings):
    """How a round's updates are aggregated. All rules but ``mean`` bound the influence of a single client."""

    name: Annotated[Literal["mean", "median", "trimmed_mean", "krum", "norm_bound"], Example("trimmed_mean")] = "mean"
    """mean: weighted by examples. median, trimmed_mean: per coordinate. krum: the mean of the updates closest to each
    other. norm_bound: the mean of updates whose norm is bounded."""
    trim: Annotated[
        float, BeforeValidator(check_number), Field(ge=0, lt=0.5), Example(0.2, "aggregation.name=trimmed_mean")
    ] = 0.1
    """For ``trimmed_mean``: the share of the clients that is cut at each end of every coordinate."""
    byzantine: Annotated[
        float, BeforeValidator(check_number), Field(ge=0, lt=0.5), Example(0.1, "aggregation.name=krum")
    ] = 0.2
    """For ``krum``: the share of the clients that may be Byzantine. The others are averaged (Multi-Krum)."""
    bound: Annotated[Positive | None, Example(1.0, "aggregation.name=norm_bound")] = None
    """For ``norm_bound``: the largest norm of an update; larger updates are scaled down. null: the round's median."""
