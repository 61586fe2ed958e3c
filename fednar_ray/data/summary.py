"""Summarizes a federation: how many examples each client has, of which classes, and how much the clients differ."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fednar_ray.core.client_names import are_named
from fednar_ray.core.errors import format_names
from fednar_ray.core.metric_names import format_digits
from fednar_ray.core.preprocessing import TablePreprocessing
from fednar_ray.core.spelling import describe_alike
from fednar_ray.data.columns import ColumnSummary
from fednar_ray.data.federated_data import FederatedData
from fednar_ray.data.label_summary import LabelSummary, compute_share_between, summarize_labels

Counts = npt.NDArray[np.int64]
LISTED_CLIENTS = 30  # with more clients the sizes are only summarized
LISTED_COLUMNS = 30  # the others are in the JSON
MEANINGS = {
    False: "of the clients' classes: mean Jensen-Shannon distance; 0 = all clients alike, 1 = disjoint",
    True: "of the clients' labels: share of their variance between clients; 0 = equal means, 1 = no other variance",
}
"""What a heterogeneity is, of classes (False) and of a regression's labels (True)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationSummary:
    """The summary that ``fednar data inspect`` shows."""

    name: str
    task: str
    input_shape: tuple[int, ...]
    input_type: str
    clients: int  # their number, N
    empty_clients: int
    examples: int
    validation_examples: int
    test_examples: int
    left_out: int  # training examples that no client holds
    sizes: dict[str, float]  # examples per client: least, lower_quartile, median, upper_quartile, most, mean
    classes: dict[int, float] | None  # the share of each class in the clients' examples; None in regression
    heterogeneity: float | None  # of classes, see compute_heterogeneity; of numbers, see compute_share_between
    clients_bytes: int  # memory of the training examples; each node holds them once
    held_out_bytes: int  # memory of the validation and test examples
    sizes_by_client: dict[str, int] | None = None  # by the client's name; None if there are many clients
    ignored_files: tuple[str, ...] = ()  # names in data.directory that are not clients' files
    columns: tuple[ColumnSummary, ...] = ()  # of tables
    class_names: tuple[str, ...] | None = None  # the texts of the labels by class; None if labels are numbers
    alike: tuple[str, ...] = ()  # levels and classes that are probably meant as one, in words
    labels: tuple[LabelSummary, ...] | None = None  # in regression, by client id; None if silos keep their labels


def summarize(federation: FederatedData) -> FederationSummary:
    """Computes the summary of a federation. Nothing is trained."""
    counts, block = federation.label_counts(), federation.shards.examples
    sizes = federation.shards.sizes
    held_out = federation.splits()
    classified, labels = federation.task != "regression", summarize_labels(federation)
    differences = None if labels is None else compute_share_between(labels)
    return FederationSummary(
        name=federation.name,
        task=federation.task,
        input_shape=block.x.shape[1:],
        input_type=str(block.x.dtype),
        clients=federation.num_clients,
        empty_clients=int((sizes == 0).sum()),
        examples=len(block),
        validation_examples=len(held_out["validation"]) if "validation" in held_out else 0,
        test_examples=len(federation.test),
        left_out=federation.left_out,
        sizes=_compute_quantiles(sizes),
        classes=dict(enumerate((counts.sum(axis=0) / len(block)).tolist())) if classified else None,
        heterogeneity=compute_heterogeneity(counts) if classified else differences,
        clients_bytes=block.bytes,
        held_out_bytes=sum(part.bytes for part in held_out.values()),
        sizes_by_client=_list_sizes(federation),
        ignored_files=federation.ignored_files,
        columns=federation.columns,
        class_names=federation.class_names,
        alike=tuple(_find_alike(federation, counts)),
        labels=labels,
    )


def _find_alike(federation: FederatedData, counts: Counts) -> Iterator[str]:
    """Yields the classes, with the clients that have them, and the levels that differ only in capitals or blanks."""
    if (names := federation.class_names) is not None:
        clients = federation.client_names
        by_class = {n: dict(zip(clients, own.tolist(), strict=True)) for n, own in zip(names, counts.T, strict=True)}
        table = federation.preprocessing
        label = table.schema.label if isinstance(table, TablePreprocessing) and table.schema is not None else None
        yield from describe_alike(label or "label", by_class)
    for column in federation.columns:
        yield from describe_alike(column.name, {level: {} for level in column.levels or ()})


def _list_sizes(federation: FederatedData) -> dict[str, int] | None:
    """Returns the number of each client's examples by name; None if there are more than ``LISTED_CLIENTS``."""
    if federation.num_clients > LISTED_CLIENTS:
        return None
    return dict(zip(federation.client_names, federation.shards.sizes.tolist(), strict=True))


def _compute_quantiles(sizes: Counts) -> dict[str, float]:
    names = ("least", "lower_quartile", "median", "upper_quartile", "most")
    quantiles = np.quantile(sizes, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {**dict(zip(names, quantiles, strict=True)), "mean": float(sizes.mean())}


def compute_heterogeneity(counts: Counts) -> float:
    """Computes the mean Jensen-Shannon distance between each client's class distribution and that of all clients.

    Args:
        counts: The number of training examples by client and class, [N, classes]. Clients without examples are ignored.

    Returns:
        A number from 0, if every client has the same class distribution, to 1.

    Source: Lin, *Divergence measures based on the Shannon entropy*, 1991; Endres and Schindelin, 2003.
    """
    from scipy.spatial.distance import jensenshannon  # this import takes a third of a second

    own = counts[counts.sum(axis=1) > 0].astype(np.float64)
    with np.errstate(invalid="ignore"):  # rounding may make the number under the root negative
        distances = jensenshannon(own, own.sum(axis=0, keepdims=True), base=2, axis=1)  # normalizes both
    return float(np.nan_to_num(distances).mean())


def format_summary(found: FederationSummary) -> list[tuple[str, str]]:
    """Formats a summary as lines. Each line is a pair of a label and its text."""
    sizes = found.sizes
    rows = [
        ("clients", f"{found.clients}" + (f", {found.empty_clients} of them empty" if found.empty_clients else "")),
        ("training examples", f"{found.examples:,}" + (f", {found.left_out:,} left out" if found.left_out else "")),
        ("examples per client", f"{sizes['least']:g} to {sizes['most']:g}, median {sizes['median']:g}, "
         f"quartiles {sizes['lower_quartile']:g} and {sizes['upper_quartile']:g}, mean {sizes['mean']:.1f}"),
        ("validation and test", f"{found.validation_examples:,} and {found.test_examples:,}"),
        ("input", f"{list(found.input_shape)} {found.input_type}"),
        *_format_columns(found.columns),
        ("task", found.task),
    ]  # fmt: skip
    if found.classes is not None:
        rows.append(("classes", _format_classes(list(found.classes.values()), found.class_names)))
    if found.heterogeneity is not None:
        rows.append(("heterogeneity", f"{found.heterogeneity:.3f} ({MEANINGS[found.classes is None]})"))
    rows.extend(("warning", text) for text in found.alike)
    if found.ignored_files:
        rows.append(("ignored files", format_names(found.ignored_files)))
    if found.sizes_by_client is not None and are_named(tuple(found.sizes_by_client)):
        labels = found.labels or (None,) * found.clients
        for (name, size), own in zip(found.sizes_by_client.items(), labels, strict=True):
            text = (
                ""
                if own is None or not own.count
                else f", labels {format_digits(own.mean, 4)} ± {format_digits(own.deviation, 3)}"
            )
            rows.append((f"  {name}", f"{size:,} examples{text}"))
    memory = f"{found.clients_bytes / 1e6:.1f} MB once per node, and {found.held_out_bytes / 1e6:.1f} MB held out"
    return [*rows, ("memory", memory)]


def _format_columns(columns: tuple[ColumnSummary, ...]) -> list[tuple[str, str]]:
    rows = [(f"  {column.name}", column.describe()) for column in columns[:LISTED_COLUMNS]]
    more = len(columns) - LISTED_COLUMNS
    return rows if more <= 0 else [*rows, ("  …", f"{more} more columns; --json shows all")]


def _format_classes(shares: list[float], names: tuple[str, ...] | None) -> str:
    """Formats the share of each class by name, or the range of the shares if the classes have no names."""
    if names is None:
        return f"{len(shares)}, each {min(shares):.1%} to {max(shares):.1%} of the examples"
    return f"{len(names)}: {format_names([f'{name} {share:.1%}' for name, share in zip(names, shares, strict=True)])}"
