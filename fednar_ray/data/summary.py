"""What a federation is like: who has how much of what, and how unlike each other clients are."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fednar_ray.data.federation import Federation
from fednar_ray.data.sources.client_files import list_names

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The figures of ``fednar data inspect``."""

    name: str
    task: str
    input_shape: tuple[int, ...]
    input_type: str
    clients: int  # N
    empty_clients: int
    examples: int
    validation_examples: int
    test_examples: int
    left_out: int  # training examples that no client holds
    sizes: dict[str, float]  # of clients: least, lower quartile, median, upper quartile, most, mean
    classes: dict[int, float] | None  # class → its share of the clients' examples; None: labels are numbers
    heterogeneity: float | None  # mean Jensen-Shannon distance, 0 alike to 1 apart
    clients_bytes: int  # the block that lies once in each node's memory
    held_out_bytes: int
    ignored_files: tuple[str, ...] = ()  # what lies beside the clients' files in data.directory


def inspect(federation: Federation) -> Inspection:
    """Look at a federation; nothing is trained."""
    counts, block = federation.label_counts(), federation.shards.examples
    sizes = federation.shards.sizes
    held_out = federation.splits()
    classified = federation.task != "regression"
    return Inspection(
        name=federation.name,
        task=federation.task,
        input_shape=block.x.shape[1:],
        input_type=str(block.x.dtype),
        clients=federation.clients,
        empty_clients=int((sizes == 0).sum()),
        examples=len(block),
        validation_examples=len(held_out["validation"]) if "validation" in held_out else 0,
        test_examples=len(federation.test),
        left_out=federation.left_out,
        sizes=_spread(sizes),
        classes=dict(enumerate((counts.sum(axis=0) / len(block)).tolist())) if classified else None,
        heterogeneity=jensen_shannon_distance(counts) if classified else None,
        clients_bytes=block.bytes,
        held_out_bytes=sum(part.bytes for part in held_out.values()),
        ignored_files=federation.ignored_files,
    )


def _spread(sizes: Counts) -> dict[str, float]:
    names = ("least", "lower_quartile", "median", "upper_quartile", "most")
    quantiles = np.quantile(sizes, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {**dict(zip(names, quantiles, strict=True)), "mean": float(sizes.mean())}


def jensen_shannon_distance(counts: Counts) -> float:
    """The mean over clients of the distance between a client's classes and those of all clients together.

    ``counts`` [N, classes]; clients without examples do not count. The distance is the root of the divergence in bits:
    0 where a client is like the whole, and at most 1. Lin 1991; Endres and Schindelin 2003.
    """
    own = counts[counts.sum(axis=1) > 0].astype(np.float64)
    whole = own.sum(axis=0) / own.sum()
    own /= own.sum(axis=1, keepdims=True)
    middle = (own + whole) / 2
    divergence = _entropy(middle) - (_entropy(own) + _entropy(whole)) / 2
    return float(np.sqrt(np.maximum(divergence, 0)).mean())


def _entropy(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """In bits, over the last axis."""
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy: npt.NDArray[np.float64] = -(shares * logs).sum(axis=-1)
    return entropy


def lines(found: Inspection) -> list[tuple[str, str]]:
    """The figures as text, each with what it is."""
    sizes = found.sizes
    rows = [
        ("clients", f"{found.clients}" + (f", {found.empty_clients} of them empty" if found.empty_clients else "")),
        ("training examples", f"{found.examples:,}" + (f", {found.left_out:,} left out" if found.left_out else "")),
        ("examples a client", f"{sizes['least']:g} to {sizes['most']:g}, median {sizes['median']:g}, "
         f"quartiles {sizes['lower_quartile']:g} and {sizes['upper_quartile']:g}, mean {sizes['mean']:.1f}"),
        ("validation and test", f"{found.validation_examples:,} and {found.test_examples:,}"),
        ("an input", f"{list(found.input_shape)} {found.input_type}"),
        ("task", found.task),
    ]  # fmt: skip
    if found.classes is not None and found.heterogeneity is not None:
        shares = found.classes.values()
        rows.append(("classes", f"{len(shares)}, each {min(shares):.1%} to {max(shares):.1%} of the examples"))
        rows.append(("heterogeneity", f"{found.heterogeneity:.3f} (mean Jensen-Shannon distance; 0 alike, 1 apart)"))
    if found.ignored_files:
        rows.append(("ignored files", list_names(found.ignored_files)))
    memory = f"{found.clients_bytes / 1e6:.1f} MB once a node, and {found.held_out_bytes / 1e6:.1f} MB held out"
    return [*rows, ("memory", memory)]
