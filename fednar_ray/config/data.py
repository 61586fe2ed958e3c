"""The section ``data``: where examples come from, and how they become clients. One class per source."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, WrapValidator

from fednar_ray.config.base import Argument, Example, Settings, Share, Size
from fednar_ray.config.source_base import ColumnSettings, DataSettings, GroupedSettings, ImageSettings, TaskName
from fednar_ray.config.tables import FolderSettings, TableSettings
from fednar_ray.config.variants import Variants


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
