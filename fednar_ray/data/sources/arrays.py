"""Arrays by name from one .npz file."""

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
from fednar_ray.data.examples import Array, Examples, one_group_each
from fednar_ray.data.sources.images import channels_first
from fednar_ray.data.sources.source import Source
from fednar_ray.data.transforms import Transform, channel_statistics

CHANNELS = (1, 3, 4)
NOT_NPZ = "is damaged, or no .npz file of plain arrays"
UNREADABLE = (
    OSError, EOFError, MemoryError, RuntimeError, SyntaxError, ValueError, TypeError, AttributeError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError,
)  # fmt: skip
"""What zipfile and NumPy raise on files that are damaged, encrypted or no archives."""

Axis = Literal["first", "last"]


def load_npz(settings: NpzSettings) -> Source:
    """One's own arrays, from ``data.path``; which are which, ``data.arrays`` says. License and citation are theirs.

    uint8 arrays of three or four dimensions are images: [N, height, width], [N, height, width, channels] or
    [N, channels, height, width]. Which of the last two, the training images' shape says, or ``data.arrays.channels``.
    They are normalized by the training images' own mean and standard deviation of each channel. Everything else is
    taken as it is.
    """
    names, path = settings.arrays, Path(settings.path)
    wanted = [names.train_x, names.train_y, names.test_x, names.test_y]
    loaded = read_npz(path, [*wanted, *([] if names.groups is None else [names.groups])])
    train_x, train_y, test_x, test_y = (loaded[name] for name in wanted)
    axis = names.channels or channel_axis(train_x, f"{path}: {names.train_x}")
    train = Examples.of((as_images(train_x, axis), train_y), f"{path}: {names.train_x}, {names.train_y}", settings.task)
    test = Examples.of((as_images(test_x, axis), test_y), f"{path}: {names.test_x}, {names.test_y}", settings.task)
    groups = None if names.groups is None else one_group_each(loaded[names.groups], train, f"{path}: {names.groups}")
    return Source(
        name=path.stem,
        train_x=train.x,
        train_y=train.y,
        test_x=test.x,
        test_y=test.y,
        groups=groups,
        task=settings.task,
        transform=own_normalization(train.x),
    )


def read_npz(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Reads the named arrays of a file.

    Raises:
        DataError: Names the file and what it lacks, or what is wrong with it; also where an array is larger than what
            the file holds of it, or than memory, which is found before any memory is taken.
    """
    arrays: dict[str, Array] = {}
    name = ""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive]
            if missing:
                raise DataError(f"{path}: has no array {', '.join(missing)}; it holds {', '.join(archive.files)}")
            for name in names:
                _check_header(archive.zip, name, f"{path}: {name}")
                arrays[name] = archive[name]
    except FileNotFoundError:
        raise DataError(f"{path}: is missing") from None
    except UNREADABLE as error:
        place = f"{path}: {name}" if name else f"{path}"
        reason = "pickled Python objects are never read" if "pickle" in str(error) else error
        raise DataError(f"{place}: {NOT_NPZ}: {reason}") from None
    return arrays


def _check_header(archive: zipfile.ZipFile, name: str, place: str) -> None:
    """Compares what an array's header claims with what the file holds. Raises DataError."""
    info = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in HEADERS:
            raise DataError(f"{place}: {NOT_NPZ}: version {version} of the format is not that of numbers")
        shape, _, kind = HEADERS[version](member)
        held = info.file_size - member.tell()
    if kind.hasobject:
        raise DataError(f"{place}: holds Python objects, which are never read; save an array of numbers")
    claimed = prod(shape) * kind.itemsize
    if claimed != held or min(shape, default=0) < 0:
        text = f"its header claims {list(shape)} of {kind}, {claimed:,} bytes, and the file holds {held:,}"
        raise DataError(f"{place}: {NOT_NPZ}: {text}")
    if claimed > (free := psutil.virtual_memory().available):
        raise DataError(f"{place}: takes {claimed:,} bytes of memory, of which {free:,} are free")


HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""By the format's version; the third is for records with names beyond Latin-1."""


def channel_axis(images: Array, place: str) -> Axis:
    """Tells from the shape of uint8 images where their channels are; "first" for what is no images.

    An axis of 1, 3 or 4 is one of channels where only one of the two can be. Where neither is, channels are first if
    they are fewer than rows and columns.

    Raises:
        DataError: The shape can be read either way.
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


def as_images(x: Array, axis: Axis) -> Array:
    """uint8 images with their channels first; other arrays as they are."""
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and axis == "first"):
        return x
    return channels_first(x)


def own_normalization(train_x: Array) -> Transform | None:
    """By the mean and the standard deviation of the training images' channels; None for what is no images."""
    if train_x.dtype != np.uint8 or train_x.ndim != 4:
        return None
    mean, std = channel_statistics(train_x)
    return Transform(mean=mean, std=std)
