"""What becomes of stored images on the way to a model: they stay uint8 in memory, and turn to numbers in the batch."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

Moves = npt.NDArray[np.int64]
"""[…, 3]: how far down and how far right the window lies in the padded image, and whether it is mirrored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """A random window of the padded image, as large as the image, which may be mirrored (He et al., CVPR 2016, 4.2)."""

    per_example: bool  # else one window for a client's whole batch, as FedNAR's authors do
    padding: int
    flip: bool

    def draws(self, steps: int, examples: int, rng: np.random.Generator) -> Moves:
        """The moves of one client's batches [steps, examples or 1, 3]; those of fewer steps are the first of these."""
        uniform = rng.random((steps, examples if self.per_example else 1, 3))
        bounds = (2 * self.padding + 1, 2 * self.padding + 1, 2 if self.flip else 1)
        return (uniform * bounds).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """From uint8 images to a model's inputs; the same bits one by one, in a client group, and on any actor."""

    mean: tuple[float, ...]  # a channel, of values in 0..1
    std: tuple[float, ...]
    augmentation: Augmentation | None = None  # in training only

    def normalized(self, x: Tensor) -> Tensor:
        """(x/255 − mean)/std: uint8 [n, channels, height, width] → float32."""
        mean, std = _a_channel(self.mean, x.device), _a_channel(self.std, x.device)
        return x.to(torch.float32).sub_(mean).div_(std)

    def augmented(self, x: Tensor, moves: Tensor) -> Tensor:
        """Normalized images, moved by ``moves`` [n, 3]; what comes in from outside them is 0, the mean."""
        assert self.augmentation is not None
        height, width, padding = x.shape[2], x.shape[3], self.augmentation.padding
        down, right, mirrored = moves[:, 0, None], moves[:, 1, None], moves[:, 2, None]
        across = torch.arange(width, device=x.device)
        rows = down + torch.arange(height, device=x.device)  # [n, height]
        columns = right + torch.where(mirrored > 0, across.flip(0), across)  # [n, width]
        padded = pad(x, (padding,) * 4)
        rows = rows[:, None, :, None].expand(-1, x.shape[1], -1, padded.shape[3])
        columns = columns[:, None, None, :].expand(-1, x.shape[1], height, -1)
        return padded.gather(2, rows).gather(3, columns)


@cache
def _a_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """[channels, 1, 1] on the scale of uint8."""
    return 255 * torch.tensor(values, device=device).view(-1, 1, 1)


def channel_statistics(images: npt.NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of [n, channels, height, width], of values in 0..1.

    From counts of the 256 values, block by block: no float copy of the images. A constant channel's deviation is 1.
    """
    counts = np.zeros((images.shape[1], 256))
    for start in range(0, len(images), 1024):
        for channel, count in enumerate(counts):
            count += np.bincount(images[start : start + 1024, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())
