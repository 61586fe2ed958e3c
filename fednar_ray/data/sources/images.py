"""Images that torchvision reads: CIFAR and the MNIST family, as uint8 [N, channels, height, width]."""

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
"""As FedNAR's authors normalize: for CIFAR-100 they take CIFAR-10's."""

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist


def load_cifar10(settings: TorchvisionSettings) -> Source:
    """CIFAR-10: 60,000 color images of 32x32 pixels, ten classes; 10,000 are the test set.

    A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009; no license is stated, and it is
    free for research. ``data.directory`` holds ``cifar-10-batches-py``.
    """
    return read_cifar("cifar10", _torchvision().CIFAR10, Path(settings.directory), download=settings.download)


def load_cifar100(settings: TorchvisionSettings) -> Source:
    """CIFAR-100: as CIFAR-10, with a hundred classes. ``data.directory`` holds ``cifar-100-python``."""
    return read_cifar("cifar100", _torchvision().CIFAR100, Path(settings.directory), download=settings.download)


def load_mnist(settings: TorchvisionSettings) -> Source:
    """MNIST: 70,000 gray images of 28x28 pixels, ten digits; 10,000 are the test set.

    Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, *Gradient-Based Learning Applied to Document Recognition*, 1998
    (CC BY-SA 3.0). ``data.directory`` holds ``MNIST/raw``, or the four files themselves, packed or not.
    """
    return read_idx_files("mnist", _torchvision().MNIST, Path(settings.directory), MNIST, download=settings.download)


def load_fashion_mnist(settings: FashionMnistSettings) -> Source:
    """Fashion-MNIST: 70,000 gray images of 28x28 pixels, ten kinds of clothes; 10,000 are the test set.

    H. Xiao, K. Rasul and R. Vollgraf, *Fashion-MNIST*, 2017 (MIT license). ``data.directory`` as for MNIST; without
    one, Debian's package dataset-fashion-mnist is read.
    """
    directory = DEBIAN_FASHION_MNIST if settings.directory is None else Path(settings.directory)
    if settings.directory is None and not directory.is_dir():
        raise DataError(
            f"data.directory: missing, and {directory} is not there; give the directory of the files, "
            "or install Debian's package dataset-fashion-mnist"
        )
    dataset = _torchvision().FashionMNIST
    return read_idx_files("fashion_mnist", dataset, directory, FASHION_MNIST, download=settings.download)


def _torchvision() -> Any:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError(f"data.source: torchvision is needed: pip install 'fednar-ray[vision]' ({error})") from None
    return datasets


def _download(dataset: Any, directory: Path) -> None:
    """Downloads the files that the directory lacks."""
    try:
        dataset(str(directory), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"data.download: {dataset.__name__} cannot be downloaded: {error}") from None


def read_cifar(name: str, dataset: Any, directory: Path, *, download: bool) -> Source:
    """Reads a data set of torchvision's class CIFAR10, or of one that derives from it."""
    from torchvision.datasets.utils import check_md5

    if download:
        _download(dataset, directory)
    folder = directory / dataset.base_folder
    meta = [dataset.meta["filename"], dataset.meta["md5"]]
    for file, digest in [*dataset.train_list, *dataset.test_list, meta]:
        if not (folder / file).is_file():
            raise DataError(f"{folder / file}: is missing; give its directory, or data.download: true")
        if not check_md5(str(folder / file), digest):
            raise DataError(f"{folder / file}: is damaged: its MD5 is not {digest}")
    parts = [dataset(str(directory), train=train) for train in (True, False)]
    train, test = (
        Examples.of((channels_first(part.data), part.targets), f"{folder} ({kind})")
        for part, kind in zip(parts, ("training files", "test file"), strict=True)
    )
    return Source(name=name, train_x=train.x, train_y=train.y, test_x=test.x, test_y=test.y, transform=CIFAR)


def channels_first(images: Array) -> Array:
    """Copies [N, height, width] or [N, height, width, channels] to [N, channels, height, width]."""
    return images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def read_idx_files(name: str, dataset: Any, directory: Path, transform: Transform, *, download: bool) -> Source:
    """Reads a data set of torchvision's class MNIST, or of one that derives from it: four files in the IDX format."""
    if download:
        _download(dataset, directory)
    raw = directory / dataset.__name__ / "raw"
    folder = raw if raw.is_dir() else directory
    train, test = (_idx_examples(folder, part) for part in ("train", "t10k"))
    return Source(name=name, train_x=train.x, train_y=train.y, test_x=test.x, test_y=test.y, transform=transform)


def _idx_examples(folder: Path, part: str) -> Examples:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images = _idx(folder / f"{part}-images-idx3-ubyte", read_image_file)
    labels = _idx(folder / f"{part}-labels-idx1-ubyte", read_label_file)
    return Examples.of((images[:, None], labels), f"{folder} ({part} files)")


def _idx(path: Path, read: Callable[[str], Any]) -> Array:
    """One file as an array, by torchvision's reader."""
    with _unpacked(path) as plain:
        try:
            array: Array = read(str(plain)).numpy()
        except (OSError, RuntimeError, ValueError, TypeError, AssertionError, KeyError) as error:
            raise DataError(f"{path}: is damaged, or no IDX file: {error or type(error).__name__}") from None
        return array


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The file itself, or what its .gz holds."""
    packed = path.with_name(path.name + ".gz")
    if path.is_file() or not packed.is_file():
        if not path.is_file():
            raise DataError(f"{path}: is missing, and so is {packed.name}; give its directory, or data.download: true")
        yield path
        return
    with TemporaryDirectory() as directory:
        plain = Path(directory) / path.name
        try:
            with gzip.open(packed) as source, plain.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{packed}: cannot be unpacked: {error}") from None
        yield plain
