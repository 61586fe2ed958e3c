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

from fednar_ray.config import DataSettings
from fednar_ray.core.errors import DataError
from fednar_ray.data.examples import Array, Examples
from fednar_ray.data.sources.source import Source
from fednar_ray.data.transforms import Transform

CIFAR = Transform(mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))
MNIST = Transform(mean=(0.1307,), std=(0.3081,))
FASHION_MNIST = Transform(mean=(0.5,), std=(0.5,))
"""As FedNAR's authors normalize: for CIFAR-100 they take CIFAR-10's."""

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist


def cifar10(settings: DataSettings) -> Source:
    """CIFAR-10: 60,000 color images of 32x32 pixels, ten classes; 10,000 are the test set.

    A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009; no license is stated, and it is
    free for research. ``data.directory`` holds ``cifar-10-batches-py``.
    """
    return cifar("cifar10", _torchvision().CIFAR10, settings)


def cifar100(settings: DataSettings) -> Source:
    """CIFAR-100: as CIFAR-10, with a hundred classes. ``data.directory`` holds ``cifar-100-python``."""
    return cifar("cifar100", _torchvision().CIFAR100, settings)


def mnist(settings: DataSettings) -> Source:
    """MNIST: 70,000 gray images of 28x28 pixels, ten digits; 10,000 are the test set.

    Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, *Gradient-Based Learning Applied to Document Recognition*, 1998
    (CC BY-SA 3.0). ``data.directory`` holds ``MNIST/raw``, or the four files themselves, packed or not.
    """
    return idx_files("mnist", _torchvision().MNIST, settings, MNIST)


def fashion_mnist(settings: DataSettings) -> Source:
    """Fashion-MNIST: 70,000 gray images of 28x28 pixels, ten kinds of clothes; 10,000 are the test set.

    H. Xiao, K. Rasul and R. Vollgraf, *Fashion-MNIST*, 2017 (MIT license). ``data.directory`` as for MNIST; without
    one, Debian's package dataset-fashion-mnist is read.
    """
    if settings.directory is None:
        if not DEBIAN_FASHION_MNIST.is_dir():
            raise DataError(
                f"data.directory: missing, and {DEBIAN_FASHION_MNIST} is not there; give the directory of the files, "
                "or install Debian's package dataset-fashion-mnist"
            )
        settings = settings.model_copy(update={"directory": str(DEBIAN_FASHION_MNIST)})
    return idx_files("fashion_mnist", _torchvision().FashionMNIST, settings, FASHION_MNIST)


def _torchvision() -> Any:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError(f"data.source: torchvision is needed: pip install 'fednar-ray[vision]' ({error})") from None
    return datasets


def _downloaded(dataset: Any, settings: DataSettings) -> None:
    """Fetch what is not there yet, if that is allowed."""
    if settings.download:
        try:
            dataset(settings.directory, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(f"data.download: {dataset.__name__} cannot be downloaded: {error}") from None


def cifar(name: str, dataset: Any, settings: DataSettings) -> Source:
    """A data set of torchvision's class CIFAR10, or of one that derives from it."""
    from torchvision.datasets.utils import check_md5

    _downloaded(dataset, settings)
    folder = Path(str(settings.directory)) / dataset.base_folder
    meta = [dataset.meta["filename"], dataset.meta["md5"]]
    for file, digest in [*dataset.train_list, *dataset.test_list, meta]:
        if not (folder / file).is_file():
            raise DataError(f"{folder / file}: is missing; give its directory, or data.download: true")
        if not check_md5(str(folder / file), digest):
            raise DataError(f"{folder / file}: is damaged: its MD5 is not {digest}")
    parts = [dataset(settings.directory, train=train) for train in (True, False)]
    train, test = (
        Examples.of((channels_first(part.data), part.targets), f"{folder} ({kind})")
        for part, kind in zip(parts, ("training files", "test file"), strict=True)
    )
    return Source(name=name, train_x=train.x, train_y=train.y, test_x=test.x, test_y=test.y, transform=CIFAR)


def channels_first(images: Array) -> Array:
    """[N, height, width] or [N, height, width, channels] → [N, channels, height, width], in memory of its own."""
    return images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def idx_files(name: str, dataset: Any, settings: DataSettings, transform: Transform) -> Source:
    """A data set of torchvision's class MNIST, or of one that derives from it: four files in the IDX format."""
    _downloaded(dataset, settings)
    directory = Path(str(settings.directory))
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
