"""One .csv, .tsv or .parquet file with the rows of all clients."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np

from fednar_ray.config.tables import TableSettings
from fednar_ray.core.errors import DataError, format_names
from fednar_ray.core.preprocessing import TablePreprocessing
from fednar_ray.data.examples import Array, Examples
from fednar_ray.data.sources.checked_table import CheckedTable, Rows, hold_out, read_checked
from fednar_ray.data.sources.client_files import ClientFile, FileSummary
from fednar_ray.data.sources.client_rows import ClientRows
from fednar_ray.data.sources.column_summaries import summarize_columns
from fednar_ray.data.sources.folder import compute_preprocessing, compute_target_scale
from fednar_ray.data.sources.moments import Moments
from fednar_ray.data.sources.source import Source
from fednar_ray.data.sources.tables import derive_client_name, find_extension

NO_ROWS: Rows = np.empty(0, dtype=np.int64)

log = logging.getLogger("fednar_ray")


def load_table(settings: TableSettings) -> Source:
    """Loads the user's own table, whose column ``data.groups`` says which client each row belongs to.

    Groups are numbered in the order of their names. Their rows are held out and preprocessed as ``folder`` does with
    one file per group. Without ``groups`` all rows are held out as one group's, and ``data.partition`` divides them.

    Raises:
        DataError: A file cannot be read or does not fit the settings, a row has no group, or there is no test row.
    """
    checked = _read(Path(settings.path), "data.path", settings, settings.groups)
    settings = settings.model_copy(update={"features": checked.features})
    file = ClientFile(
        path=checked.table.path, client_id=0, name=derive_client_name(checked.table.path), settings=settings
    )
    owner, names = _find_owners(checked, settings.groups)
    splits = [_split(np.flatnonzero(owner == i), i, settings) for i in range(len(names))]
    train, test = (np.concatenate(parts) for parts in zip(*splits, strict=True))
    rows, facts = checked.split(train, test)
    clients = list(_iter_clients(rows, [len(part) for part, _ in splits]))
    summary = file.summarize_rows(rows, facts)
    summary = replace(summary, moments=reduce(Moments.__add__, [own.moments for own in clients]))
    preprocessing, held_out = _preprocess_test(file, rows, summary)
    target_scale = compute_target_scale([file], [own.label_moments for own in clients])
    examples, _ = file.preprocess(rows, preprocessing)
    if not len(held_out):
        what = "the table has not enough rows" if settings.groups is None else "no group has enough rows"
        raise DataError(f"{file.path}: {what} to hold out a share of {settings.test_share:g}")
    known = settings.groups is not None
    return Source(
        name=file.name,
        train_x=examples.x,
        train_y=examples.y,
        test_x=held_out.x,
        test_y=held_out.y,
        groups=names[owner[train]] if known else None,
        test_groups=names[owner[test]] if known and settings.test_path is None else None,
        task=settings.task,
        preprocessing=preprocessing,
        target_scale=target_scale,
        columns=summarize_columns(preprocessing.schema, [summary]),
    )


def _read(path: Path, key: str, settings: TableSettings, groups: str | None = None) -> CheckedTable:
    """Reads a file. Raises DataError that names the setting if there is no such file, or its format has no columns."""
    if not path.is_file():
        what = "is a directory; for one file per client use data.source: folder" if path.is_dir() else "no such file"
        raise DataError(f"{key}: {path}: {what}")
    extension = find_extension(path)
    if extension is None or extension.lower() == ".npz":
        raise DataError(f"{key}: {path}: is not a .csv, .tsv or .parquet file; for arrays use data.source: npz")
    return read_checked(path, settings, place=path, groups=groups)


def _find_owners(checked: CheckedTable, groups: str | None) -> tuple[Rows, Array]:
    """Finds the group of each row that is used, [n], and the groups' names. Without groups, all rows are of one."""
    if groups is None:
        return np.zeros(len(checked.y), dtype=np.int64), np.array(["all"])
    column = checked.table.kinds[groups]
    empty = np.flatnonzero(np.isnan(column.values))
    if len(empty):
        why = "names no client; fill it in, or remove the row"
        raise DataError(checked.table.describe_bad_values(groups, empty, why, show_values=True))
    owner, names = column.values[checked.kept].astype(np.int64), np.array(column.levels)
    found, owner = np.unique(owner, return_inverse=True)
    lost = np.delete(names, found).tolist()
    if lost:
        log.warning(
            "%s: data.missing: drop leaves no row of %s, which do not take part", checked.table.path, format_names(lost)
        )
    return owner, names[found]


def _split(rows: Rows, group: int, settings: TableSettings) -> tuple[Rows, Rows]:
    """Splits the rows of a group into training and test rows."""
    if settings.test_path is not None:
        return rows, NO_ROWS
    train, test = hold_out(len(rows), settings.test_share, group)
    return rows[train], rows[test]


def _iter_clients(rows: ClientRows, sizes: Sequence[int]) -> Iterator[ClientRows]:
    """Yields the training rows of each group."""
    ends = np.cumsum(sizes)
    for start, end in zip(ends - sizes, ends, strict=True):
        yield replace(rows, train_x=rows.train_x[start:end], train_y=rows.train_y[start:end])


def _preprocess_test(file: ClientFile, rows: ClientRows, summary: FileSummary) -> tuple[TablePreprocessing, Examples]:
    """Computes the preprocessing, and the test examples: those of ``data.test_path``, or those held out."""
    settings = file.settings
    assert isinstance(settings, TableSettings)
    if settings.test_path is None:
        preprocessing = compute_preprocessing([file], [summary])
        return preprocessing, file.preprocess(rows, preprocessing)[1]
    other = replace(file, path=Path(settings.test_path))
    checked = _read(other.path, "data.test_path", settings)
    test_rows, facts = checked.split(NO_ROWS, np.arange(len(checked.y)))
    preprocessing = compute_preprocessing([file, other], [summary, other.summarize_rows(test_rows, facts)])
    return preprocessing, other.preprocess(test_rows, preprocessing)[1]
