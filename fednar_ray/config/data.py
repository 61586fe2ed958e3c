"""The section ``data``: where examples come from, and how they become clients. One class per source."""

import codecs
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, TypeAdapter, WrapValidator, field_validator, model_validator

from fednar_ray.config.base import Argument, Count, Example, NonNegative, Positive, Settings, Share, Size
from fednar_ray.config.variants import Variants

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


class DigitsSettings(DataSettings):
    """scikit-learn's handwritten digits, which ship with the package."""

    source: Literal["digits"] = "digits"


class TorchvisionSettings(ImageSettings):
    """A data set of images that torchvision reads."""

    source: Literal["cifar10", "cifar100", "mnist"]
    directory: Annotated[str, Example("datasets")]
    """The directory of torchvision's files."""
    download: Annotated[bool, Example(True)] = False
    """Whether files that are missing in ``directory`` may be downloaded into it."""


class FashionMnistSettings(ImageSettings):
    """Fashion-MNIST, as torchvision reads it."""

    source: Literal["fashion_mnist"] = "fashion_mnist"
    directory: Annotated[str | None, Example("datasets")] = None
    """The directory of torchvision's files. null: that of Debian's package dataset-fashion-mnist."""
    download: Annotated[bool, Example(True)] = False
    """Whether files that are missing in ``directory`` may be downloaded into it."""


class ArraySettings(Settings):
    """The names of the arrays in an .npz file."""

    train_x: Annotated[str, Example("images")] = "train_x"
    """The array with the inputs of the training examples."""
    train_y: Annotated[str, Example("labels")] = "train_y"
    """The array with the labels of the training examples."""
    test_x: Annotated[str, Example("test_images")] = "test_x"
    """The array with the inputs of the test examples."""
    test_y: Annotated[str, Example("test_labels")] = "test_y"
    """The array with the labels of the test examples."""
    groups: Annotated[str | None, Example("hospital")] = None
    """An array with the natural client of each training example, for ``partition.kind: natural``."""
    channels: Annotated[Literal["first", "last"] | None, Example("last")] = None
    """Where uint8 images have their channels: [N, channels, height, width] or [N, height, width, channels]. null:
    this follows from the shape, and an ambiguous shape is an error."""


class NpzSettings(ImageSettings):
    """The user's own arrays in an .npz file."""

    source: Literal["npz"] = "npz"
    path: Annotated[str, Example("scans.npz")]
    """The file."""
    arrays: ArraySettings = ArraySettings()
    task: Annotated[TaskName, Example("binary")] = "classification"
    """Labels are classes from 0 (classification), 0 and 1 for one logit (binary), or numbers (regression)."""

    @property
    def has_groups(self) -> bool:
        """Whether an array of groups is named."""
        return self.arrays.groups is not None


class ShakespeareSettings(GroupedSettings):
    """Prediction of the next character in Shakespeare's plays. Each speaking role is a client."""

    source: Literal["shakespeare"] = "shakespeare"
    path: Annotated[str, Example("shakespeare")]
    """LEAF's directory, or a file with the plays or with the roles' speeches."""
    test_share: Annotated[Share, Example(0.1)] = 0.2
    """The share of each role's examples, its last ones, held out as the test set. LEAF's directory has its own."""
    min_characters: Annotated[Size, Example(5000)] = 1000
    """Roles with fewer characters are left out."""
    crop: Annotated[bool, Example(True)] = False
    """Take 2,000 training and 400 test examples of each role, from roles that have more of both."""


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


class CsvSettings(Settings):
    """How .csv and .tsv files are written. What is null is detected, file by file."""

    separator: Annotated[str | None, Example(";")] = None
    """The character between two values. null: a comma, or a tab in .tsv files, unless only one of ``;``, tab, ``|`` and
    comma gives all rows the same number of values."""
    decimal: Annotated[Literal[".", ","] | None, Example(",")] = None
    """The decimal sign. null: a comma if a column needs it and no value has a decimal point, else a point."""
    encoding: Annotated[str | None, Example("cp1250")] = None
    """The encoding of the text, such as ``cp1250``. null: UTF-8, or UTF-16 with its mark, else Windows-1252."""

    @field_validator("separator")
    @classmethod
    def _separator_is_a_mark(cls, mark: str | None) -> str | None:
        if mark is not None and (len(mark) != 1 or mark.isalnum() or mark in '\r\n".+-_'):
            raise ValueError('is no separator; write one character, such as ";" or "\\t"')
        return mark

    @field_validator("encoding")
    @classmethod
    def _encoding_exists(cls, name: str | None) -> str | None:
        if name is None:
            return None
        try:
            "a".encode(name)  # raises for codecs that are not of text, too
        except LookupError:
            raise ValueError("is no encoding of text; write, for example, utf-8 or cp1252") from None
        return codecs.lookup(name).name


class TabularSettings(ColumnSettings):
    """The settings of the user's own tables: how columns are read, and what is held out."""

    features: Annotated[Annotated[tuple[str, ...], Field(min_length=1)] | None, Example(("age", "weight"))] = None
    """The columns, or arrays of .npz files, that are inputs. null: all columns but the label, or the array x."""
    label: Annotated[str, Example("readmitted")] = "y"
    """The column, or the array, that is to be predicted."""
    exclude: Annotated[tuple[str, ...], Example(("patient",))] = ()
    """Columns that are not inputs, such as a patient's number. They are read only if ``features`` is null."""
    types: Annotated[Mapping[str, Literal["number", "category", "boolean", "date"]], Example({"zip": "category"})] = {}
    """The kind of columns, by name, where it should not follow from their values: {zip: category}."""
    csv: CsvSettings = CsvSettings()
    """How .csv and .tsv files are written."""
    positive: Annotated[str | None, Example("ill", "data.task=binary")] = None
    """For ``task: binary`` with text labels: the label that is class 1. null: the second in sorted order."""
    test_share: Annotated[Share, Example(0.3)] = 0.2
    """The share of each client's examples held out as the test set: the same examples with every seed, drawn without
    regard to their labels."""
    missing: Annotated[Literal["refuse", "drop", "mean"], Example("mean")] = "refuse"
    """How missing inputs are handled: as an error (refuse), by leaving out the row (drop), or by the mean of the input
    over all clients' training examples (mean)."""
    standardize: Annotated[bool, Example(False)] = True
    """Scale each input to mean 0 and standard deviation 1 over the training examples of all clients."""


class FolderSettings(GroupedSettings, TabularSettings):
    """The user's own tables, one file per client."""

    source: Annotated[Literal["folder"], Example("folder", "data.directory=clinics")] = "folder"
    directory: Annotated[str | None, Example("clinics")] = None
    """The directory of the files. null: ``execution.silos`` says where each file is."""

    @model_validator(mode="after")
    def _clients_are_files(self) -> Self:
        if self.partition.kind != "natural":
            raise ValueError("the clients of folder are its files: partition.kind can only be natural")
        return self


class TableSettings(TabularSettings):
    """The user's own table, one file with the rows of all clients."""

    source: Literal["table"] = "table"
    path: Annotated[str, Example("patients.csv")]
    """The file: .csv, .tsv or .parquet."""
    groups: Annotated[str | None, Example("hospital")] = None
    """The column whose values are the clients, which is no input. null: ``partition`` divides the rows."""
    test_path: Annotated[str | None, Example("new_patients.csv")] = None
    """A file whose rows are the test set, with the same columns. null: ``test_share`` is held out."""
    test_share: Annotated[Share, Example(0.3)] = 0.2
    """The share of each group's rows, or of all rows without ``groups``, held out as the test set: the same rows with
    every seed, drawn without regard to their labels."""

    @property
    def has_groups(self) -> bool:
        """Whether a column of groups is named."""
        return self.groups is not None

    @model_validator(mode="before")
    @classmethod
    def _natural_with_groups(cls, values: Any) -> Any:
        partition = values.get("partition", {}) if isinstance(values, dict) else None
        if not isinstance(partition, dict) or values.get("groups") is None:
            return values
        return {**values, "partition": {"kind": "natural", **partition}}

    @model_validator(mode="after")
    def _groups_are_no_input(self) -> Self:
        if self.groups is not None and self.groups in (self.label, *(self.features or ())):
            what = "the label" if self.groups == self.label else "an input"
            raise ValueError(f"groups names {self.groups}, which is {what}; it can be only one of them")
        return self


class HuggingFaceSettings(ImageSettings, ColumnSettings):
    """A data set of the Hugging Face hub."""

    source: Literal["huggingface"] = "huggingface"
    dataset: Annotated[str, Example("flwrlabs/femnist")]
    """The name of the data set on the hub, or a local directory."""
    configuration: Annotated[str | None, Example("default")] = None
    """Which of the data set's configurations is loaded. null: its default."""
    features: Annotated[tuple[str, ...], Field(min_length=1), Example(("image",))]
    """The columns that are inputs: one of images, sequences or numbers, or several of numbers."""
    label: Annotated[str, Example("character")] = "label"
    """The column that is to be predicted."""
    groups: Annotated[str | None, Example("writer_id")] = None
    """The column whose values are the natural clients, for ``partition.kind: natural``."""
    test_share: Annotated[Share, Example(0.1)] = 0.2
    """The share held out as the test set, if the data set has no split ``test``; the same examples with every seed."""

    @property
    def has_groups(self) -> bool:
        """Whether a column of groups is named."""
        return self.groups is not None


class EntryPointSettings(ImageSettings):
    """A user's own function that returns a Source."""

    source: Literal["entry_point"] = "entry_point"
    entry_point: Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$"), Example("mydata:load")]
    """package.module:function, importable. It is called with ``arguments``, and returns a Source."""
    arguments: Annotated[Mapping[str, Argument], Example({"folder": "scans"})] = {}
    """The keyword arguments of the function."""

    @property
    def has_groups(self) -> bool:
        """True: it is known only once the function has returned its Source."""
        return True


AnyData = (
    DigitsSettings
    | TorchvisionSettings
    | FashionMnistSettings
    | NpzSettings
    | ShakespeareSettings
    | FolderSettings
    | TableSettings
    | HuggingFaceSettings
    | EntryPointSettings
)
"""One row per source."""


def _set_entry_point_source(given: dict[str, Any]) -> dict[str, Any]:
    return {"source": "entry_point", **given} if "entry_point" in given else given


DATA_VARIANTS = Variants(
    AnyData,
    DataSettings,
    key="source",
    default="digits",
    meaning="Where the examples come from. Each source has its own keys.",
    example="folder",
    prepare=_set_entry_point_source,
)
SOURCE_SETTINGS = DATA_VARIANTS.build_table()
"""Each source with the settings that it reads and their defaults; None if there is no default."""
DataSection = Annotated[Annotated[AnyData, Field(discriminator="source")], WrapValidator(DATA_VARIANTS.validate)]

_ADAPTER: TypeAdapter[AnyData] = TypeAdapter(DataSection)


def read_data(values: Any) -> AnyData:
    """Validates a ``data`` section by itself. Raises pydantic's ValidationError."""
    return _ADAPTER.validate_python(values)
