"""One file per client: a directory of .csv, .tsv, .parquet or .npz files, each read by itself."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fednar_ray.config.data import FolderSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.preprocessing import TablePreprocessing
from fednar_ray.core.random import Purpose, generator
from fednar_ray.data.examples import Array, Examples
from fednar_ray.data.sources.moments import Moments
from fednar_ray.data.sources.source import Source
from fednar_ray.data.sources.tables import FORMATS, Table, find_ending, find_text, read_columns

log = logging.getLogger("fednar_ray")

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]

LARGEST = float(np.finfo(np.float32).max)
SHOWN = 5  # names of ignored files in a message


def load_folder(settings: FolderSettings) -> Source:
    """Loads the user's own tables, one file per client in ``data.directory``.

    Clients are named after their files and numbered in the order of these names. Of each client's examples,
    ``test_share`` is held out; the draw is the same in every run. With ``standardize``, inputs are scaled by the mean
    and the standard deviation over all clients' training examples. These follow from one count, mean and sum of squares
    per client, so no client needs another's rows.
    """
    files = client_files(settings)
    read = [file.read() for file in files]
    preprocessing = common_preprocessing(files, [part.moments for part in read])
    parts = [file.examples_of(part, preprocessing) for part, file in zip(read, files, strict=True)]
    train, test = (_joined([part[i] for part in parts]) for i in (0, 1))
    if not len(test):
        raise DataError(f"{settings.directory}: no client is large enough to hold out {settings.test_share:g} of it")
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
    )


def _joined(parts: Sequence[Examples]) -> Examples:
    return Examples(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRows:
    """One client's rows as they are in its file. NaN stands for a missing value."""

    train_x: Floats
    train_y: Array
    test_x: Floats
    test_y: Array

    @property
    def moments(self) -> Moments:
        """The moments of the training examples."""
        return Moments.of(self.train_x)

    @property
    def digest(self) -> str:
        """SHA-256, as hexadecimal digits."""
        parts = (self.train_x, self.train_y, self.test_x, self.test_y)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).data for part in parts)).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFile:
    """Where a client's rows are, and how they are read. It is sent to actors instead of the rows."""

    path: Path  # a file; of a silo also a directory with that one file
    client_id: int
    name: str  # the client's
    settings: FolderSettings
    show_values: bool = True  # whether an error may name a value of the file; not at silos, whose rows stay there

    def columns(self) -> tuple[str, ...]:
        """Reads the names of the features that the file holds. Raises as ``read``."""
        return read_columns(self.located(), self.settings.features, self.settings.label)[1]

    def located(self) -> Path:
        """Finds the file. Raises DataError where there is none, or where a directory holds several."""
        if not self.path.is_dir():
            if not self.path.is_file():
                raise DataError(f"{self.path}: there is no such file")
            if find_ending(self.path) is None:
                raise DataError(f"{self.path}: is not a {FORMATS} file")
            return self.path
        found, _ = _list_files(self.path)
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or f"no {FORMATS} file"
            raise DataError(f"{self.path}: holds {names}; a client has one file")
        return found[0]

    def read(self) -> ClientRows:
        """Reads the client's rows.

        Raises:
            DataError: The file cannot be read, or is not as the settings say. The message names the file.
        """
        table, features = read_columns(self.located(), self.settings.features, self.settings.label)
        x, y = self._arrays(table, features)
        kept = self._complete_rows(table, x, y, features)
        self._check_values(table, features, kept)
        x, y = x[kept], y[kept]
        order = generator(0, Purpose.TEST_SHARE, client_id=self.client_id).permutation(len(y))
        held = min(round(self.settings.test_share * len(y)), len(y) - 1)
        test, train = np.sort(order[:held]), np.sort(order[held:])
        return ClientRows(train_x=x[train], train_y=y[train], test_x=x[test], test_y=y[test])

    def examples_of(self, rows: ClientRows, preprocessing: TablePreprocessing) -> tuple[Examples, Examples]:
        """Preprocesses the client's training and test examples. The test set may be empty."""
        task, place = self.settings.task, str(self.path)
        train = Examples.of((preprocessing.apply(rows.train_x), rows.train_y), place, task)
        if not len(rows.test_y):
            return train, Examples(train.x[:0], train.y[:0])
        return train, Examples.of((preprocessing.apply(rows.test_x), rows.test_y), place, task)

    def survey(self) -> "FileSummary":
        """Summarizes the file before training. Raises as ``read``, and for labels of another task."""
        rows, task = self.read(), self.settings.task
        train_y, test_y = (
            Examples.of((np.zeros(len(y)), y), str(self.path), task).y if len(y) else np.zeros(0, dtype=np.int64)
            for y in (rows.train_y, rows.test_y)
        )
        return FileSummary(
            moments=rows.moments,
            train=len(train_y),
            test=len(test_y),
            counts=label_counts(train_y, task),
            classes=1 if task == "regression" else 1 + max(int(y.max(initial=0)) for y in (train_y, test_y)),
            labels=(train_y, test_y.astype(train_y.dtype)),
            digest=rows.digest,
        )

    def figures(self) -> "FileSummary":
        """Summarizes the file without the label of any single example."""
        return replace(self.survey(), labels=None)

    def _arrays(self, table: Table, features: Sequence[str]) -> tuple[Floats, Array]:
        """The inputs [n, f…] and labels [n]. Raises DataError for text, and for arrays that do not go together."""
        label = self.settings.label
        text = [self._text(table, name) for name in (*features, label) if table.columns[name].dtype == object]
        if text:
            raise DataError("\n".join(text))
        x, y = _inputs([table.columns[name] for name in features], features, self.path), table.columns[label]
        if y.ndim != 1 or len(x) != len(y):
            raise DataError(f"{self.path}: inputs {x.shape} and {label} {y.shape} do not go together")
        if not len(y):
            raise DataError(f"{self.path}: has no rows")
        return x, y

    def _text(self, table: Table, name: str) -> str:
        """Describes what is wrong with a column that holds text."""
        classes = name == self.settings.label and self.settings.task != "regression"
        remedy = (
            "labels are whole numbers from 0" if classes else "write numbers as 1234.5, and leave missing cells empty"
        )
        if name != self.settings.label:
            remedy += ", or leave the column out of data.features"
        why = f"is not a number; {remedy}"
        return str(table.bad_values(name, find_text(table.columns[name]), why, show_values=self.show_values))

    def _complete_rows(self, table: Table, x: Floats, y: Array, features: Sequence[str]) -> Rows:
        """Finds the rows that lack no value that they need."""
        gaps: npt.NDArray[np.bool_] = np.isnan(x).reshape(len(x), -1)
        unlabeled = np.isnan(y) if np.issubdtype(y.dtype, np.floating) else np.zeros(len(y), dtype=bool)
        if self.settings.missing == "drop":
            kept = np.flatnonzero(~(gaps.any(axis=1) | unlabeled))
            if not len(kept):
                raise DataError(f"{self.path}: every row lacks something; data.missing: mean keeps them")
            return kept
        if unlabeled.any():
            first = table.find_cell(int(unlabeled.argmax()), self.settings.label)[0]
            lack = "1 row lacks" if unlabeled.sum() == 1 else f"{unlabeled.sum()} rows lack"
            where = f"{lack} {self.settings.label} (the first: {first})"
            raise DataError(f"{self.path}: {where}; data.missing: drop leaves them out")
        if self.settings.missing == "refuse" and gaps.any():
            lacking = set(np.flatnonzero(gaps.any(axis=0)).tolist())
            named = [name for i, name in enumerate(features) if i in lacking or gaps.shape[1] != len(features)]
            first = table.find_cell(int(gaps.any(axis=1).argmax()), named[0])[0]
            are_missing = "1 value is missing" if gaps.sum() == 1 else f"{gaps.sum()} values are missing"
            places = f"{are_missing}, of {', '.join(named)}"
            raise DataError(f"{self.path}: {places}; set data.missing to mean or drop (the first: {first})")
        return np.arange(len(y))

    def _check_values(self, table: Table, features: Sequence[str], kept: Rows) -> None:
        """Raises DataError for infinite inputs, and for labels that the task does not have."""
        label, task = self.settings.label, self.settings.task
        problems = [
            (name, _infinite(table.columns[name][kept]), "is infinite, or more than float32 can hold (3.4e38)")
            for name in features
        ]
        y = table.columns[label][kept]
        if np.issubdtype(y.dtype, np.number) and not np.issubdtype(y.dtype, np.complexfloating):
            wrong = _infinite(y) if task == "regression" else _no_class(y, task)
            problems.append((label, wrong, f"is no label; {LABELS[task]}"))
        found = [
            str(table.bad_values(name, kept[rows], why, show_values=self.show_values))
            for name, rows, why in problems
            if len(rows)
        ]
        if found:
            raise DataError("\n".join(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSummary:
    """A summary of one client's file."""

    moments: Moments
    train: int  # examples
    test: int
    counts: Counts  # training examples by class, [classes]; in regression their number, [1]
    classes: int  # one more than its highest label; 1 in regression
    labels: tuple[Array, Array] | None  # of training and test examples; None: they stay with their holder
    digest: str  # of its rows


def label_counts(labels: Array, task: str) -> Counts:
    """Counts examples by class, [classes]; in regression all of them, [1]."""
    return np.array([len(labels)]) if task == "regression" else np.bincount(labels)


LABELS = {
    "classification": "labels are whole numbers from 0 to classes-1",
    "binary": "the labels of task binary are 0 and 1",
    "regression": "labels are numbers that float32 can hold",
}


def _infinite(values: Array) -> Rows:
    """Finds the rows of values [n, …] with a number that float32 cannot hold."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    return np.flatnonzero((np.abs(flat) > LARGEST).any(axis=1))


def _no_class(labels: Array, task: str) -> Rows:
    """Finds the rows of labels [n] that are no classes of the task."""
    numbers = labels.astype(np.float64)
    wrong = ~np.isfinite(numbers) | (numbers != np.round(numbers)) | (numbers < 0)
    return np.flatnonzero(wrong | (numbers > 1) if task == "binary" else wrong)


def _inputs(columns: Sequence[Array], features: Sequence[str], path: Path) -> Floats:
    """Joins the inputs: one array as it is, several as the columns of one."""
    for name, column in zip(features, columns, strict=True):
        kind = column.dtype
        if not (np.issubdtype(kind, np.number) or kind == np.bool_) or np.issubdtype(kind, np.complexfloating):
            raise DataError(f"{path}: {name} holds {kind}; real numbers are needed")
        if column.ndim == 0 or len(column) != len(columns[0]):
            raise DataError(f"{path}: {name} has another number of rows than {features[0]}")
    whole = [column[:, None] if column.ndim == 1 else column for column in columns]
    if len(whole) == 1:
        return whole[0].astype(np.float64)
    if any(column.ndim > 2 for column in whole):
        raise DataError(f"{path}: of several arrays each must be [n] or [n, k]")
    return np.concatenate(whole, axis=1, dtype=np.float64)


def common_preprocessing(files: Sequence[ClientFile], moments: Iterable[Moments]) -> TablePreprocessing:
    """Computes the preprocessing that all clients share from the moments of each.

    Raises:
        DataError: A file's inputs differ in shape from the first file's, or an input cannot be imputed or scaled.
    """
    found, settings = list(moments), files[0].settings
    for file, own in zip(files, found, strict=True):
        if own.mean.shape != found[0].mean.shape:
            here, there = own.mean.shape, found[0].mean.shape
            raise DataError(f"{file.path}: an input is {list(here)}, in {files[0].path.name} {list(there)}")
    together, features = reduce(Moments.__add__, found), settings.features or ()
    columns = features if together.mean.shape == (len(features),) else None
    if settings.missing == "mean" and not together.count.all():
        empty = _name_columns(columns, together.count == 0)
        raise DataError(f"data.missing: mean: no client has a value of {empty}; leave it out of data.features")
    scaled = settings.standardize
    return TablePreprocessing(
        columns=columns,
        fill=together.mean if settings.missing == "mean" else np.full_like(together.mean, np.nan),
        mean=together.mean if scaled else np.zeros_like(together.mean),
        scale=together.deviation if scaled else np.ones_like(together.mean),
    )


def _name_columns(columns: Sequence[str] | None, chosen: npt.NDArray[np.bool_]) -> str:
    """Names the chosen inputs; where they have no names, says how many they are."""
    if columns is not None:
        return ", ".join(name for name, here in zip(columns, chosen, strict=True) if here)
    return f"{int(chosen.sum())} of the inputs"


def client_files(settings: FolderSettings) -> list[ClientFile]:
    """Lists the clients' files in ``data.directory``, in the order of the clients' names.

    Where the settings name no columns, the first file's columns are used for all.

    Raises:
        DataError: There is no file, or one client has two.
    """
    directory = Path(str(settings.directory))
    if not directory.is_dir():
        raise DataError(f"{directory}: is no directory; data.directory holds one file per client")
    paths, others = _list_files(directory)
    if not paths:
        raise DataError(f"{directory}: holds no {FORMATS} file" + (f", but {list_names(others)}" if others else ""))
    for before, path in pairwise(sorted(paths, key=lambda path: _client_name(path).casefold())):
        if _client_name(before).casefold() == _client_name(path).casefold():
            raise DataError(f"{path}: {before.name} is the same client's; a client has one file")
    for path in paths:
        if path.is_dir():
            raise DataError(f"{path}: is a folder; a client has one file")
    files = [
        ClientFile(path=path, client_id=i, name=_client_name(path), settings=settings) for i, path in enumerate(paths)
    ]
    return files if settings.features is not None else with_columns(files, files[0].columns())


def find_ignored(settings: FolderSettings) -> tuple[str, ...]:
    """Finds the names in ``data.directory`` that are no client's file."""
    return tuple(_list_files(Path(str(settings.directory)))[1])


def list_names(names: Sequence[str]) -> str:
    """Joins the first names, and says how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def files_of_silos(settings: FolderSettings, places: Mapping[str, str]) -> list[ClientFile]:
    """Lists the files of the silos, in the order of the silos' names. No file is opened."""
    return [
        ClientFile(path=Path(places[name]), client_id=i, name=name, settings=settings, show_values=False)
        for i, name in enumerate(sorted(places))
    ]


def with_columns(files: Sequence[ClientFile], features: tuple[str, ...]) -> list[ClientFile]:
    """The same files with these columns as inputs."""
    settings = files[0].settings.model_copy(update={"features": features})
    return [replace(file, settings=settings) for file in files]


def _client_name(path: Path) -> str:
    return path.name.removesuffix(find_ending(path) or "")


def _list_files(directory: Path) -> tuple[list[Path], list[str]]:
    """Lists the clients' files in a directory, by name, and the names of everything else."""
    paths, others = [], []
    for path in sorted(directory.iterdir()):
        if path.name[0] != "." and find_ending(path) is not None:
            paths.append(path)
        else:
            others.append(path.name + ("/" if path.is_dir() else ""))
    return sorted(paths, key=_client_name), others
