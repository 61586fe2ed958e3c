"""Summarizes the columns of tables over all clients, from the moments and the schema that the clients agreed on."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce

import numpy as np

from fednar_ray.core.fednar_table_schema import EPOCH, ColumnSchema, Kind, TableSchema
from fednar_ray.data.sources.client_files import FileSummary
from fednar_ray.data.sources.moments import ROUNDING, Moments
from fednar_ray.data.sources.tables import format_names


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSummary:
    """A summary of one input column over the training rows of all files.

    Attributes:
        name: The column's name.
        kind: number, boolean, date or category.
        levels: The levels of a category; None for other kinds.
        mean: The mean, of dates in days since 1970-01-01; None for categories, and if there is no value.
        std: The standard deviation, likewise.
        missing: The number of rows without a value.
    """

    name: str
    kind: Kind
    levels: tuple[str, ...] | None
    mean: float | None
    std: float | None
    missing: int

    def describe(self) -> str:
        """Describes the column in one line."""
        missing = f", {self.missing:,} missing" if self.missing else ""
        return f"{self.kind}{self._describe_values()}{missing}"

    def _describe_values(self) -> str:
        if self.levels is not None:
            return f", {len(self.levels)} level{'s' * (len(self.levels) != 1)}: {format_names(self.levels)}"
        if self.mean is None or self.std is None:
            return ", without values"
        if self.kind == "boolean":
            return f", {self.mean:.1%} true"
        if self.kind == "date":
            return f", mean {(EPOCH + timedelta(days=self.mean)).date()}, standard deviation {self.std:.4g} days"
        return f", mean {self.mean:.4g}, standard deviation {self.std:.4g}"


def summarize_columns(schema: TableSchema | None, summaries: Sequence[FileSummary]) -> tuple[ColumnSummary, ...]:
    """Summarizes the input columns of files. There are none if inputs are not rows with named columns."""
    if schema is None:
        return ()
    total = reduce(Moments.__add__, (summary.moments for summary in summaries))
    root = np.sqrt(total.squares / np.maximum(total.count, 1))
    deviation = np.where(root > ROUNDING * np.abs(total.mean), root, 0.0)
    rows = sum(summary.train for summary in summaries)
    return tuple(
        _summarize_column(column, int(count), float(mean), float(std), rows)
        for column, count, mean, std in zip(schema.columns, total.count, total.mean, deviation, strict=True)
    )


def _summarize_column(column: ColumnSchema, count: int, mean: float, std: float, rows: int) -> ColumnSummary:
    is_category = column.kind == "category"
    has_mean = count > 0 and not is_category
    return ColumnSummary(
        name=column.name,
        kind=column.kind,
        levels=column.levels if is_category else None,
        mean=mean if has_mean else None,
        std=std if has_mean else None,
        missing=rows - count,
    )
