"""Models by name, sized to the data."""

from collections.abc import Sequence
from math import prod

import torch
from torch import nn

from fednar_ray.config import ModelSettings
from fednar_ray.errors import ModelError
from fednar_ray.seeding import Purpose, torch_seed


def build_model(settings: ModelSettings, input_shape: Sequence[int], classes: int, seed: int) -> nn.Module:
    """The named model for inputs ``input_shape`` (without the batch), initialised from ``seed`` alone.

    Raises ModelError where the model cannot take such inputs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Purpose.INITIALISATION))
        if settings.name == "mlp":
            return mlp(prod(input_shape), settings.hidden, classes, settings.dropout)
        if len(input_shape) != 3:
            raise ModelError(f"model.name: cnn takes images [channels, height, width], not {list(input_shape)}")
        return cnn(input_shape, settings.hidden, classes, settings.dropout)


def mlp(features: int, hidden: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """features–hidden–classes with ReLU."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, hidden),
        nn.ReLU(),
        *([nn.Dropout(dropout)] if dropout else []),
        nn.Linear(hidden, classes),
    )


def cnn(image: Sequence[int], hidden: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """Two 3x3 convolutions (16 and 32 channels) with GroupNorm, each halving the image; one hidden layer."""
    channels, height, width = image
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GroupNorm(8, 32),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(32 * -(-height // 4) * -(-width // 4), hidden),
        nn.ReLU(),
        *([nn.Dropout(dropout)] if dropout else []),
        nn.Linear(hidden, classes),
    )
