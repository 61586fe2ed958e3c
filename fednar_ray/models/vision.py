"""Builds convolutional networks for images [channels, height, width]."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import relu

from fednar_ray.core.errors import ModelError
from fednar_ray.models.dense import NumericSequential, head

GROUPS = 2  # groups of every GroupNorm in ResNet-18
WIDTHS = (64, 128, 256, 512)  # channels of the four stages of ResNet-18


def cnn(image: Sequence[int], hidden: int, outputs: int, dropout: float = 0.0) -> NumericSequential:
    """Builds a small network: two 3x3 convolutions with GroupNorm and pooling, and one hidden layer.

    Args:
        image: The shape of an input, [channels, height, width]. Any size is accepted.
        hidden: Units of the hidden layer.
        outputs: Number of outputs.
        dropout: The probability that a hidden unit is dropped in training.
    """
    channels, height, width = image
    return NumericSequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GroupNorm(8, 32),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
        *head(32 * -(-height // 4) * -(-width // 4), hidden, outputs, dropout),
    )


def lenet(image: Sequence[int], hidden: int, outputs: int, dropout: float = 0.0) -> NumericSequential:
    """Builds a LeNet: two 5x5 convolutions (32 and 64 channels) without padding, 2x2 pooling, and one hidden layer.

    The layers are as wide as usual in studies of federated learning. Arguments are those of ``cnn``.

    Raises:
        ModelError: The image is smaller than 16x16.

    Source: LeCun et al., Proceedings of the IEEE, 1998.
    """
    channels, height, width = image
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    if min(rows, columns) < 1:
        raise ModelError(f"model.name: lenet takes images from 16x16, not {height}x{width}; cnn takes any")
    return NumericSequential(
        *_build_convolution(channels, 32, padding=0),
        *_build_convolution(32, 64, padding=0),
        nn.Flatten(),
        *head(64 * rows * columns, hidden, outputs, dropout),
    )


def cnn_femnist(image: Sequence[int], hidden: int, outputs: int, dropout: float = 0.0) -> NumericSequential:
    """Builds LEAF's network for FEMNIST: two padded 5x5 convolutions (32 and 64 channels), and one hidden layer.

    With LEAF's hidden layer of 2048 units it has 6,603,710 parameters on FEMNIST. Arguments are those of ``cnn``.

    Raises:
        ModelError: The image is smaller than 4x4.

    Source: Caldas et al., *LEAF: A Benchmark for Federated Settings*, 2018.
    """
    channels, height, width = image
    if min(height, width) < 4:
        raise ModelError(f"model.name: cnn_femnist takes images from 4x4, not {height}x{width}; cnn takes any")
    return NumericSequential(
        *_build_convolution(channels, 32, padding=2),
        *_build_convolution(32, 64, padding=2),
        nn.Flatten(),
        *head(64 * (height // 4) * (width // 4), hidden, outputs, dropout),
    )


def _build_convolution(channels: int, width: int, padding: int) -> tuple[nn.Module, ...]:
    """Builds a 5x5 convolution with ReLU and 2x2 pooling."""
    return nn.Conv2d(channels, width, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)


def resnet18_gn(image: Sequence[int], outputs: int, pooling: str = "authors") -> NumericSequential:
    """Builds a ResNet-18 for small images, with a 3x3 stem and GroupNorm instead of BatchNorm.

    On CIFAR-10 it has 11,173,962 parameters.

    Args:
        image: The shape of an input, [channels, height, width].
        outputs: Number of outputs.
        pooling: ``authors`` averages the upper left 3x3 of the last feature map, which is 4x4 on CIFAR, as FedNAR's
            authors do. ``whole`` averages all of it.

    Raises:
        ModelError: ``authors`` does not fit the image's size.

    Source: He et al., CVPR 2016; Wu and He, ECCV 2018; Li et al., NeurIPS 2023.
    """
    channels, height, width = image
    rows, columns = -(-height // 8), -(-width // 8)
    if pooling == "authors" and not (3 <= rows <= 5 and 3 <= columns <= 5):
        text = f"the last feature map is {rows}x{columns}, and authors needs 3x3 to 5x5; use whole"
        raise ModelError(f"model.pooling: {pooling}: {text}")
    blocks = [ResidualBlock(WIDTHS[0], WIDTHS[0], 1), ResidualBlock(WIDTHS[0], WIDTHS[0], 1)]
    for before, after in pairwise(WIDTHS):
        blocks += [ResidualBlock(before, after, 2), ResidualBlock(after, after, 1)]
    return NumericSequential(
        nn.Conv2d(channels, WIDTHS[0], 3, padding=1, bias=False),
        nn.GroupNorm(GROUPS, WIDTHS[0]),
        nn.ReLU(),
        *blocks,
        nn.AvgPool2d(3) if pooling == "authors" else nn.AvgPool2d((rows, columns)),
        nn.Flatten(),
        nn.Linear(WIDTHS[-1], outputs),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut. The shortcut is a 1x1 convolution if the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.GroupNorm(GROUPS, after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, after),
        )
        self.shortcut = (
            nn.Identity()
            if (before, stride) == (after, 1)
            else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(GROUPS, after))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, before, h, w] to [B, after, h/stride, w/stride]."""
        return relu(self.body(x) + self.shortcut(x))
