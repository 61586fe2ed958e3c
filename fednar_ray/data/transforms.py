"""Normalizes and augments images. Images stay uint8 in memory; each batch is converted when it is gathered."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

Moves = npt.NDArray[np.int64]
"""[…, 3]: the rows and the columns by which a window lies inside the padded image, and 1 if it is mirrored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Random cropping: takes a random window of the padded image, as large as the image, and may mirror it.

    Source: He et al., CVPR 2016, section 4.2.
    """

    per_example: bool  # False: one window for a client's whole batch, as in the code of FedNAR's authors
    padding: int  # pixels on each side
    flip: bool  # whether windows are mirrored at random

    def draw_moves(self, steps: int, examples: int, rng: np.random.Generator) -> Moves:
        """Draws the moves of one client's batches, [steps, examples, 3], or [steps, 1, 3] for one window per batch.

        Fewer steps give the first rows of the same moves.
        """
        uniform = rng.random((steps, examples if self.per_example else 1, 3))
        bounds = (2 * self.padding + 1, 2 * self.padding + 1, 2 if self.flip else 1)
        return (uniform * bounds).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """Converts uint8 images to a model's inputs. An image gives the same bits in every batch and on every actor."""

    mean: tuple[float, ...]  # one per channel, for values in 0..1
    std: tuple[float, ...]  # one per channel, for values in 0..1
    augmentation: Augmentation | None = None  # only in training

    def normalize(self, x: Tensor) -> Tensor:
        """Returns (x/255 − mean)/std as float32 for uint8 images x [n, channels, height, width]."""
        mean, std = _build_channel_tensor(self.mean, x.device), _build_channel_tensor(self.std, x.device)
        return x.to(torch.float32).sub_(mean).div_(std)

    def augment(self, x: Tensor, moves: Tensor) -> Tensor:
        """Returns the windows ``moves`` [n, 3] of normalized images x [n, channels, height, width].

        Pixels of the padding are 0, which is the mean.
        """
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
def _build_channel_tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Returns one value per channel, [channels, 1, 1], on the scale 0..255."""
    return 255 * torch.tensor(values, device=device).view(-1, 1, 1)


def compute_channel_statistics(images: npt.NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes the mean and the standard deviation of each channel of images [n, channels, height, width].

    It counts how often each of the 256 values occurs, so it makes no float copy of the images.

    Returns:
        The means and the standard deviations for values in 0..1. The standard deviation of a constant channel is 1.
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
