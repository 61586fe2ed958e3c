"""The section ``privacy``: differential privacy of the clients (docs/privacy.md)."""

from typing import Annotated, Literal, Self

from pydantic import Field, WrapValidator, model_validator

from fednar_ray.config.base import Example, Positive, Settings
from fednar_ray.config.variants import Variants

_LOCAL_STEPS = (
    "search.baseline={regularizer.clip_bound: 1.0}",
    "federation.local_epochs=null",
    "federation.local_steps=5",
)
Quantile = Annotated[float, Field(gt=0, lt=1)]


class NormBoundSettings(Settings):
    """The bound C_t of the norm of a client's update. Longer updates are scaled down to it, in every round."""


class FixedBoundSettings(NormBoundSettings):
    """The same bound in every round."""

    name: Literal["fixed"] = "fixed"
    norm: Annotated[Positive, Example(0.5)] = 1.0
    """C, the largest norm of an update."""


class AdaptiveBoundSettings(NormBoundSettings):
    """A bound that follows a quantile of the clients' norms (Andrew et al., NeurIPS 2021)."""

    name: Literal["adaptive"] = "adaptive"
    norm: Annotated[Positive, Example(0.5)] = 0.1
    """C_0, the bound in round 0."""
    quantile: Annotated[Quantile, Example(0.8)] = 0.5
    """γ, the share of the clients whose updates should not be longer than the bound."""
    lr: Annotated[Positive, Example(0.1)] = 0.2
    """η_C: a round multiplies the bound by exp(−η_C·(b − γ)), where b is the noised share of updates within it."""
    count_noise: Annotated[Positive | None, Example(5.0)] = None
    """σ_b, the standard deviation of the noise added to the number of updates within the bound. The updates get more
    noise for it, so that both together cost what the noise multiplier says. null: a twentieth of the clients expected
    per round, or the noise multiplier if that is more."""


class FednarBoundSettings(NormBoundSettings):
    """The bound that holds for FedNAR's updates by construction, K·η_t·A_t. It anneals with η_t and A_t."""

    name: Annotated[Literal["fednar"], Example("fednar", *_LOCAL_STEPS)] = "fednar"
    norm: Annotated[Positive | None, Example(0.5)] = None
    """An upper limit: C_t is the smaller of this and K·η_t·A_t. null: none."""


AnyBound = FixedBoundSettings | AdaptiveBoundSettings | FednarBoundSettings
"""One row per bound."""

BOUND_VARIANTS = Variants(
    AnyBound,
    NormBoundSettings,
    key="name",
    default="fixed",
    meaning="How the bound of an update's norm is chosen. Each has its own keys.",
    example="adaptive",
    short=True,
)
BoundSection = Annotated[Annotated[AnyBound, Field(discriminator="name")], WrapValidator(BOUND_VARIANTS.validate)]


class ExampleSettings(Settings):
    """Differential privacy of each example of a silo: gradients of single examples are bounded, and noised.

    Give a target ``epsilon`` or a ``noise_multiplier``.
    """

    norm: Annotated[Positive, Example(0.5)] = 1.0
    """C, the largest norm of the gradient of one example. Longer ones are scaled down to it."""
    epsilon: Annotated[Positive | None, Example(4.0, "privacy.examples.noise_multiplier=null")] = None
    """ε of every silo over all planned rounds, as if it took part in each. Silos of different sizes get different noise
    for it. Set either this or ``noise_multiplier``."""
    noise_multiplier: Annotated[Positive | None, Example(1.1)] = None
    """z: the noise in the sum of a batch has the standard deviation z·C. Set either this or ``epsilon``."""
    delta: Annotated[float, Field(gt=0, lt=1), Example(1e-6)] = 1e-5
    """δ, which must be below 1/n for a silo of n examples."""

    @model_validator(mode="after")
    def _check_noise(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("set either epsilon or noise_multiplier")
        return self


class PrivacySettings(Settings):
    """Differential privacy of each client: updates are bounded, and the server adds noise to their sum.

    Give a target ``epsilon`` or a ``noise_multiplier``, or ``examples``, or both. See docs/privacy.md.
    """

    bound: BoundSection = FixedBoundSettings()
    epsilon: Annotated[Positive | None, Example(4.0, "privacy.noise_multiplier=null")] = None
    """ε of all planned rounds together. The noise multiplier is found for it. Set either this or
    ``noise_multiplier``."""
    noise_multiplier: Annotated[Positive | None, Example(1.1)] = None
    """z: the noise in the sum of a round has the standard deviation z·C_t, or a little more with
    ``secure_aggregation``, whose rounding it covers. Set either this or ``epsilon``."""
    delta: Annotated[float, Field(gt=0, lt=1), Example(1e-6)] = 1e-5
    """δ, which must be below 1/N for N clients."""
    secret: Annotated[bool, Example(True)] = False
    """true: noise and sampled clients follow from a secret of the operating system, kept in a file of this user. false:
    they follow from the public seed, so that a run can be repeated; then no one is protected, and ε is simulated."""
    examples: Annotated[ExampleSettings | None, Example(None, "privacy.examples.noise_multiplier=1.1")] = None
    """Protects each example of each silo, within the local steps. Without ``epsilon`` and ``noise_multiplier``, which
    then may both be missing, nothing else is protected."""

    @property
    def protects_clients(self) -> bool:
        """Whether whole clients are protected."""
        return self.epsilon is not None or self.noise_multiplier is not None

    def describe_deltas(self) -> str:
        """Returns δ of what is protected, as text."""
        of_examples = [] if self.examples is None else [self.examples.delta]
        deltas = ([self.delta] if self.protects_clients else []) + of_examples
        return " and ".join(f"{delta:g}" for delta in dict.fromkeys(deltas))

    @model_validator(mode="after")
    def _check_noise(self) -> Self:
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ValueError("set either epsilon or noise_multiplier")
        if not self.protects_clients and self.examples is None:
            raise ValueError("set either epsilon or noise_multiplier, or examples")
        return self
