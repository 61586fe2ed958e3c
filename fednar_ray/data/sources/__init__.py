"""Data sources by name. The docstring of each states the data set's license and citation."""

from collections.abc import Callable, Mapping
from typing import Any

from fednar_ray.data.sources.arrays import load_npz
from fednar_ray.data.sources.digits import load_digits
from fednar_ray.data.sources.entry_points import load_entry_point
from fednar_ray.data.sources.folder import load_folder
from fednar_ray.data.sources.huggingface import load_huggingface
from fednar_ray.data.sources.images import load_cifar10, load_cifar100, load_fashion_mnist, load_mnist
from fednar_ray.data.sources.shakespeare import load_shakespeare
from fednar_ray.data.sources.source import Source
from fednar_ray.data.sources.table import load_table

__all__ = ["SOURCES", "Source", "load_digits"]

SOURCES: Mapping[str, Callable[[Any], Source]] = {
    "digits": lambda settings: load_digits(),
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
    "npz": load_npz,
    "shakespeare": load_shakespeare,
    "folder": load_folder,
    "table": load_table,
    "huggingface": load_huggingface,
    "entry_point": load_entry_point,
}
