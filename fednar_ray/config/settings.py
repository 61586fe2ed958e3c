"""The sections of an experiment file: their keys, ranges and defaults.

Symbols in comments are those of Li et al., NeurIPS 2023.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fednar_ray.core.schedules import Workload
from fednar_ray.core.store_uris import experiment_name_problem

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
TaskName = Literal["classification", "binary", "regression"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
RegularizerName = Literal["fednar", "decoupled", "coupled", "none"]


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


def _argument(value: Any) -> Any:
    parts = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(part, bool | int | float | str) for part in parts):
        raise ValueError("should be a number, text, true, false, or a list of these")
    return tuple(value) if isinstance(value, list) else value


def _experiment_name(value: str) -> str:
    problem = experiment_name_problem(value)
    if problem is not None:
        raise ValueError(f"{problem}; name an MLflow experiment, such as digits or team/digits")
    return value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=2**31 - 1)]
Size = Annotated[int, BeforeValidator(_number), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0)]
NonNegative = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Rate = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
FunctionPath = Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)+$")]
Arguments = Mapping[str, Annotated[Any, BeforeValidator(_argument)]]


class Settings(BaseModel):
    """The base of every section: frozen, and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class PartitionSettings(Settings):
    """How examples become clients; kinds as in ``data.partition``."""

    kind: Literal["iid", "dirichlet", "dirichlet_equal", "shards", "natural"] = "iid"
    clients: Annotated[Count, Field(le=10_000_000)] | None = None
    """N; of ``natural``, how many of its groups, drawn at random; null: all of them."""
    alpha: Positive = 0.3
    """Concentration of Dir(α), for both Dirichlet kinds."""
    shards_per_client: Count = 2
    min_examples: Size = 1
    """Every client gets at least this many; 0 allows empty clients, which are reported and never sampled."""


class NormalizationSettings(Settings):
    """(value/255 − mean)/std of uint8 images: a number a channel, each."""

    mean: Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    std: Annotated[tuple[Positive, ...], Field(min_length=1)]


class AugmentationSettings(Settings):
    """What training does to images, and evaluation does not: a window of the padded image, mirrored half of the time.

    Windows are drawn by seed, so that a run does not depend on who trains whom.
    """

    kind: Literal["per_batch", "per_example"]
    """One draw for a client's whole batch, as FedNAR's authors do, or one an example."""
    padding: Size = 4
    """Pixels on every side; they are 0 after normalization, the mean."""
    flip: bool = True


class ArraySettings(Settings):
    """What the arrays of an .npz file are called."""

    train_x: str = "train_x"
    train_y: str = "train_y"
    test_x: str = "test_x"
    test_y: str = "test_y"
    groups: str | None = None
    """A natural client for each training example, for ``partition.kind: natural``."""
    channels: Literal["first", "last"] | None = None
    """Where uint8 images have their channels: [N, channels, height, width] or [N, height, width, channels]; null: the
    shape says it, and is refused where it can be read either way."""


SourceName = Literal[
    "digits", "cifar10", "cifar100", "mnist", "fashion_mnist", "npz", "shakespeare", "folder", "huggingface",
    "entry_point",
]  # fmt: skip

_IMAGES: Mapping[str, Any] = {"normalization": None, "augmentation": None}
_FILES: Mapping[str, Any] = {"directory": None, "download": False, **_IMAGES}
SOURCE_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "digits": {},
    "cifar10": _FILES,
    "cifar100": _FILES,
    "mnist": _FILES,
    "fashion_mnist": _FILES,
    "npz": {"path": None, "arrays": ArraySettings(), "task": "classification", **_IMAGES},
    "shakespeare": {"path": None, "test_share": 0.2, "min_characters": 1000, "crop": False},
    "folder": {
        "directory": None,
        "features": None,
        "label": "y",
        "task": "classification",
        "test_share": 0.2,
        "missing": "refuse",
        "standardize": True,
    },
    "huggingface": {
        "dataset": None,
        "configuration": None,
        "features": None,
        "label": "label",
        "groups": None,
        "task": "classification",
        "test_share": 0.2,
        **_IMAGES,
    },
    "entry_point": {"entry_point": None, "arguments": None, **_IMAGES},
}
"""Each source with the settings it reads and their defaults."""

_NEEDED: Mapping[str, tuple[str, ...]] = {
    "cifar10": ("directory",),
    "cifar100": ("directory",),
    "mnist": ("directory",),
    "npz": ("path",),
    "shakespeare": ("path",),
    "huggingface": ("dataset", "features"),
    "entry_point": ("entry_point",),
}
NATURAL_SOURCES = ("shakespeare", "folder")
"""Those whose clients are their own groups unless the partition says otherwise."""


class DataSettings(Settings):
    """Where examples come from; what a source reads, and its defaults, are in ``SOURCE_SETTINGS``."""

    source: SourceName = "digits"
    directory: str | None = None
    """The directory of torchvision's files, or of one file a client. null: of fashion_mnist Debian's; of folder, where
    ``execution.silos`` says where each file is."""
    download: bool | None = None
    """May what ``directory`` lacks be downloaded into it?"""
    path: str | None = None
    """The file with the examples; of shakespeare also LEAF's directory."""
    arrays: ArraySettings | None = None
    dataset: str | None = None
    """A data set of the hub by name, or a local directory."""
    configuration: str | None = None
    """Which of the configurations of the data set."""
    entry_point: Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$")] | None = None
    """package.module:function, importable; it is called with ``arguments``, and returns a Source."""
    arguments: Arguments | None = None
    features: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Columns, or of .npz files arrays, that are inputs; null of folder: all columns but the label, or the array x."""
    label: str | None = None
    """The column, or the array, that is to be predicted."""
    groups: str | None = None
    """The column whose values are the natural clients."""
    task: TaskName | None = None
    """Labels are classes from 0; or 0 and 1, for one logit; or numbers."""
    missing: Literal["refuse", "drop", "mean"] | None = None
    """What becomes of missing inputs: an error; the row is dropped; the mean of the clients' training examples."""
    standardize: bool | None = None
    """Make each input's mean 0 and its deviation 1, over the training examples of all clients."""
    test_share: Share | None = None
    """The share held out as the test set: of each client; of shakespeare, its last examples."""
    min_characters: Size | None = None
    """Roles that say less are left out."""
    crop: bool | None = None
    """Take 2,000 training and 400 test examples of each role, from roles that have more of both."""
    normalization: NormalizationSettings | None = None
    """null: the source's own."""
    augmentation: AugmentationSettings | None = None
    """null: none."""
    validation: Share = 0.0
    """The share of the training examples held out, before partitioning."""
    seed: Size | None = None
    """What is held out, and who holds what, follow from it; null: from the experiment's seed, as all else does."""
    partition: PartitionSettings = PartitionSettings(clients=20)

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        if "entry_point" in given:
            given.setdefault("source", "entry_point")
        source = str(given.get("source", "digits"))
        partition = given.get("partition", {})
        if source in NATURAL_SOURCES and isinstance(partition, dict):
            given["partition"] = {"kind": "natural", **partition}
        return {**SOURCE_SETTINGS.get(source, {}), **given}

    @model_validator(mode="after")
    def _only_what_is_read_and_all_that_is_needed(self) -> Self:
        read, problems = SOURCE_SETTINGS[self.source], []
        optional = sorted(set().union(*SOURCE_SETTINGS.values()))
        unread = [key for key in optional if getattr(self, key) is not None and key not in read]
        problems += [f"{self.source} does not read {key}: {_readers(key, SOURCE_SETTINGS)}" for key in unread]
        problems += [f"{self.source} needs {key}" for key in _NEEDED.get(self.source, ()) if getattr(self, key) is None]
        features = self.features or ()
        twice = sorted({name for name in features if features.count(name) > 1})
        problems += [f"features names {name} twice" for name in twice]
        if self.label in features:
            problems.append(f"features holds {self.label}, which is the label")
        if self.source == "folder" and self.partition.kind != "natural":
            problems.append("the clients of folder are its files: partition.kind can only be natural")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def has_groups(self) -> bool:
        """May the source name natural clients? Of an entry point only its Source says."""
        if self.source == "npz":
            return self.arrays is not None and self.arrays.groups is not None
        if self.source == "huggingface":
            return self.groups is not None
        return self.source in (*NATURAL_SOURCES, "entry_point")


MODEL_SETTINGS: Mapping[str, Mapping[str, int | float | str]] = {
    "mlp": {"hidden": 64, "dropout": 0.0},
    "cnn": {"hidden": 64, "dropout": 0.0},
    "logistic": {},
    "lenet": {"hidden": 512, "dropout": 0.0},
    "cnn_femnist": {"hidden": 2048, "dropout": 0.0},
    "resnet18_gn": {"pooling": "authors"},
    "char_transformer": {"hidden": 512, "dropout": 0.1, "layers": 6, "vocabulary": 80},
    "char_lstm": {"hidden": 256, "layers": 2, "vocabulary": 80},
}
"""Each model with the settings it reads and their defaults."""

ModelName = Literal[
    "mlp", "cnn", "logistic", "lenet", "cnn_femnist", "resnet18_gn", "char_transformer", "char_lstm"
]  # fmt: skip


class ModelSettings(Settings):
    """A model by ``name``, by ``torchvision``'s name, or by the path of a ``function`` that returns one."""

    name: ModelName | None = None
    """null: mlp, where neither torchvision nor function names another."""
    hidden: Count | None = None
    """Width of the hidden layer; of a transformer's feed-forward layers; of an LSTM's states."""
    dropout: Share | None = None
    layers: Count | None = None
    vocabulary: Count | None = None
    """Characters that a language model reads and, in classification, at least as many as it predicts."""
    pooling: Literal["authors", "whole"] | None = None
    """How resnet18_gn averages its last map: the upper left 3x3, as FedNAR's authors do, or all of it."""
    torchvision: str | None = None
    """The name of one of torchvision's models; it gets ``num_classes`` unless ``arguments`` says otherwise."""
    function: FunctionPath | None = None
    """module.function, importable; it is called with ``arguments``."""
    arguments: Arguments | None = None
    weights: str | None = None
    """A local file to start from: .safetensors, or a state dict that ``torch.save`` wrote."""

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        if not {"name", "torchvision", "function"} & given.keys():
            given["name"] = "mlp"
        return {**MODEL_SETTINGS.get(str(given.get("name")), {}), **given}

    @model_validator(mode="after")
    def _one_model_and_only_what_it_reads(self) -> Self:
        named = [key for key in ("name", "torchvision", "function") if getattr(self, key) is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} name a model each; give one")
        model, read = self.name or named[0], MODEL_SETTINGS.get(self.name or "", {})
        optional = sorted(set().union(*MODEL_SETTINGS.values()))
        unread = [key for key in optional if getattr(self, key) is not None and key not in read]
        if unread:
            raise ValueError(
                "; ".join(f"{model} does not read {key}: {_readers(key, MODEL_SETTINGS)}" for key in unread)
            )
        if self.arguments and self.name is not None:
            raise ValueError(f"{model} does not read arguments: they belong to torchvision, function")
        return self


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
    """A preset by ``name``, or an algorithm of your own by the path of a ``function`` that returns one.

    What a preset reads, and its defaults, are in ``PRESET_SETTINGS``.
    """

    name: PresetName | None = None
    """null: fedavg, where ``function`` names no other."""
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
    function: FunctionPath | None = None
    """module.function, importable; it is called with ``arguments``, and returns an Algorithm."""
    arguments: Arguments | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        if not {"name", "function"} & given.keys():
            given["name"] = "fedavg"
        read = PRESET_SETTINGS.get(str(given.get("name")), {})
        if given.get("server_lr") == 1 and "server_lr" not in read:
            del given["server_lr"]  # the neutral value, for presets that set their own
        return {**read, **given}

    @model_validator(mode="after")
    def _one_algorithm_and_only_what_it_reads(self) -> Self:
        if self.name is None:
            name, read = str(self.function), {"epsilon", "epsilon_anneal"}
        else:
            name, read = self.name, set(PRESET_SETTINGS[self.name])
            if self.function is not None:
                raise ValueError(
                    f"name ({self.name}) and function are an algorithm each; give one, and null for the other"
                )
            if self.arguments:
                raise ValueError(f"{name} does not read arguments: they belong to function")
            if self.epsilon == 0 and "exp" not in name.split("+")[-1]:
                raise ValueError(f"{name} divides by epsilon where an update is zero: it must be above 0")
        optional = sorted(set().union(*PRESET_SETTINGS.values()))
        unread = [key for key in optional if getattr(self, key) is not None and key not in read]
        if unread:
            raise ValueError(
                "; ".join(f"{name} does not read {key}: {_readers(key, PRESET_SETTINGS)}" for key in unread)
            )
        return self


def _readers(key: str, settings: Mapping[str, Mapping[str, Any]]) -> str:
    return "it belongs to " + ", ".join(name for name, read in settings.items() if key in read)


class RegularizerSettings(Settings):
    """The clip and the decay."""

    name: RegularizerName = "fednar"
    weight_decay: NonNegative = 0.01  # λ_0
    weight_decay_anneal: Rate = 1.0  # γ_λ
    clip_bound: Positive = 10.0  # A_0
    clip_bound_anneal: Rate = 1.0  # γ_A


def _silo_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError("the name of a silo is of letters, digits, - and _")
    return name


class SiloSettings(Settings):
    """A client that is pinned to the node that has its data."""

    resources: Mapping[str, Annotated[float, BeforeValidator(_number), Field(ge=1e-4)]] = {}
    """Custom resources of that node, and how much of each the client's actor takes; {}: any node will do."""
    data: str
    """The client's file on that node, or a directory with that one file."""

    @model_validator(mode="after")
    def _readable_from_anywhere(self) -> Self:
        if not self.data.startswith("/"):
            raise ValueError(f"data {self.data}: give an absolute path; it is read on the silo's node")
        taken = sorted({"CPU", "GPU", "memory", "object_store_memory"} & self.resources.keys())
        if taken:
            raise ValueError(f"resources {', '.join(taken)}: custom ones are meant; see cpus_per_actor, gpus_per_actor")
        return self


class ExecutionSettings(Settings):
    """Where clients train."""

    placement: Literal["auto", "serial", "pooled", "dedicated"] = "auto"
    actors: Literal["auto"] | Count = "auto"
    cpus_per_actor: Annotated[float, BeforeValidator(_number), Field(ge=1e-4)] = 1.0  # Ray's resolution
    gpus_per_actor: Literal["auto"] | NonNegative = "auto"
    """auto: an equal share of the GPUs; with ``actors: auto`` as many actors a GPU as its memory holds, at most 4."""
    strategy: Literal["default", "pack", "spread"] = "default"
    """Actors on as few nodes as possible, or on as many; default: Ray's own way between the two."""
    autoscale: bool = False
    """Begin with the actors that fit, and take up the others as nodes join; else all must fit from the start."""
    silos: Annotated[Mapping[Annotated[str, AfterValidator(_silo_name)], SiloSettings], Field(min_length=1)] | None = (
        None
    )
    """The clients of source folder, in the order of their names, each with its node and its file there."""
    vectorize: Literal["auto"] | Count = "auto"
    """C, how many clients train as one matrix."""
    retries: Size = 2
    """How often what failed (an actor, a node, an exception, a time-out) is tried again, elsewhere if there is one."""
    min_clients: Count = 1
    """A round is aborted when failures leave fewer clients."""
    client_timeout_seconds: Positive | None = None
    """A call, which trains one group, that takes longer is given up, with its actor; null: it may take any time."""
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


class AttackSettings(Settings):
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
    experiment: Annotated[str, AfterValidator(_experiment_name)] | None = None
    """The MLflow experiment; null takes the experiment's name."""
    system_metrics: bool | None = None
    """CPU, memory, disk, network and GPUs of the driver's machine as well; null: as
    ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` says, which is no unless set."""


class CompareSettings(Settings):
    """What ``fednar compare`` varies; the ``compare`` section of a file."""

    regularizers: Annotated[tuple[RegularizerName, ...], Field(min_length=1)] = ("decoupled", "fednar")
    weight_decays: Annotated[tuple[NonNegative, ...], Field(min_length=1)] | None = None
    """null: the experiment's own."""
    seeds: Annotated[int, BeforeValidator(_number), Field(ge=1, le=1000)] = 3
    """How many, counted up from the experiment's seed."""
    target_accuracy: Annotated[float, BeforeValidator(_number), Field(gt=0, le=1)] = 0.8
    """Of classification: the table says after how many rounds a run reached it."""
    target_rmse: Positive | None = None
    """The same of regression, in the unit of the label. null: no target."""
    final_rounds: Count = 10
    """The final accuracy (of regression, RMSE) is the mean over this many last rounds."""
