"""The ``scheduler`` of a search: which trials are stopped early. One class per scheduler."""

from typing import Annotated, Literal

from pydantic import Field, WrapValidator

from fednar_ray.config.base import Count, Example, Settings
from fednar_ray.config.variants import Variants


class SchedulerSettings(Settings):
    """The settings that every scheduler reads: only its name. ``scheduler: asha`` is a short form."""

    @property
    def decision_rounds(self) -> int | None:
        """Rounds from one decision of the scheduler to the next; None if the settings do not determine them."""
        return None


class NoSchedulerSettings(SchedulerSettings):
    """Every trial runs to its end."""

    name: Literal["none"] = "none"


class GraceSettings(SchedulerSettings):
    """The settings of schedulers that spare young trials."""

    grace_rounds: Annotated[Count, Example(10)] = 5
    """The number of rounds before which no trial is stopped."""

    @property
    def decision_rounds(self) -> int | None:
        """The grace period: the first decision falls at its end."""
        return self.grace_rounds


class AshaSettings(GraceSettings):
    """ASHA (Li et al., MLSys 2020)."""

    name: Literal["asha"] = "asha"
    reduction: Annotated[int, Field(ge=2), Example(4)] = 3
    """One of this many trials is promoted to the next rung."""


class HyperbandSettings(SchedulerSettings):
    """Hyperband (Li et al., JMLR 2018)."""

    name: Literal["hyperband"] = "hyperband"
    reduction: Annotated[int, Field(ge=2), Example(4)] = 3
    """One of this many trials is promoted to the next rung."""


class MedianSettings(GraceSettings):
    """Stops trials below the median of the others (Golovin et al., KDD 2017)."""

    name: Literal["median"] = "median"


class PbtSettings(SchedulerSettings):
    """Population-based training (Jaderberg et al. 2017)."""

    name: Annotated[Literal["pbt"], Example("pbt", "search.algorithm=random")] = "pbt"
    perturb_rounds: Annotated[Count, Example(10)] = 5
    """Rounds from one exchange between trials to the next. All trials wait for each other there."""
    quantile: Annotated[float, Field(gt=0, le=0.5), Example(0.2)] = 0.25
    """The share of the trials, the worst, that continue from the federation of one of the best share."""
    resample: Annotated[float, Field(ge=0, le=1), Example(0.1)] = 0.25
    """The probability that a perturbed value is drawn from the space again, instead of multiplied by 1.2 or 0.8."""

    @property
    def decision_rounds(self) -> int | None:
        """The rounds from one exchange between trials to the next."""
        return self.perturb_rounds


AnyScheduler = NoSchedulerSettings | AshaSettings | HyperbandSettings | MedianSettings | PbtSettings
"""One row per scheduler."""

SCHEDULER_VARIANTS = Variants(
    AnyScheduler,
    SchedulerSettings,
    key="name",
    default="none",
    meaning="The rule that stops trials early. Each has its own keys.",
    example="asha",
    short=True,
)
SCHEDULER_SETTINGS = SCHEDULER_VARIANTS.build_table()
"""Each scheduler with the settings that it reads and their defaults."""
SchedulerSection = Annotated[
    Annotated[AnyScheduler, Field(discriminator="name")], WrapValidator(SCHEDULER_VARIANTS.validate)
]
