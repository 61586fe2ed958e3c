"""Loads the federation that a ``data`` section describes, with all its examples in memory."""

from dataclasses import replace

import numpy as np

from fednar_ray.config.data import AnyData
from fednar_ray.config.source_base import ImageSettings
from fednar_ray.core.errors import DataError
from fednar_ray.data.division import divide, warn_of_lost_clients
from fednar_ray.data.examples import Array, Examples, Shards
from fednar_ray.data.federation import Federation
from fednar_ray.data.partition import Partition
from fednar_ray.data.sources import SOURCES, Source
from fednar_ray.data.transforms import Augmentation, Transform


def load_federation(settings: AnyData, seed: int) -> Federation:
    """Loads the federation that a ``data`` section describes.

    Args:
        settings: The ``data`` section.
        seed: Seeds the random choice of the validation examples, and the partition of the others.

    Raises:
        DataError: The data cannot be read, or cannot be divided as the section says.
    """
    source = SOURCES[settings.source](settings)
    transform = _build_transform(settings, source)
    division = divide(settings, seed, source.train_y, source.groups)
    warn_of_lost_clients(settings, [str(group) for group in division.lost_groups])
    rows, held = division.partition.order, division.held_out
    examples = Examples(source.train_x[rows], source.train_y[rows])
    return Federation.from_shards(
        source.name,
        Shards(examples, division.partition.offsets, transform=transform),
        _select_test(settings, source, rows),
        Examples(source.train_x[held], source.train_y[held]) if len(held) else None,
        len(division.partition.left_out),
        source.task,
        _find_group_names(settings, source, division.partition),
        source.preprocessing,
        source.target_scale,
        source.columns,
    )


def _find_group_names(settings: AnyData, source: Source, partition: Partition) -> tuple[str, ...] | None:
    """Returns the names of natural clients, which are those of their groups. None for other partitions."""
    if settings.partition.kind != "natural" or source.groups is None:
        return None
    first_examples = partition.order[partition.offsets[:-1]]  # every natural client has at least one example
    return tuple(map(str, source.groups[first_examples]))


def _select_test(settings: AnyData, source: Source, rows: Array) -> Examples:
    """Returns the test set. If only some of the groups are clients, it is the part of these groups."""
    if settings.partition.kind != "natural" or source.groups is None or source.test_groups is None:
        return Examples(source.test_x, source.test_y)
    chosen = np.isin(source.test_groups, np.unique(source.groups[rows]))
    if not chosen.any():
        raise DataError(f"data.partition.clients: {settings.partition.clients}: these groups have no test examples")
    return Examples(source.test_x[chosen], source.test_y[chosen])


def _build_transform(settings: AnyData, source: Source) -> Transform | None:
    """Returns the source's transform with the normalization and the augmentation of the settings."""
    if not isinstance(settings, ImageSettings):
        return source.transform
    transform, given, changes = source.transform, settings.normalization, settings.augmentation
    if transform is None:
        if given is not None or changes is not None:
            raise DataError(f"data: normalization and augmentation need uint8 images, but {source.name} has none")
        return None
    channels = source.train_x.shape[1]
    if given is not None:
        if {len(given.mean), len(given.std)} != {channels}:
            raise DataError(f"data.normalization: the images have {channels} channels; each needs one mean and one std")
        transform = replace(transform, mean=given.mean, std=given.std)
    if changes is None:
        return transform
    per_example = changes.kind == "per_example"
    augmentation = Augmentation(per_example=per_example, padding=changes.padding, flip=changes.flip)
    return replace(transform, augmentation=augmentation)
