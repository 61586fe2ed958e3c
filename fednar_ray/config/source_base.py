"""What the settings of several data sources have in common: partition, images, groups and columns."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from fednar_ray.config.base import Count, Example, NonNegative, Positive, Settings, Share, Size

TaskName = Literal["classification", "binary", "regression"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)


class PartitionSettings(Settings):
    """How examples are divided among the clients."""

    kind: Annotated[Literal["iid", "dirichlet", "dirichlet_equal", "shards", "natural"], Example("dirichlet")] = "iid"
    """iid: at random. dirichlet, dirichlet_equal: skewed labels. shards: few labels per client. natural: one client per
    group that the source names."""
    clients: Annotated[Annotated[Count, Field(le=10_000_000)] | None, Example(50)] = None
    """Number of clients, N. For ``natural``: the number of groups, drawn at random. null: all groups."""
    alpha: Annotated[Positive, Example(0.1, "data.partition.kind=dirichlet")] = 0.3
    """Concentration of Dir(α), for both Dirichlet kinds."""
    shards_per_client: Annotated[Count, Example(3, "data.partition.kind=shards")] = 2
    """For ``shards``: the number of shards, cut from the examples sorted by label, that each client gets."""
    min_examples: Annotated[Size, Example(10)] = 1
    """Minimum number of examples per client. 0 allows clients without examples, which are never sampled."""


class NormalizationSettings(Settings):
    """(value/255 − mean)/std for uint8 images: one mean and one std per channel."""

    mean: Annotated[tuple[NonNegative, ...], Field(min_length=1), Example((0.49, 0.48, 0.45))]
    """Mean of each channel, on the scale 0 to 1."""
    std: Annotated[tuple[Positive, ...], Field(min_length=1), Example((0.25, 0.24, 0.26))]
    """Standard deviation of each channel, on the scale 0 to 1."""


class AugmentationSettings(Settings):
    """Random changes of images in training: a window of the padded image, mirrored half of the time.

    They are drawn by seed, so a run does not depend on which actor trains which client.
    """

    kind: Annotated[Literal["per_batch", "per_example"], Example("per_example")]
    """One draw for the whole batch of a client, as FedNAR's authors do, or one draw per example."""
    padding: Annotated[Size, Example(2)] = 4
    """Pixels added on every side. They are 0 after normalization, which is the mean."""
    flip: Annotated[bool, Example(False)] = True
    """Whether to mirror images left to right with probability one half."""


class DataSettings(Settings):
    """The settings that every source reads."""

    validation: Annotated[Share, Example(0.1)] = 0.0
    """The share of the training examples held out for validation, before partitioning."""
    seed: Annotated[Size | None, Example(0)] = None
    """The seed that decides which examples are held out for validation and which client gets which. null: the
    experiment's seed. No seed changes which examples are the test set."""
    partition: PartitionSettings = PartitionSettings(clients=20)

    @property
    def has_groups(self) -> bool:
        """Whether the source may name natural clients, which ``partition.kind: natural`` needs."""
        return False


class ImageSettings(DataSettings):
    """The settings of sources that may hold images."""

    normalization: NormalizationSettings | None = None
    """How images are normalized. null: as the source does."""
    augmentation: AugmentationSettings | None = None
    """How images are changed in training. null: they are not."""


class GroupedSettings(DataSettings):
    """The settings of sources whose clients are their own groups unless the partition says otherwise."""

    partition: PartitionSettings = PartitionSettings(kind="natural")

    @property
    def has_groups(self) -> bool:
        """True: these sources always have groups."""
        return True

    @field_validator("partition", mode="before")
    @classmethod
    def _natural_by_default(cls, values: Any) -> Any:
        return {"kind": "natural", **values} if isinstance(values, dict) else values


class ColumnSettings(DataSettings):
    """The settings of sources whose examples are rows with named columns."""

    features: Annotated[tuple[str, ...], Field(min_length=1)] | None
    label: str
    task: Annotated[TaskName, Example("regression")] = "classification"
    """Labels are classes from 0 (classification), 0 and 1 for one logit (binary), or numbers (regression)."""
    test_share: Share = 0.2

    @model_validator(mode="after")
    def _features_are_distinct(self) -> Self:
        features = self.features or ()
        twice = sorted({name for name in features if features.count(name) > 1})
        wrong = [f"features names {name} twice" for name in twice]
        if self.label in features:
            wrong.append(f"features holds {self.label}, which is the label")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self
