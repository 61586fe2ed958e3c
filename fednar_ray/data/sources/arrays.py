"""Arrays by name from one .npz file."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fednar_ray.config import DataSettings
from fednar_ray.data.examples import Array, Examples
from fednar_ray.data.sources.pictures import channels_first
from fednar_ray.data.sources.source import Source
from fednar_ray.data.transforms import Transform, channel_statistics
from fednar_ray.errors import DataError

CHANNELS = (1, 3, 4)


def npz(settings: DataSettings) -> Source:
    """One's own arrays, from ``data.path``; which are which, ``data.arrays`` says. Licence and citation are theirs.

    uint8 arrays of three or four dimensions are images: [N, height, width], [N, height, width, channels] with 1, 3 or
    4 channels, or [N, channels, height, width]; they are normalised by the training images' own mean and standard
    deviation of each channel. Everything else is taken as it is.
    """
    assert settings.arrays is not None
    assert settings.path is not None
    names, path = settings.arrays, Path(settings.path)
    wanted = [names.train_x, names.train_y, names.test_x, names.test_y]
    loaded = read_npz(path, [*wanted, *([] if names.groups is None else [names.groups])])
    train_x, train_y, test_x, test_y = (loaded[name] for name in wanted)
    train = Examples.of((as_images(train_x), train_y), f"{path}: {names.train_x}, {names.train_y}", str(settings.task))
    test = Examples.of((as_images(test_x), test_y), f"{path}: {names.test_x}, {names.test_y}", str(settings.task))
    groups = None if names.groups is None else loaded[names.groups]
    if groups is not None and groups.shape != train.y.shape:
        raise DataError(f"{path}: {names.groups} {groups.shape} is not one group for each of {len(train)} examples")
    return Source(
        name=path.stem,
        train_x=train.x,
        train_y=train.y,
        test_x=test.x,
        test_y=test.y,
        groups=groups,
        task=str(settings.task),
        transform=own_normalisation(train.x),
    )


def read_npz(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """The named arrays. Raises DataError, which names the file and what it lacks, or what is wrong with it."""
    arrays: dict[str, Array] = {}
    name = ""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive]
            if missing:
                raise DataError(f"{path}: has no array {', '.join(missing)}; it holds {', '.join(archive.files)}")
            for name in names:
                arrays[name] = archive[name]
    except FileNotFoundError:
        raise DataError(f"{path}: is missing") from None
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        place = f"{path}: {name}" if name else f"{path}"
        raise DataError(f"{place}: is damaged, or no .npz file of plain arrays: {error}") from None
    return arrays


def as_images(x: Array) -> Array:
    """uint8 images with their channels first; other arrays as they are."""
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        return x
    if x.ndim == 4 and x.shape[3] not in CHANNELS:
        return x
    return channels_first(x)


def own_normalisation(train_x: Array) -> Transform | None:
    """By the mean and the standard deviation of the training images' channels; None for what is no images."""
    if train_x.dtype != np.uint8 or train_x.ndim != 4:
        return None
    mean, std = channel_statistics(train_x)
    return Transform(mean=mean, std=std)
