"""Builds the model that a ``model`` section describes."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fednar_ray.config import AnyModel
from fednar_ray.config.model import OwnModelSettings, TorchvisionModelSettings
from fednar_ray.core.errors import ModelError, first_line
from fednar_ray.core.random import Purpose, seed_global_generators, seed_sequence, torch_seed
from fednar_ray.models.by_path import build_from_function, build_from_torchvision
from fednar_ray.models.dense import logistic, mlp
from fednar_ray.models.language import CharLSTM, CharTransformer
from fednar_ray.models.vision import cnn, cnn_femnist, lenet, resnet18_gn
from fednar_ray.models.weights import load_weights

Build = Callable[[Any, Sequence[int], int], nn.Module]
"""(the model's settings, the shape of an input, the number of outputs) → the model."""


def build_model(settings: AnyModel, input_shape: Sequence[int], outputs: int, seed: int) -> nn.Module:
    """Builds a model, and initializes it from a seed or from the file that its settings name.

    Args:
        settings: The ``model`` section.
        input_shape: The shape of one input, without the batch.
        outputs: Number of outputs, for models that are sized to the data.
        seed: The seed of the initial weights. They depend on nothing else.

    Raises:
        ModelError: The model does not accept such inputs, cannot be built, or does not fit its file.
    """
    with torch.random.fork_rng(devices=[]), seed_global_generators(seed_sequence(seed, Purpose.INITIALISATION)):
        torch.manual_seed(torch_seed(seed, Purpose.INITIALISATION))
        try:
            model = _build_by_kind(settings, input_shape, outputs)
        except RuntimeError as error:  # memory ran out, for example
            raise ModelError(f"model: cannot be built: {first_line(error)}") from error
    if settings.weights is not None:
        load_weights(model, Path(settings.weights))
    return model


def _build_by_kind(settings: AnyModel, shape: Sequence[int], outputs: int) -> nn.Module:
    """Builds the user's own model, one of torchvision's, or one by name."""
    if isinstance(settings, OwnModelSettings):
        return build_from_function(settings.function, settings.arguments)
    if isinstance(settings, TorchvisionModelSettings):
        return build_from_torchvision(settings.torchvision, {"num_classes": outputs, **settings.arguments})
    rank, wanted = INPUTS.get(settings.name, (len(shape), ""))
    if len(shape) != rank:
        raise ModelError(f"model.name: {settings.name} takes {wanted}, not {list(shape)}")
    return BY_NAME[settings.name](settings, shape, outputs)


IMAGES, SEQUENCES = (3, "images [channels, height, width]"), (1, "sequences [positions] of tokens")
INPUTS: Mapping[str, tuple[int, str]] = {
    "cnn": IMAGES,
    "lenet": IMAGES,
    "cnn_femnist": IMAGES,
    "resnet18_gn": IMAGES,
    "char_transformer": SEQUENCES,
    "char_lstm": SEQUENCES,
}
"""The shape of a model's inputs, and its description. Models that are not listed flatten their inputs."""

BY_NAME: Mapping[str, Build] = {
    "logistic": lambda s, shape, outputs: logistic(prod(shape), outputs),
    "mlp": lambda s, shape, outputs: mlp(prod(shape), s.hidden, outputs, s.dropout),
    "cnn": lambda s, shape, outputs: cnn(shape, s.hidden, outputs, s.dropout),
    "lenet": lambda s, shape, outputs: lenet(shape, s.hidden, outputs, s.dropout),
    "cnn_femnist": lambda s, shape, outputs: cnn_femnist(shape, s.hidden, outputs, s.dropout),
    "resnet18_gn": lambda s, shape, outputs: resnet18_gn(shape, outputs, s.pooling),
    "char_transformer": lambda s, shape, outputs: CharTransformer(
        shape[0], s.vocabulary, outputs, s.hidden, s.layers, s.dropout
    ),
    "char_lstm": lambda s, shape, outputs: CharLSTM(s.vocabulary, outputs, s.hidden, s.layers),
}
