"""A directory with one .csv, .tsv, .parquet or .npz file per client."""

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fednar_ray.config.tables import FolderSettings, TabularSettings
from fednar_ray.core.errors import DataError, format_names
from fednar_ray.core.fednar_table_schema import TableSchema
from fednar_ray.core.postprocessing import TargetScale
from fednar_ray.core.preprocessing import TablePreprocessing
from fednar_ray.data.examples import Examples
from fednar_ray.data.sources.agreement import ColumnFacts, Facts, agree_on_schema
from fednar_ray.data.sources.client_files import ClientFile, FileSummary, ask_all, with_features
from fednar_ray.data.sources.column_summaries import summarize_columns
from fednar_ray.data.sources.moments import Moments
from fednar_ray.data.sources.source import Source
from fednar_ray.data.sources.tables import FORMATS, SPREADSHEETS, derive_client_name, list_tables


def load_folder(settings: FolderSettings) -> Source:
    """Loads the user's own tables, one file per client in ``data.directory``.

    Clients are named after their files and numbered in the order of these names. ``test_share`` of each client's
    examples is held out; the draw is the same in every run. With ``standardize``, inputs are scaled by the mean and the
    standard deviation over all clients' training examples. These follow from one count, mean and sum of squares per
    client, so no client needs another client's rows.

    Raises:
        DataError: The directory has no clients' files, a file cannot be read or does not fit the settings, or no client
            is large enough for a test set.
    """
    files = list_client_files(settings)
    rows, summaries = zip(*ask_all(files, ClientFile.read_and_summarize), strict=True)
    preprocessing = compute_preprocessing(files, summaries)
    target_scale = compute_target_scale(files, [summary.label_moments for summary in summaries])
    parts = [file.preprocess(own, preprocessing) for own, file in zip(rows, files, strict=True)]
    train, test = (Examples.concatenate([part[i] for part in parts]) for i in (0, 1))
    if not len(test):
        raise DataError(
            f"{settings.directory}: no client has enough examples to hold out a share of {settings.test_share:g}"
        )
    return Source(
        name=Path(str(settings.directory)).name,
        train_x=train.x,
        train_y=train.y,
        test_x=test.x,
        test_y=test.y,
        groups=np.repeat(np.arange(len(files)), [len(part[0]) for part in parts]),
        test_groups=np.repeat(np.arange(len(files)), [len(part[1]) for part in parts]),
        task=settings.task,
        preprocessing=preprocessing,
        target_scale=target_scale,
        columns=summarize_columns(preprocessing.schema, summaries),
    )


def list_client_files(settings: FolderSettings) -> list[ClientFile]:
    """Lists the clients' files in ``data.directory``, ordered by the clients' names.

    If the settings name no inputs, the first file's columns are the inputs of all clients.

    Raises:
        DataError: There is no file, or one client has two.
    """
    directory = Path(str(settings.directory))
    if not directory.is_dir():
        below = "" if directory.is_absolute() else f" below the working directory {Path.cwd()}"
        raise DataError(f"{directory}: is not a directory{below}; data.directory holds one file per client")
    paths, others = list_tables(directory)
    if not paths:
        raise DataError(f"{directory}: holds no {FORMATS} file" + _describe_others(others))
    for before, path in pairwise(sorted(paths, key=lambda path: derive_client_name(path).casefold())):
        if derive_client_name(before).casefold() == derive_client_name(path).casefold():
            raise DataError(f"{path}: {before.name} belongs to the same client; a client has exactly one file")
    for path in paths:
        if path.is_dir():
            raise DataError(f"{path}: is a directory; a client has exactly one file")
    files = [
        ClientFile(path=path, client_id=i, name=derive_client_name(path), settings=settings)
        for i, path in enumerate(paths)
    ]
    return files if settings.features is not None else with_features(files, files[0].read_features())


def _describe_others(names: Sequence[str]) -> str:
    """Describes files that are no tables, in a directory without any."""
    if not names:
        return ""
    hint = "; export spreadsheets as CSV" if any(name.lower().endswith(SPREADSHEETS) for name in names) else ""
    return f", but {format_names(names)}{hint}"


def find_ignored(settings: FolderSettings) -> tuple[str, ...]:
    """Finds the names in ``data.directory`` that are not clients' files."""
    return tuple(list_tables(Path(str(settings.directory)))[1])


def compute_preprocessing(files: Sequence[ClientFile], summaries: Sequence[FileSummary]) -> TablePreprocessing:
    """Computes the preprocessing that all clients share.

    Args:
        files: The clients' files.
        summaries: The summary of each client's file.

    Raises:
        DataError: Inputs of two files differ in shape or kind, or no client has a value from which to impute an input.
    """
    found, settings = [summary.moments for summary in summaries], files[0].settings
    for file, own in zip(files, found, strict=True):
        if own.mean.shape != found[0].mean.shape:
            here, there = own.mean.shape, found[0].mean.shape
            raise DataError(
                f"{file.path}: inputs are {list(here)}, but those of {files[0].path.name} are {list(there)}"
            )
    total, features = reduce(Moments.__add__, found), settings.features or ()
    columns = features if total.mean.shape == (len(features),) else None
    if settings.missing == "mean" and not total.count.all():
        empty = _name_columns(columns, total.count == 0)
        raise DataError(f"data.missing: mean: no client has a value of {empty}; leave it out of data.features")
    scaled = settings.standardize
    numbers = TablePreprocessing(
        schema=_agree_on_schema(files, summaries),
        fill=total.mean if settings.missing == "mean" else np.full_like(total.mean, np.nan),
        mean=total.mean if scaled else np.zeros_like(total.mean),
        scale=total.deviation if scaled else np.ones_like(total.mean),
    )
    return numbers.expand_categories()


def _agree_on_schema(files: Sequence[ClientFile], summaries: Sequence[FileSummary]) -> TableSchema | None:
    """Agrees on the columns; None if a file's inputs are arrays with several columns each."""
    settings = files[0].settings
    facts = [summary.facts or _describe_arrays(settings, summary) for summary in summaries]
    if any(own is None for own in facts):
        return None
    known = [own for own in facts if own is not None]
    return agree_on_schema(settings, [str(file.path) for file in files], known, sum(own.train for own in summaries))


def _describe_arrays(settings: TabularSettings, summary: FileSummary) -> Facts | None:
    """Describes the arrays of an .npz file, which hold numbers; None unless each is one column."""
    features = settings.features or ()
    if summary.moments.mean.shape != (len(features),):
        return None
    return [
        ColumnFacts(name=name, kind="number", example="an array of numbers", test_places={})
        for name in (*features, settings.label)
    ]


def compute_target_scale(files: Sequence[ClientFile], moments: Iterable[Moments]) -> TargetScale | None:
    """Computes mean and scale of a regression's labels, by which all clients scale them in training.

    Args:
        files: The clients' files.
        moments: The moments of each client's training labels.

    Returns:
        The mean and the standard deviation over all clients; None for other tasks, or if inputs are not scaled either.

    Raises:
        DataError: All labels of all clients have the same value.
    """
    total, settings = reduce(Moments.__add__, moments), files[0].settings
    if not total.squares > 0:
        what = "value" if settings.task == "regression" else "class"
        value = f", {float(total.mean):g}" if files[0].show_values else ""
        where = f"{files[0].path}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        text = f"every training label has the same {what}{value}; there is nothing to predict"
        raise DataError(f"{where}: column {settings.label}: {text}: name another column in data.label, or add rows")
    if settings.task != "regression" or not settings.standardize:
        return None
    return float(total.mean), float(total.deviation)


def _name_columns(columns: Sequence[str] | None, chosen: npt.NDArray[np.bool_]) -> str:
    """Names the chosen inputs, or counts them if inputs have no names."""
    if columns is not None:
        return ", ".join(name for name, here in zip(columns, chosen, strict=True) if here)
    return f"{int(chosen.sum())} of the inputs"
