"""Summarizes the columns of tables over all clients, from the moments and the schema that the clients agreed on."""

from collections.abc import Sequence
from functools import reduce

import numpy as np

from fednar_ray.core.fednar_table_schema import ColumnSchema, TableSchema
from fednar_ray.data.columns import ColumnSummary
from fednar_ray.data.sources.client_files import FileSummary
from fednar_ray.data.sources.moments import ROUNDING, Moments


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
