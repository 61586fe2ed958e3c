"""Data sources by name; each gives its license, its citation and its normalization."""

from collections.abc import Callable, Mapping

from fednar_ray.config import DataSettings
from fednar_ray.data.sources.arrays import npz
from fednar_ray.data.sources.client_files import folder
from fednar_ray.data.sources.digits import digits
from fednar_ray.data.sources.entry_points import entry_point
from fednar_ray.data.sources.huggingface import huggingface
from fednar_ray.data.sources.images import cifar10, cifar100, fashion_mnist, mnist
from fednar_ray.data.sources.shakespeare import shakespeare
from fednar_ray.data.sources.source import Source

__all__ = ["SOURCES", "Source", "digits"]

SOURCES: Mapping[str, Callable[[DataSettings], Source]] = {
    "digits": lambda settings: digits(),
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "npz": npz,
    "shakespeare": shakespeare,
    "folder": folder,
    "huggingface": huggingface,
    "entry_point": entry_point,
}
