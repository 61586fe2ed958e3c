"""Image data sets that torchvision reads: CIFAR and the MNIST family, as uint8 [N, channels, height, width]."""

import gzip
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fednar_ray.config.data import FashionMnistSettings, TorchvisionSettings
from fednar_ray.core.errors import DataError
from fednar_ray.data.examples import Array, Examples
from fednar_ray.data.sources.source import Source
from fednar_ray.data.transforms import Transform

CIFAR = Transform(mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))
MNIST = Transform(mean=(0.1307,), std=(0.3081,))
FASHION_MNIST = Transform(mean=(0.5,), std=(0.5,))
"""The normalizations that FedNAR's authors use. They normalize CIFAR-100 with the numbers of CIFAR-10."""

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist installs it


def load_cifar10(settings: TorchvisionSettings) -> Source:
    """Loads CIFAR-10: 60,000 color images of 32x32 pixels in ten classes. 10,000 of them are the test set.

    ``data.directory`` holds ``cifar-10-batches-py``.

    Source: A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009. No license is stated; it is
    free for research.
    """
    return read_cifar("cifar10", _import_datasets().CIFAR10, Path(settings.directory), download=settings.download)


def load_cifar100(settings: TorchvisionSettings) -> Source:
    """Loads CIFAR-100, which is like CIFAR-10 but has a hundred classes.

    ``data.directory`` holds ``cifar-100-python``.
    """
    return read_cifar("cifar100", _import_datasets().CIFAR100, Path(settings.directory), download=settings.download)


def load_mnist(settings: TorchvisionSettings) -> Source:
    """Loads MNIST: 70,000 gray images of 28x28 pixels in ten classes, the digits. 10,000 of them are the test set.

    ``data.directory`` holds ``MNIST/raw``, or the four files themselves. They may be compressed with gzip.

    Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, *Gradient-Based Learning Applied to Document Recognition*,
    1998 (CC BY-SA 3.0).
    """
    return read_idx_files(
        "mnist", _import_datasets().MNIST, Path(settings.directory), MNIST, download=settings.download
    )


def load_fashion_mnist(settings: FashionMnistSettings) -> Source:
    """Loads Fashion-MNIST: 70,000 gray images of 28x28 pixels in ten classes of clothes. 10,000 are the test set.

    ``data.directory`` holds ``FashionMNIST/raw``, or the four files themselves. If it is not set, the files of Debian's
    package dataset-fashion-mnist are read.

    Source: H. Xiao, K. Rasul and R. Vollgraf, *Fashion-MNIST*, 2017 (MIT license).
    """
    directory = DEBIAN_FASHION_MNIST if settings.directory is None else Path(settings.directory)
    if settings.directory is None and not directory.is_dir():
        raise DataError(
            f"data.directory: missing, and {directory} does not exist; set it to the directory of the files, "
            "or install Debian's package dataset-fashion-mnist"
        )
    dataset = _import_datasets().FashionMNIST
    return read_idx_files("fashion_mnist", dataset, directory, FASHION_MNIST, download=settings.download)


def _import_datasets() -> Any:
    """Imports ``torchvision.datasets``. Raises DataError if torchvision is not installed."""
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError(f"data.source: torchvision is needed: pip install 'fednar-ray[vision]' ({error})") from None
    return datasets


def _download(dataset: Any, directory: Path) -> None:
    """Downloads the files that are not yet in the directory."""
    try:
        dataset(str(directory), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"data.download: {dataset.__name__} cannot be downloaded: {error}") from None


def read_cifar(name: str, dataset: Any, directory: Path, *, download: bool) -> Source:
    """Reads a data set with torchvision's class CIFAR10 or a subclass.

    Args:
        name: The data set's name.
        dataset: The class of torchvision.
        directory: The directory that torchvision calls ``root``.
        download: Whether to download missing files.

    Raises:
        DataError: A file is missing or damaged, or cannot be downloaded. The message names it.
    """
    from torchvision.datasets.utils import check_md5

    if download:
        _download(dataset, directory)
    folder = directory / dataset.base_folder
    meta = [dataset.meta["filename"], dataset.meta["md5"]]
    for file, digest in [*dataset.train_list, *dataset.test_list, meta]:
        if not (folder / file).is_file():
            raise DataError(
                f"{folder / file}: is missing; set data.directory to its directory, or data.download to true"
            )
        if not check_md5(str(folder / file), digest):
            raise DataError(f"{folder / file}: is damaged: its MD5 is not {digest}")
    parts = [dataset(str(directory), train=train) for train in (True, False)]
    train, test = (
        Examples.of((to_channels_first(part.data), part.targets), f"{folder} ({kind})")
        for part, kind in zip(parts, ("training files", "test file"), strict=True)
    )
    return Source(name=name, train_x=train.x, train_y=train.y, test_x=test.x, test_y=test.y, transform=CIFAR)


def to_channels_first(images: Array) -> Array:
    """Converts images [N, height, width] or [N, height, width, channels] to [N, channels, height, width]."""
    return images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def read_idx_files(name: str, dataset: Any, directory: Path, transform: Transform, *, download: bool) -> Source:
    """Reads a data set with torchvision's class MNIST or a subclass: four files in the IDX format.

    Args:
        name: The data set's name.
        dataset: The class of torchvision.
        directory: The directory that torchvision calls ``root``, or the one that holds the four files.
        transform: The normalization.
        download: Whether to download missing files.

    Raises:
        DataError: A file is missing or damaged, or cannot be downloaded. The message names it.
    """
    if download:
        _download(dataset, directory)
    raw = directory / dataset.__name__ / "raw"
    folder = raw if raw.is_dir() else directory
    train, test = (_read_idx_examples(folder, part) for part in ("train", "t10k"))
    return Source(name=name, train_x=train.x, train_y=train.y, test_x=test.x, test_y=test.y, transform=transform)


def _read_idx_examples(folder: Path, part: str) -> Examples:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images = _read_idx(folder / f"{part}-images-idx3-ubyte", read_image_file)
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte", read_label_file)
    return Examples.of((images[:, None], labels), f"{folder} ({part} files)")


def _read_idx(path: Path, read: Callable[[str], Any]) -> Array:
    """Reads one file as an array with a function of torchvision."""
    with _decompress(path) as plain:
        try:
            array: Array = read(str(plain)).numpy()
        except (OSError, RuntimeError, ValueError, TypeError, AssertionError, KeyError) as error:
            raise DataError(f"{path}: is damaged, or is not an IDX file: {error or type(error).__name__}") from None
        return array


@contextmanager
def _decompress(path: Path) -> Iterator[Path]:
    """Yields the path of the file itself, or of a temporary copy of what its .gz file holds."""
    packed = path.with_name(path.name + ".gz")
    if path.is_file() or not packed.is_file():
        if not path.is_file():
            remedy = "set data.directory to its directory, or data.download to true"
            raise DataError(f"{path}: is missing, and so is {packed.name}; {remedy}")
        yield path
        return
    with TemporaryDirectory() as directory:
        plain = Path(directory) / path.name
        try:
            with gzip.open(packed) as source, plain.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{packed}: cannot be decompressed: {error}") from None
        yield plain
