"""Clients that are absent, slow or hostile: ``availability``, ``attacks``, ``screening`` and ``aggregation``."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fednar_ray.config.base import NonNegative, Positive, Settings, Share, number


class OnOffSettings(Settings):
    """Spells of presence and absence, each of geometric length."""

    on_rounds: Annotated[float, BeforeValidator(number), Field(ge=1)]
    """Mean length of a spell of presence, in rounds."""
    off_rounds: Annotated[float, BeforeValidator(number), Field(ge=1)]
    """Mean length of a spell of absence, in rounds."""


class SpeedSettings(Settings):
    """How fast clients train, on the virtual clock: log-normal around ``steps_per_second``."""

    steps_per_second: Annotated[float, BeforeValidator(number), Field(ge=1e-6)] = 1.0
    """The median client's local steps in a virtual second."""
    spread: Annotated[NonNegative, Field(le=10)] = 0.0
    """Standard deviation of the logarithm of a client's own speed."""
    jitter: Annotated[NonNegative, Field(le=10)] = 0.0
    """Standard deviation of the logarithm of what each round adds to it."""


class AvailabilitySettings(Settings):
    """Clients that are not there, or late. Nothing here waits: time is virtual."""

    dropout: Share = 0.0
    """The probability that a sampled client does not return in a round."""
    trace: str | None = None
    """A CSV or .npy file, clients × rounds: 1 where a client is there, 0 where it is not."""
    on_off: OnOffSettings | None = None
    speed: SpeedSettings | None = None
    deadline_seconds: Positive | None = None
    """A round ends after so many virtual seconds; who is not done by then is late, and does not count."""
    over_sampling: Annotated[float, BeforeValidator(number), Field(ge=1)] = 1.0
    """Sample this many times ``clients_per_round``; the first ``clients_per_round`` to return count."""

    @model_validator(mode="after")
    def _a_deadline_needs_a_clock(self) -> Self:
        if self.deadline_seconds is not None and self.speed is None:
            raise ValueError("deadline_seconds needs availability.speed, which gives clients their speeds")
        return self


class AttackSettings(Settings):
    """Clients that send what they should not, to see what that does: fixed shares of the clients, drawn by seed."""

    nan: Share = 0.0
    """The share that sends NaN."""
    scaled: Share = 0.0
    """The share that sends its update ``factor`` times."""
    factor: Annotated[float, BeforeValidator(number)] = 100.0

    @model_validator(mode="after")
    def _shares_of_one_whole(self) -> Self:
        if self.nan + self.scaled > 1:
            raise ValueError(f"nan {self.nan:g} and scaled {self.scaled:g} are more than all clients")
        return self


class ScreeningSettings(Settings):
    """Which updates do not count. Those that are not finite, or of the wrong shape, never do."""

    max_deviation: Positive | None = None
    """Leave out updates whose norm is above the round's median by more than this many robust standard deviations, each
    1.4826 median absolute deviations, or a tenth of the median where that is more."""


class AggregationSettings(Settings):
    """How a round's updates become one; all but ``mean`` bound what a single client can do."""

    name: Literal["mean", "median", "trimmed_mean", "krum", "norm_bound"] = "mean"
    trim: Annotated[float, BeforeValidator(number), Field(ge=0, lt=0.5)] = 0.1
    """Of ``trimmed_mean``: the share of the clients cut at each end of every coordinate."""
    byzantine: Annotated[float, BeforeValidator(number), Field(ge=0, lt=0.5)] = 0.2
    """Of ``krum``: the share of the clients that may be arbitrary; the rest is averaged (Multi-Krum)."""
    bound: Positive | None = None
    """Of ``norm_bound``: the longest update; longer ones are shortened to it. null: the round's median norm."""
