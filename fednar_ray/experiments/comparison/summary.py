"""Summarizes comparisons from their files, for ``fednar runs``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fednar_ray.core.counting import format_count
from fednar_ray.core.metric_names import format_metric_value, is_higher_better
from fednar_ray.experiments.comparison.record import ComparisonRecord
from fednar_ray.tracking.locks import is_held
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.run_summary import FINISHED, RUNNING, UNFINISHED, find_start


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSummary:
    """One comparison of ``fednar runs``."""

    name: str
    label: str  # what it varies
    started: str | None  # when, in ISO format and local time; None if that is unknown
    runs: int  # finished so far
    of: int
    status: str
    result: str | None  # the best variant with its final value; None until the comparison is finished


def summarize_comparison_record(record: ComparisonRecord) -> ComparisonSummary:
    """Summarizes a comparison. Writes nothing."""
    files = RunDirectory(record.directory)
    names = ", ".join(dict.fromkeys(run.regularizer for run in record.runs))
    decays = ", ".join(f"{decay:.4g}" for decay in dict.fromkeys(run.weight_decay for run in record.runs))
    label = f"{names}; λ={decays}; {format_count(len({run.seed for run in record.runs}), 'seed')}"
    status = FINISHED if record.finished else RUNNING if is_held(files.lock) else UNFINISHED
    return ComparisonSummary(
        name=record.name,
        label=label,
        started=find_start(files),
        runs=record.finished_runs,
        of=len(record.runs),
        status=status,
        result=_read_result(files.comparison_table) if record.finished else None,
    )


def _read_result(path: Path) -> str | None:
    """Reads the best variant from the table of a comparison; None if the table is missing or damaged."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        rows = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
        return _describe_best(rows)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


def _describe_best(rows: Sequence[Mapping[str, Any]]) -> str | None:
    name = next(column.removesuffix(" by seed") for column in rows[0] if column.endswith(" by seed"))
    finite = [row for row in rows if None not in row[f"{name} by seed"]]
    sign = 1 if is_higher_better(name) else -1
    best = max(finite, key=lambda row: sign * float(np.mean(row[f"{name} by seed"])), default=None)
    if best is None:
        return None
    value = format_metric_value(name, float(np.mean(best[f"{name} by seed"])))
    return f"{best['regularizer']} λ={best['weight decay']}: {name.replace('_', ' ')} {value}"
