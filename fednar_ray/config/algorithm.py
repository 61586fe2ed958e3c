"""The sections ``algorithm`` and ``regularizer``. One class per preset.

Symbols are those of Li et al., NeurIPS 2023.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, TypeAdapter, WrapValidator, model_validator

from fednar_ray.config.base import Argument, Example, FunctionPath, NonNegative, Positive, Rate, Settings, Share
from fednar_ray.config.variants import Variants
from fednar_ray.core.schedules import anneal

RegularizerName = Literal["fednar", "decoupled", "coupled", "none"]


class RegularizerSettings(Settings):
    """How weight decay enters the local steps, and how steps are clipped."""

    name: Annotated[RegularizerName, Example("decoupled")] = "fednar"
    """fednar: clip gradient and weight decay together, by the norm of their sum. decoupled: clip the gradient, then add
    the decay. coupled: add the decay, and clip nothing. none: neither decay nor clip."""
    weight_decay: Annotated[NonNegative, Example(0.001)] = 0.01
    """Weight decay in round 0, λ_0."""
    weight_decay_anneal: Annotated[Rate, Example(0.99)] = 1.0
    """Factor by which the weight decay is multiplied from one round to the next, γ_λ. 1: it stays."""
    clip_bound: Annotated[Positive, Example(1.1)] = 10.0
    """Bound of the norm of a local step before the step size, in round 0, A_0. A small bound clips more steps."""
    clip_bound_anneal: Annotated[Rate, Example(0.99)] = 1.0
    """Factor by which the bound is multiplied from one round to the next, γ_A. 1: it stays."""


class AlgorithmSettings(Settings):
    """The settings that every algorithm reads.

    An algorithm is a preset, given by ``name``, or your own, given by the path of a ``function`` that returns it.
    """

    local_lr: Annotated[Positive, Example(0.05)] = 0.1
    """Step size of the clients in round 0, η_0."""
    local_lr_anneal: Annotated[Rate, Example(0.998)] = 1.0
    """Factor by which the step size is multiplied from one round to the next, γ_η. 1: it stays."""

    def compute_epsilon(self, round_index: int) -> float:
        """Computes the server optimizer's ε_t of a round; 0 for algorithms without an ε."""
        return 0.0


class ServerLrSettings(AlgorithmSettings):
    """The settings of presets whose server takes a step of a given length."""

    server_lr: Annotated[Positive, Example(0.5)] = 1.0
    """Step size of the server, η_g. 1: the server takes the mean of the clients' updates as it is."""


class EpsilonSettings(AlgorithmSettings):
    """The settings of presets with an ε."""

    epsilon: Annotated[NonNegative, Example(0.01)] = 0.001
    """ε_0, added to the denominator of the server's extrapolation in round 0."""
    epsilon_anneal: Annotated[Rate, Example(0.99)] = 1.0
    """Factor by which ε is multiplied from one round to the next, γ_ε."""

    def compute_epsilon(self, round_index: int) -> float:
        """Computes the server optimizer's ε_t of a round."""
        return anneal(self.epsilon, self.epsilon_anneal, round_index)


class AdaptiveSettings(ServerLrSettings, EpsilonSettings):
    """The settings of presets whose server divides by a second moment."""

    server_lr: Annotated[Positive, Example(0.03)] = 0.1
    """Step size of the server, η_g."""
    epsilon: Annotated[NonNegative, Example(0.001)] = 0.01
    """ε_0, added to the root of the second moment in round 0."""

    @model_validator(mode="after")
    def _check_epsilon(self) -> Self:
        if self.epsilon == 0:
            name = getattr(self, "name", "the preset")
            raise ValueError(f"{name} divides by epsilon where an update is zero: it must be above 0")
        return self


class MomentsSettings(AdaptiveSettings):
    """The settings of presets whose server keeps running averages of both moments."""

    beta1: Annotated[Share, Example(0.5)] = 0.9
    """β₁: the share of the server's running mean of updates that is kept in a round."""
    beta2: Annotated[Share, Example(0.999)] = 0.99
    """β₂: the share of the server's running mean of squared updates that is kept in a round."""


class FedAvgSettings(ServerLrSettings):
    """FedAvg (McMahan et al., AISTATS 2017)."""

    name: Literal["fedavg"] = "fedavg"


class FedProxSettings(ServerLrSettings):
    """FedProx (Li et al., MLSys 2020)."""

    name: Literal["fedprox"] = "fedprox"
    mu: Annotated[NonNegative, Example(0.01)] = 0.001
    """Weight μ of the proximal term, which pulls each client towards the global model. 0: FedAvg."""


class ScaffoldSettings(ServerLrSettings):
    """SCAFFOLD (Karimireddy et al., ICML 2020)."""

    name: Literal["scaffold"] = "scaffold"


class FedAvgMSettings(ServerLrSettings):
    """FedAvgM (Hsu et al. 2019)."""

    name: Literal["fedavgm"] = "fedavgm"
    beta: Annotated[Share, Example(0.5)] = 0.9
    """Momentum β of the server. 0: FedAvg."""


class FedAdamSettings(MomentsSettings):
    """FedAdam (Reddi et al., ICLR 2021)."""

    name: Literal["fedadam"] = "fedadam"


class FedAdamLi2023Settings(AdaptiveSettings):
    """FedAdam as implemented in the code of Li et al., NeurIPS 2023."""

    name: Literal["fedadam_li2023"] = "fedadam_li2023"


class FedYogiSettings(MomentsSettings):
    """FedYogi (Reddi et al., ICLR 2021)."""

    name: Literal["fedyogi"] = "fedyogi"


class FedAdagradSettings(AdaptiveSettings):
    """FedAdagrad (Reddi et al., ICLR 2021)."""

    name: Literal["fedadagrad"] = "fedadagrad"


class FedExpSettings(EpsilonSettings):
    """FedExP (Jhunjhunwala et al., ICLR 2023)."""

    name: Literal["fedexp"] = "fedexp"


class FedDynSettings(AlgorithmSettings):
    """FedDyn (Acar et al., ICLR 2021)."""

    name: Literal["feddyn"] = "feddyn"
    alpha: Annotated[Positive, Example(0.01)] = 0.1
    """Weight α of the dynamic regularizer."""


class FedProxExpSettings(EpsilonSettings):
    """FedProx with FedExP's extrapolation."""

    name: Literal["fedprox+exp"] = "fedprox+exp"
    mu: Annotated[NonNegative, Example(0.01)] = 0.001
    """Weight μ of the proximal term, which pulls each client towards the global model. 0: FedAvg."""


class ScaffoldExpSettings(EpsilonSettings):
    """SCAFFOLD with FedExP's extrapolation."""

    name: Literal["scaffold+exp"] = "scaffold+exp"


class FedAvgMExpSettings(EpsilonSettings):
    """FedAvgM with FedExP's extrapolation."""

    name: Literal["fedavgm+exp"] = "fedavgm+exp"
    beta: Annotated[Share, Example(0.5)] = 0.9
    """Momentum β of the server. 0: FedAvg."""


class OwnAlgorithmSettings(AlgorithmSettings):
    """A user's own algorithm."""

    name: None = None
    function: Annotated[FunctionPath, Example("myrules:build")]
    """module:function, importable. It is called with ``arguments``, and returns an Algorithm."""
    arguments: Annotated[Mapping[str, Argument], Example({"strength": 0.1})] = {}
    """Keyword arguments of the function."""
    epsilon: Annotated[NonNegative | None, Example(0.01)] = None
    """ε_0 of the algorithm in round 0. null: 0."""
    epsilon_anneal: Annotated[Rate | None, Example(0.99)] = None
    """Factor by which ε is multiplied from one round to the next, γ_ε. null: 1."""

    def compute_epsilon(self, round_index: int) -> float:
        """Computes the server optimizer's ε_t of a round; 0 if the settings give none."""
        return anneal(self.epsilon or 0.0, self.epsilon_anneal or 1.0, round_index)


NamedAlgorithm = (
    FedAvgSettings
    | FedProxSettings
    | ScaffoldSettings
    | FedAvgMSettings
    | FedAdamSettings
    | FedAdamLi2023Settings
    | FedYogiSettings
    | FedAdagradSettings
    | FedExpSettings
    | FedDynSettings
    | FedProxExpSettings
    | ScaffoldExpSettings
    | FedAvgMExpSettings
)
"""One row per preset."""
AnyAlgorithm = NamedAlgorithm | OwnAlgorithmSettings


def _drop_neutral_server_lr(given: dict[str, Any]) -> dict[str, Any]:
    """Drops a ``server_lr`` of 1, which changes nothing, so that presets without this setting accept it."""
    kind = ALGORITHM_VARIANTS.by_name.get(str(given.get("name", "fedavg")))
    reads = kind is not None and "server_lr" in kind.model_fields and "function" not in given
    if given.get("server_lr") == 1 and not reads:
        return {key: value for key, value in given.items() if key != "server_lr"}
    return given


ALGORITHM_VARIANTS = Variants(
    AnyAlgorithm,
    AlgorithmSettings,
    key="name",
    default="fedavg",
    meaning="The preset: which federated algorithm trains. Each has its own keys.",
    example="scaffold",
    stand_ins=("function",),
    prepare=_drop_neutral_server_lr,
)
PRESET_SETTINGS = ALGORITHM_VARIANTS.build_table()
"""Each preset with the settings that it reads and their defaults."""
AlgorithmSection = Annotated[
    Annotated[Annotated[NamedAlgorithm, Field(discriminator="name")], Tag("name")]
    | Annotated[OwnAlgorithmSettings, Tag("function")],
    Discriminator(ALGORITHM_VARIANTS.find_tag),
    WrapValidator(ALGORITHM_VARIANTS.validate),
]

_ADAPTER: TypeAdapter[AnyAlgorithm] = TypeAdapter(AlgorithmSection)


def read_algorithm(values: Any) -> AnyAlgorithm:
    """Validates an ``algorithm`` section by itself. Raises pydantic's ValidationError."""
    return _ADAPTER.validate_python(values)
