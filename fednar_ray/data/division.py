"""Divides training examples: the validation share is held out, and the rest is partitioned among the clients."""

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

    partition: partitions.Partition  # of rows of the training set
    held_out: npt.NDArray[np.int64]  # rows of the training set
    lost: Array  # the groups, as natural clients, whose examples are all held out


def divide(settings: AnyData, seed: int, labels: Array, groups: Array | None) -> Division:
    """Holds out the validation share, then partitions what is left.

    Args:
        settings: The ``data`` section.
        seed: Decides which examples are held out, and which client holds which of the others.
        labels: The training labels, [N].
        groups: The natural client of each training example, [N], or None.

    Raises:
        DataError: A share holds out no example or all of them, or there are too few examples or groups.
    """
    order = generator(seed, Purpose.HOLDOUT).permutation(len(labels))
    held = partitions.held_out(settings.validation, len(order), "data.validation")
    kept = np.sort(order[held:])
    own = None if groups is None else groups[kept]
    split = _partition(settings, labels[kept], own, generator(seed, Purpose.PARTITION))
    _report(split)
    partition = partitions.Partition(kept[split.order], split.offsets, kept[split.left_out])
    return Division(
        partition=partition,
        held_out=order[:held],
        lost=np.empty(0) if groups is None or own is None else np.setdiff1d(groups, own),
    )


def report_lost(settings: AnyData, names: Sequence[str]) -> None:
    """Warns of natural clients without a training example, since the validation share took all of theirs."""
    if names and settings.partition.kind == "natural":
        text = "data.validation: %g holds out every example of %d clients, which take no part: %s"
        log.warning(text, settings.validation, len(names), ", ".join(names[:20]))


def _partition(
    settings: AnyData, labels: Array, groups: Array | None, rng: np.random.Generator
) -> partitions.Partition:
    wanted = settings.partition
    if wanted.kind == "natural":
        if groups is None:
            raise DataError(f"data.partition.kind: natural needs groups, and {settings.source} names none")
        return partitions.with_minimum(partitions.natural(groups, rng, wanted.clients), 0)
    assert wanted.clients is not None  # checked with the experiment
    kind = partitions.KINDS[wanted.kind]
    split = kind(labels, wanted.clients, rng, wanted.alpha, wanted.shards_per_client)
    return partitions.with_minimum(split, wanted.min_examples)


def _report(split: partitions.Partition) -> None:
    if len(split.left_out):
        log.info("the partition leaves out %d examples", len(split.left_out))
    empty = np.flatnonzero(split.sizes == 0)
    if len(empty):
        log.warning("%d clients have no examples and are never sampled: %s", len(empty), empty[:20].tolist())
