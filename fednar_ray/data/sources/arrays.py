"""The user's own arrays, from one .npz file."""

import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import psutil

from fednar_ray.config.data import NpzSettings
from fednar_ray.core.errors import DataError
from fednar_ray.data.examples import Array, Examples, check_groups
from fednar_ray.data.sources.images import to_channels_first
from fednar_ray.data.sources.source import Source
from fednar_ray.data.transforms import Transform, compute_channel_statistics

CHANNELS = (1, 3, 4)  # usual numbers of channels
NOT_NPZ = "is damaged, or is not an .npz file of plain arrays"
UNREADABLE = (
    OSError, EOFError, MemoryError, RuntimeError, SyntaxError, ValueError, TypeError, AttributeError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError,
)  # fmt: skip
"""The errors of zipfile and NumPy for files that are damaged, encrypted or not archives."""

Axis = Literal["first", "last"]


def load_npz(settings: NpzSettings) -> Source:
    """Loads the user's own arrays from ``data.path``. ``data.arrays`` names them.

    uint8 arrays of three or four dimensions are images: [N, height, width], [N, height, width, channels] or
    [N, channels, height, width]. ``data.arrays.channels`` chooses between the last two; without it, the shape of the
    training images does. Images are normalized by the mean and the standard deviation of each channel over the training
    images. Other arrays are not changed.

    Raises:
        DataError: The file cannot be read, or its arrays are not valid examples.
    """
    names, path = settings.arrays, Path(settings.path)
    wanted = [names.train_x, names.train_y, names.test_x, names.test_y]
    loaded = read_npz(path, [*wanted, *([] if names.groups is None else [names.groups])])
    train_x, train_y, test_x, test_y = (loaded[name] for name in wanted)
    axis = names.channels or find_channel_axis(train_x, f"{path}: {names.train_x}")
    task = settings.task
    train = Examples.of((arrange_images(train_x, axis), train_y), f"{path}: {names.train_x}, {names.train_y}", task)
    test = Examples.of((arrange_images(test_x, axis), test_y), f"{path}: {names.test_x}, {names.test_y}", task)
    groups = None if names.groups is None else check_groups(loaded[names.groups], train, f"{path}: {names.groups}")
    return Source(
        name=path.stem,
        train_x=train.x,
        train_y=train.y,
        test_x=test.x,
        test_y=test.y,
        groups=groups,
        task=task,
        transform=compute_normalization(train.x),
    )


def read_npz(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Reads the named arrays of an .npz file. Pickled Python objects are never read.

    Raises:
        DataError: The file is missing or damaged, does not have such an array, or an array's header claims more bytes
            than the file holds or than memory is free, which is checked before memory is allocated. The message names
            the file.
    """
    arrays: dict[str, Array] = {}
    name = ""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive]
            if missing:
                raise DataError(f"{path}: has no array {', '.join(missing)}; it holds {', '.join(archive.files)}")
            for name in names:
                _check_array_header(archive.zip, name, f"{path}: {name}")
                arrays[name] = archive[name]
    except FileNotFoundError:
        raise DataError(f"{path}: is missing") from None
    except UNREADABLE as error:
        place = f"{path}: {name}" if name else f"{path}"
        reason = "pickled Python objects are never read" if "pickle" in str(error) else error
        raise DataError(f"{place}: {NOT_NPZ}: {reason}") from None
    return arrays


def _check_array_header(archive: zipfile.ZipFile, name: str, place: str) -> None:
    """Checks that the size in an array's header is that of its data, and fits into free memory. Raises DataError."""
    info = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in HEADER_READERS:
            raise DataError(f"{place}: {NOT_NPZ}: version {version} of the format is not used for numbers")
        shape, _, kind = HEADER_READERS[version](member)
        held = info.file_size - member.tell()
    if kind.hasobject:
        raise DataError(f"{place}: holds Python objects, which are never read; save an array of numbers")
    claimed = prod(shape) * kind.itemsize
    if claimed != held or min(shape, default=0) < 0:
        text = f"its header claims {list(shape)} of {kind}, {claimed:,} bytes, but the file holds {held:,}"
        raise DataError(f"{place}: {NOT_NPZ}: {text}")
    if claimed > (free := psutil.virtual_memory().available):
        raise DataError(f"{place}: needs {claimed:,} bytes of memory, but only {free:,} are free")


HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""Readers of an array's header, by the format's version. Version 3 is for records with names beyond Latin-1."""


def find_channel_axis(images: Array, place: str) -> Axis:
    """Determines from the shape of uint8 images whether their channels are the first axis or the last.

    If one of the two axes has 1, 3 or 4 entries and the other does not, it holds the channels. If neither has, the
    first axis holds the channels if it is shorter than both others.

    Args:
        images: The images, [N, …].
        place: Where they come from, for messages.

    Returns:
        "first" or "last"; "first" for arrays that are not images.

    Raises:
        DataError: The shape is ambiguous.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        return "first"
    first, *_, last = images.shape[1:]
    if (first in CHANNELS) != (last in CHANNELS):
        return "first" if first in CHANNELS else "last"
    if first not in CHANNELS and first < min(images.shape[2:]):
        return "first"
    either = "[N, channels, height, width] or [N, height, width, channels]"
    raise DataError(f"{place}: {list(images.shape)} may be {either}; set data.arrays.channels to first or last")


def arrange_images(x: Array, axis: Axis) -> Array:
    """Returns uint8 images with their channels first, [N, channels, height, width], and other arrays unchanged.

    Args:
        x: Any array. It holds images if it is uint8 and has three or four dimensions.
        axis: Where four-dimensional images have their channels.
    """
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and axis == "first"):
        return x
    return to_channels_first(x)


def compute_normalization(train_x: Array) -> Transform | None:
    """Computes a transform that normalizes each channel of the training images; None if these are not uint8 images."""
    if train_x.dtype != np.uint8 or train_x.ndim != 4:
        return None
    mean, std = compute_channel_statistics(train_x)
    return Transform(mean=mean, std=std)
