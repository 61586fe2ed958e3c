"""Divides the training examples: holds out the validation share and partitions the rest among the clients."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fednar_ray.config.data import AnyData
from fednar_ray.core.errors import DataError
from fednar_ray.core.random import Purpose, generator
from fednar_ray.data import partition as partitions
from fednar_ray.data.examples import Array

log = logging.getLogger("fednar_ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """Which training examples each client holds, and which are held out for validation."""

    partition: partitions.Partition  # its indices are rows of the training set
    held_out: npt.NDArray[np.int64]  # rows of the training set that are the validation set
    lost_groups: Array  # the groups whose examples are all held out


def divide(settings: AnyData, seed: int, labels: Array, groups: Array | None) -> Division:
    """Holds out the validation share, then partitions what is left.

    Args:
        settings: The ``data`` section.
        seed: Seeds the random choice of the validation examples, and the partition of the others.
        labels: The training labels, [N].
        groups: The natural client of each training example, [N], or None.

    Raises:
        DataError: The validation share rounds to no example or to all of them, there are too few examples or groups, or
            the partition needs groups and there are none.
    """
    order = generator(seed, Purpose.HOLDOUT).permutation(len(labels))
    held = partitions.count_held_out(settings.validation, len(order), "data.validation")
    kept = np.sort(order[held:])
    own = None if groups is None else groups[kept]
    split = _partition(settings, labels[kept], own, generator(seed, Purpose.PARTITION))
    _log_unused(split)
    partition = partitions.Partition(kept[split.order], split.offsets, kept[split.left_out])
    return Division(
        partition=partition,
        held_out=order[:held],
        lost_groups=np.empty(0) if groups is None or own is None else np.setdiff1d(groups, own),
    )


def warn_of_lost_clients(settings: AnyData, names: Sequence[str]) -> None:
    """Warns of the natural clients that do not take part because all their examples are in the validation set.

    Args:
        settings: The ``data`` section.
        names: The names of these clients. Other partitions than ``natural`` give no warning.
    """
    if names and settings.partition.kind == "natural":
        text = "data.validation: %g holds out every example of %d clients, which do not take part: %s"
        log.warning(text, settings.validation, len(names), ", ".join(names[:20]))


def _partition(
    settings: AnyData, labels: Array, groups: Array | None, rng: np.random.Generator
) -> partitions.Partition:
    wanted = settings.partition
    if wanted.kind == "natural":
        if groups is None:
            raise DataError(f"data.partition.kind: natural needs groups, but {settings.source} has none")
        return partitions.ensure_minimum(partitions.natural(groups, rng, wanted.clients), 0)
    assert wanted.clients is not None  # checked with the experiment
    kind = partitions.KINDS[wanted.kind]
    split = kind(labels, wanted.clients, rng, wanted.alpha, wanted.shards_per_client)
    return partitions.ensure_minimum(split, wanted.min_examples)


def _log_unused(split: partitions.Partition) -> None:
    """Logs how many examples no client holds, and warns of clients without examples."""
    if len(split.left_out):
        log.info("the partition leaves out %d examples", len(split.left_out))
    empty = np.flatnonzero(split.sizes == 0)
    if len(empty):
        log.warning("%d clients have no examples and are never sampled: %s", len(empty), empty[:20].tolist())
