"""The sections of an experiment file: their keys, ranges and defaults.

Symbols in comments are those of Li et al., NeurIPS 2023.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fednar_ray.schedules import Workload

PRESET_SETTINGS: Mapping[str, Mapping[str, float]] = {
    "fedavg": {"server_lr": 1.0},
    "fedprox": {"server_lr": 1.0, "mu": 0.001},
    "scaffold": {"server_lr": 1.0},
    "fedavgm": {"server_lr": 1.0, "beta": 0.9},
    "fedadam": {"server_lr": 0.1, "beta1": 0.9, "beta2": 0.99, "epsilon": 0.01, "epsilon_anneal": 1.0},
    "fedadam_li2023": {"server_lr": 0.1, "epsilon": 0.01, "epsilon_anneal": 1.0},
    "fedyogi": {"server_lr": 0.1, "beta1": 0.9, "beta2": 0.99, "epsilon": 0.01, "epsilon_anneal": 1.0},
    "fedadagrad": {"server_lr": 0.1, "epsilon": 0.01, "epsilon_anneal": 1.0},
    "fedexp": {"epsilon": 0.001, "epsilon_anneal": 1.0},
    "feddyn": {"alpha": 0.1},
    "fedprox+exp": {"mu": 0.001, "epsilon": 0.001, "epsilon_anneal": 1.0},
    "scaffold+exp": {"epsilon": 0.001, "epsilon_anneal": 1.0},
    "fedavgm+exp": {"beta": 0.9, "epsilon": 0.001, "epsilon_anneal": 1.0},
}
"""Each preset with the settings it reads and their defaults."""

PresetName = Literal[
    "fedavg", "fedprox", "scaffold", "fedavgm", "fedadam", "fedadam_li2023", "fedyogi", "fedadagrad",
    "fedexp", "feddyn", "fedprox+exp", "scaffold+exp", "fedavgm+exp",
]  # fmt: skip
RegularizerName = Literal["fednar", "decoupled", "coupled", "none"]


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Size = Annotated[int, BeforeValidator(_number), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0)]
NonNegative = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Rate = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]


class Settings(BaseModel):
    """The base of every section: frozen, and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class PartitionSettings(Settings):
    """How examples become clients; kinds as in ``data.partition``."""

    kind: Literal["iid", "dirichlet", "dirichlet_equal", "shards", "natural"] = "iid"
    clients: Count | None = None
    """N; ``natural`` counts its groups instead."""
    alpha: Positive = 0.3
    """Concentration of Dir(α), for both Dirichlet kinds."""
    shards_per_client: Count = 2
    min_examples: Size = 1
    """Every client gets at least this many; 0 allows empty clients, which are reported and never sampled."""


class DataSettings(Settings):
    """Where examples come from."""

    source: Literal["digits"] = "digits"
    validation: Share = 0.0
    """The share of the training examples held out, before partitioning."""
    partition: PartitionSettings = PartitionSettings(clients=20)


class ModelSettings(Settings):
    """A model by name: ``mlp`` (flattened input, one hidden layer) or ``cnn`` (two convolutions with GroupNorm)."""

    name: Literal["mlp", "cnn"] = "mlp"
    hidden: Count = 64
    """Width of the hidden layer."""
    dropout: Share = 0.0


class FederationSettings(Settings):
    """Rounds, clients, and local work."""

    rounds: Count = 30  # T
    clients_per_round: Count | None = None
    """|S|; null samples every client."""
    local_steps: Count | None = None  # K
    local_epochs: Count | None = None
    batch_size: Count = 32
    """At or above a shard's size: full-batch training."""
    participation: tuple[tuple[Size, ...], ...] | None = None
    """One list of client ids a round, instead of sampling."""

    @property
    def workload(self) -> Workload:
        """The local work of a round."""
        return Workload(batch_size=self.batch_size, local_steps=self.local_steps, local_epochs=self.local_epochs)


class AlgorithmSettings(Settings):
    """A preset and its settings; what a preset reads, and its defaults, are in ``PRESET_SETTINGS``."""

    name: PresetName = "fedavg"
    local_lr: Positive = 0.1  # η_0
    local_lr_anneal: Rate = 1.0  # γ_η
    server_lr: Positive | None = None  # η_g
    mu: NonNegative | None = None  # μ
    alpha: Positive | None = None  # α of FedDyn
    beta: Share | None = None  # β
    beta1: Share | None = None  # β₁
    beta2: Share | None = None  # β₂
    epsilon: NonNegative | None = None  # ε_0
    epsilon_anneal: Rate | None = None  # γ_ε

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        read = PRESET_SETTINGS.get(str(given.get("name", "fedavg")), {})
        if given.get("server_lr") == 1 and "server_lr" not in read:
            del given["server_lr"]  # the neutral value, for presets that set their own
        return {**read, **given}

    @model_validator(mode="after")
    def _only_what_is_read(self) -> Self:
        optional = set().union(*PRESET_SETTINGS.values())
        unread = [key for key in optional if getattr(self, key) is not None and key not in PRESET_SETTINGS[self.name]]
        if self.epsilon == 0 and "exp" not in self.name.split("+")[-1]:
            raise ValueError(f"{self.name} divides by epsilon where an update is zero: it must be above 0")
        if unread:
            raise ValueError("; ".join(f"{self.name} does not read {key}: {_readers(key)}" for key in sorted(unread)))
        return self


def _readers(key: str) -> str:
    return "it belongs to " + ", ".join(name for name, read in PRESET_SETTINGS.items() if key in read)


class RegularizerSettings(Settings):
    """The clip and the decay."""

    name: RegularizerName = "fednar"
    weight_decay: NonNegative = 0.01  # λ_0
    weight_decay_anneal: Rate = 1.0  # γ_λ
    clip_bound: Positive = 10.0  # A_0
    clip_bound_anneal: Rate = 1.0  # γ_A


class ExecutionSettings(Settings):
    """Where clients train."""

    placement: Literal["auto", "serial", "pooled", "dedicated"] = "auto"
    actors: Literal["auto"] | Count = "auto"
    cpus_per_actor: Annotated[float, BeforeValidator(_number), Field(ge=1e-4)] = 1.0  # Ray's resolution
    gpus_per_actor: Literal["auto"] | NonNegative = "auto"
    cohort_width: Literal["auto"] | Count = "auto"
    """C, how many clients train as one matrix."""
    retries: Size = 2
    """How often what failed (an actor, a node, an exception, a time-out) is tried again, elsewhere if there is one."""
    min_clients: Count = 1
    """A round is aborted when failures leave fewer clients."""
    client_timeout_seconds: Positive | None = None
    """A call, which trains one cohort, that takes longer is given up, with its actor; null: it may take any time."""
    capacity_timeout_seconds: Positive = 300.0
    """How long a run without a single actor waits for capacity to return."""
    state_memory_bytes: Literal["auto"] | Size = "auto"
    """Client states beyond this much live on disk, in the run directory; auto: a quarter of the memory that is free."""

    @model_validator(mode="after")
    def _gpus_that_ray_can_share(self) -> Self:
        share = self.gpus_per_actor
        if isinstance(share, float) and share != 0 and (share < 1e-4 or (share > 1 and share != int(share))):
            raise ValueError(f"gpus_per_actor {share:g}: Ray gives whole GPUs, or a share from 0.0001 to 1")
        return self


class EvaluationSettings(Settings):
    """What is evaluated, and how often; on the actors, in large batches."""

    every: Count = 1
    """Rounds from one evaluation to the next; the last round is always evaluated."""
    federated: bool = False
    """Also each client's accuracy on its own examples: the mean over clients, and over the worst tenth of them."""


class OnOffSettings(Settings):
    """Spells of presence and absence, each of geometric length."""

    on_rounds: Annotated[float, BeforeValidator(_number), Field(ge=1)]
    """Mean length of a spell of presence, in rounds."""
    off_rounds: Annotated[float, BeforeValidator(_number), Field(ge=1)]
    """Mean length of a spell of absence, in rounds."""


class SpeedSettings(Settings):
    """How fast clients train, on the virtual clock: log-normal around ``steps_per_second``."""

    steps_per_second: Annotated[float, BeforeValidator(_number), Field(ge=1e-6)] = 1.0
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
    over_sampling: Annotated[float, BeforeValidator(_number), Field(ge=1)] = 1.0
    """Sample this many times ``clients_per_round``; the first ``clients_per_round`` to return count."""

    @model_validator(mode="after")
    def _a_deadline_needs_a_clock(self) -> Self:
        if self.deadline_seconds is not None and self.speed is None:
            raise ValueError("deadline_seconds needs availability.speed, which gives clients their speeds")
        return self


class CorruptionSettings(Settings):
    """Clients that send what they should not, to see what that does: fixed shares of the clients, drawn by seed."""

    nan: Share = 0.0
    """The share that sends NaN."""
    scaled: Share = 0.0
    """The share that sends its update ``factor`` times."""
    factor: Annotated[float, BeforeValidator(_number)] = 100.0

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
    trim: Annotated[float, BeforeValidator(_number), Field(ge=0, lt=0.5)] = 0.1
    """Of ``trimmed_mean``: the share of the clients cut at each end of every coordinate."""
    byzantine: Annotated[float, BeforeValidator(_number), Field(ge=0, lt=0.5)] = 0.2
    """Of ``krum``: the share of the clients that may be arbitrary; the rest is averaged (Multi-Krum)."""
    bound: Positive | None = None
    """Of ``norm_bound``: the longest update; longer ones are shortened to it. null: the round's median norm."""


class CheckpointSettings(Settings):
    """What is kept so that a run can go on."""

    every: Count | None = 10
    """Rounds from one checkpoint to the next; the start and the end are always written. null: none at all."""
    keep: Count = 2
    """How many are kept."""
    storage: str | None = None
    """A directory, or a URI (s3://…, gs://…, and what fsspec knows); null: ``checkpoints`` in the run directory."""


class TrackingSettings(Settings):
    """Where MLflow records; null means what MLflow itself would take (``MLFLOW_TRACKING_URI``, else ./mlflow.db)."""

    uri: str | None = None
    experiment: str | None = None
    """The MLflow experiment; null takes the experiment's name."""


class CompareSettings(Settings):
    """What ``fednar compare`` varies; the ``compare`` section of a file."""

    regularizers: Annotated[tuple[RegularizerName, ...], Field(min_length=1)] = ("decoupled", "fednar")
    weight_decays: Annotated[tuple[NonNegative, ...], Field(min_length=1)] | None = None
    """null: the experiment's own."""
    seeds: Annotated[int, BeforeValidator(_number), Field(ge=1, le=1000)] = 3
    """How many, counted up from the experiment's seed."""
    target_accuracy: Annotated[float, BeforeValidator(_number), Field(gt=0, le=1)] = 0.8
    final_rounds: Count = 10
    """The final accuracy is the mean over this many last rounds."""
