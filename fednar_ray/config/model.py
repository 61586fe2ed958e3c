"""The section ``model``: one class per model."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, WrapValidator

from fednar_ray.config.base import Argument, Count, Example, FunctionPath, Positive, Settings, Share
from fednar_ray.config.variants import Variants


class ModelSettings(Settings):
    """The settings that every model reads.

    A model is given by ``name``, by the name of one of ``torchvision``'s, or by the path of a ``function`` that
    returns one.
    """

    weights: Annotated[str | None, Example("pretrained.safetensors")] = None
    """A local file to start from: .safetensors, or a state dict that ``torch.save`` wrote. null: random weights."""
    loss: Annotated[FunctionPath | None, Example("mylosses:focal")] = None
    """module:function, importable. It is called with (outputs, y) and returns the losses [n]. null: the task's loss."""
    class_weights: Annotated[
        Literal["balanced"] | Annotated[tuple[Positive, ...], Field(min_length=2)] | None, Example("balanced")
    ] = None
    """The factor of an example's training loss by its class: one number per class, or balanced, which is n/(k·n_c) for
    class c. Metrics are not weighted. null: 1 for all."""


class HiddenSettings(ModelSettings):
    """A network with one hidden layer on top."""

    hidden: Annotated[Count, Example(128)] = 64
    """Units of the hidden layer."""
    dropout: Annotated[Share, Example(0.2)] = 0.0
    """The probability that a hidden unit is dropped in training."""


class MlpSettings(HiddenSettings):
    """A network with one hidden layer (mlp), or a small convolutional network (cnn)."""

    name: Literal["mlp", "cnn"] = "mlp"


class LogisticSettings(ModelSettings):
    """One linear layer."""

    name: Literal["logistic"] = "logistic"


class LenetSettings(HiddenSettings):
    """LeNet."""

    name: Literal["lenet"] = "lenet"
    hidden: Annotated[Count, Example(256)] = 512
    """Units of the hidden layer."""


class CnnFemnistSettings(HiddenSettings):
    """LEAF's convolutional network for FEMNIST."""

    name: Literal["cnn_femnist"] = "cnn_femnist"
    hidden: Annotated[Count, Example(512)] = 2048
    """Units of the hidden layer."""


class ResnetSettings(ModelSettings):
    """ResNet-18 with group normalization."""

    name: Literal["resnet18_gn"] = "resnet18_gn"
    pooling: Annotated[Literal["authors", "whole"], Example("whole")] = "authors"
    """Average the upper left 3x3 of the last feature map, as FedNAR's authors do, or all of it."""


class LanguageModelSettings(ModelSettings):
    """A model of characters."""

    vocabulary: Annotated[Count, Example(96)] = 80
    """Number of characters that the model reads. In classification it predicts at least as many."""


class CharTransformerSettings(LanguageModelSettings):
    """A transformer encoder over characters."""

    name: Literal["char_transformer"] = "char_transformer"
    hidden: Annotated[Count, Example(256)] = 512
    """Units of the feed-forward layers."""
    dropout: Annotated[Share, Example(0.2)] = 0.1
    """The probability that a unit is dropped in training."""
    layers: Annotated[Count, Example(4)] = 6
    """Number of encoder layers."""


class CharLstmSettings(LanguageModelSettings):
    """LEAF's LSTM over characters."""

    name: Literal["char_lstm"] = "char_lstm"
    hidden: Annotated[Count, Example(128)] = 256
    """Units of each LSTM layer's state."""
    layers: Annotated[Count, Example(1)] = 2
    """Number of LSTM layers."""


class TorchvisionModelSettings(ModelSettings):
    """A model of torchvision."""

    name: None = None
    torchvision: Annotated[str, Example("squeezenet1_1")]
    """The name of one of torchvision's models. It gets ``num_classes`` unless ``arguments`` says otherwise."""
    arguments: Annotated[Mapping[str, Argument], Example({"dropout": 0.2})] = {}
    """Keyword arguments of the model."""


class OwnModelSettings(ModelSettings):
    """A function of the user's own that builds the model."""

    name: None = None
    function: Annotated[FunctionPath, Example("mymodels:build")]
    """module:function, importable. It is called with ``arguments``, and returns a torch.nn.Module."""
    arguments: Annotated[Mapping[str, Argument], Example({"width": 64})] = {}
    """Keyword arguments of the function."""


NamedModel = (
    MlpSettings
    | LogisticSettings
    | LenetSettings
    | CnnFemnistSettings
    | ResnetSettings
    | CharTransformerSettings
    | CharLstmSettings
)
"""One row per model."""
AnyModel = NamedModel | TorchvisionModelSettings | OwnModelSettings

MODEL_VARIANTS = Variants(
    AnyModel,
    ModelSettings,
    key="name",
    default="mlp",
    meaning="The built-in model. Each has its own keys.",
    example="logistic",
    stand_ins=("torchvision", "function"),
)
MODEL_SETTINGS = MODEL_VARIANTS.build_table()
"""Each model with the settings that it reads and their defaults."""
ModelSection = Annotated[
    Annotated[Annotated[NamedModel, Field(discriminator="name")], Tag("name")]
    | Annotated[TorchvisionModelSettings, Tag("torchvision")]
    | Annotated[OwnModelSettings, Tag("function")],
    Discriminator(MODEL_VARIANTS.find_tag),
    WrapValidator(MODEL_VARIANTS.validate),
]

_ADAPTER: TypeAdapter[AnyModel] = TypeAdapter(ModelSection)


def read_model(values: Any) -> AnyModel:
    """Validates a ``model`` section by itself. Raises pydantic's ValidationError."""
    return _ADAPTER.validate_python(values)
