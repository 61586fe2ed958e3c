"""One file a client: a directory of .npz, .csv or .parquet files, each read by itself."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fednar_ray.config import DataSettings
from fednar_ray.data.examples import Array, Examples
from fednar_ray.data.sources.arrays import read_npz
from fednar_ray.data.sources.source import Source
from fednar_ray.errors import DataError
from fednar_ray.seeding import Purpose, generator

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

ENDINGS = (".csv", ".npz", ".parquet")
MISSING_IN_CSV = ["", "?", "NA", "N/A", "NaN", "nan", "null", "NULL"]


def folder(settings: DataSettings) -> Source:
    """One's own tables, a file a client in ``data.directory``; licence and citation are theirs.

    Clients are called as their files, in that order. Of each, ``test_share`` is held out by a draw of its own, the
    same in every run. With ``standardise`` inputs are scaled by the mean and the deviation of all clients' training
    examples, which follow from one count, mean and sum of squares a client: no client needs another's rows.
    """
    files = client_files(settings)
    read = [file.read() for file in files]
    scale = common_scale(files, [part.moments for part in read])
    parts = [scale.examples(part, file) for part, file in zip(read, files, strict=True)]
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
        task=str(settings.task),
    )


def _joined(parts: Sequence[Examples]) -> Examples:
    return Examples(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What is to be known of one client's inputs, or of several clients': of each input [f…] by itself."""

    count: Floats  # of what is not missing
    mean: Floats
    squares: Floats  # Σ (x − mean)²

    @classmethod
    def of(cls, x: Floats) -> "Moments":
        """Of the rows x [n, f…], in which NaN is missing."""
        there = ~np.isnan(x)
        count = there.sum(axis=0).astype(np.float64)
        mean = np.where(there, x, 0.0).sum(axis=0) / np.maximum(count, 1)
        return cls(count=count, mean=mean, squares=(np.where(there, x - mean, 0.0) ** 2).sum(axis=0))

    def __add__(self, other: "Moments") -> "Moments":
        """Of both together (Chan, Golub and LeVeque, 1979)."""
        count, apart = self.count + other.count, other.mean - self.mean
        share = other.count / np.maximum(count, 1)
        squares = self.squares + other.squares + apart**2 * self.count * share
        return Moments(count=count, mean=self.mean + apart * share, squares=squares)

    @property
    def deviation(self) -> Floats:
        """[f…]; 1 of what is constant."""
        deviation = np.sqrt(self.squares / np.maximum(self.count, 1))
        return np.where(deviation > 0, deviation, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRows:
    """One client's rows as they are in its file; NaN is missing."""

    train_x: Floats
    train_y: Array
    test_x: Floats
    test_y: Array

    @property
    def moments(self) -> Moments:
        """Of the training examples."""
        return Moments.of(self.train_x)

    @property
    def digest(self) -> str:
        """SHA-256, as hexadecimal digits."""
        parts = (self.train_x, self.train_y, self.test_x, self.test_y)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).data for part in parts)).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFile:
    """Where a client's rows are, and how they are read; it travels instead of them."""

    path: Path  # a file; of a site also a directory with that one file
    client_id: int
    name: str  # the client's
    settings: DataSettings

    def columns(self) -> tuple[str, ...]:
        """The features that the file holds. Raises as ``read``."""
        return _table(self.located(), self.settings)[2]

    def located(self) -> Path:
        """The file. Raises DataError where there is none, or a directory holds several."""
        if not self.path.is_dir():
            if not self.path.is_file():
                raise DataError(f"{self.path}: there is no such file")
            if self.path.suffix not in ENDINGS:
                raise DataError(f"{self.path}: is not one of *{', *'.join(ENDINGS)}")
            return self.path
        found = _readable(self.path)
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or f"no file *{', *'.join(ENDINGS)}"
            raise DataError(f"{self.path}: holds {names}; a client has one file")
        return found[0]

    def read(self) -> ClientRows:
        """Raises DataError, which names the file, where it cannot be read, or is not as the settings say."""
        x, y, features = _table(self.located(), self.settings)
        if y.ndim != 1 or len(x) != len(y):
            raise DataError(f"{self.path}: inputs {x.shape} and {self.settings.label} {y.shape} do not go together")
        if not len(y):
            raise DataError(f"{self.path}: has no rows")
        x, y = self._complete(x, y, features)
        order = generator(0, Purpose.TEST_SHARE, client_id=self.client_id).permutation(len(y))
        held = min(round((self.settings.test_share or 0) * len(y)), len(y) - 1)
        test, train = np.sort(order[:held]), np.sort(order[held:])
        return ClientRows(train_x=x[train], train_y=y[train], test_x=x[test], test_y=y[test])

    def survey(self) -> "Survey":
        """What is to be known of the file before anybody trains; raises as ``read``, and for labels of another task."""
        rows, task = self.read(), str(self.settings.task)
        train_y, test_y = (
            Examples.of((np.zeros(len(y)), y), str(self.path), task).y if len(y) else np.zeros(0, dtype=np.int64)
            for y in (rows.train_y, rows.test_y)
        )
        return Survey(
            moments=rows.moments,
            train=len(train_y),
            test=len(test_y),
            counts=label_counts(train_y, task),
            classes=1 if task == "regression" else 1 + max(int(y.max(initial=0)) for y in (train_y, test_y)),
            labels=(train_y, test_y.astype(train_y.dtype)),
            digest=rows.digest,
        )

    def figures(self) -> "Survey":
        """The survey without a label of any one example."""
        return replace(self.survey(), labels=None)

    def _complete(self, x: Floats, y: Array, features: Sequence[str]) -> tuple[Floats, Array]:
        """Rows without what may not be missing."""
        gaps: npt.NDArray[np.bool_] = np.isnan(x).reshape(len(x), -1)
        unlabelled = np.isnan(y) if np.issubdtype(y.dtype, np.floating) else np.zeros(len(y), dtype=bool)
        if self.settings.missing == "drop":
            kept = ~(gaps.any(axis=1) | unlabelled)
            if not kept.any():
                raise DataError(f"{self.path}: every row lacks something; data.missing: mean keeps them")
            return x[kept], y[kept]
        if unlabelled.any():
            raise DataError(f"{self.path}: {unlabelled.sum()} rows lack {self.settings.label}; data.missing: drop")
        if self.settings.missing == "refuse" and gaps.any():
            lacking = set(np.flatnonzero(gaps.any(axis=0)).tolist())
            named = [name for i, name in enumerate(features) if i in lacking or gaps.shape[1] != len(features)]
            places = f"{gaps.sum()} values are missing, of {', '.join(named)}"
            raise DataError(f"{self.path}: {places}; set data.missing to mean or drop")
        return x, y


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Of one client's file."""

    moments: Moments
    train: int  # examples
    test: int
    counts: Counts  # training examples by class, [classes]; in regression their number, [1]
    classes: int  # one more than its highest label; 1 in regression
    labels: tuple[Array, Array] | None  # of training and test examples; None: they stay with their holder
    digest: str  # of its rows


def label_counts(labels: Array, task: str) -> Counts:
    """Examples by class, [classes]; in regression their number, [1]."""
    return np.array([len(labels)]) if task == "regression" else np.bincount(labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From a client's rows to its examples, with what is known of all clients."""

    moments: Moments

    def examples(self, rows: ClientRows, file: ClientFile) -> tuple[Examples, Examples]:
        """A client's training and test examples; the test set may be empty."""
        task, place = str(file.settings.task), str(file.path)
        train = Examples.of((self._scaled(rows.train_x, file.settings), rows.train_y), place, task)
        if not len(rows.test_y):
            return train, Examples(train.x[:0], train.y[:0])
        return train, Examples.of((self._scaled(rows.test_x, file.settings), rows.test_y), place, task)

    def _scaled(self, x: Floats, settings: DataSettings) -> Floats:
        if settings.missing == "mean":
            x = np.where(np.isnan(x), self.moments.mean, x)
        return (x - self.moments.mean) / self.moments.deviation if settings.standardise else x


def common_scale(files: Sequence[ClientFile], moments: Iterable[Moments]) -> Scale:
    """Of all clients. Raises DataError for a file whose inputs have another shape than the first's."""
    found = list(moments)
    for file, own in zip(files, found, strict=True):
        if own.mean.shape != found[0].mean.shape:
            here, there = own.mean.shape, found[0].mean.shape
            raise DataError(f"{file.path}: an input is {list(here)}, in {files[0].path.name} {list(there)}")
    return Scale(moments=reduce(Moments.__add__, found))


def client_files(settings: DataSettings) -> list[ClientFile]:
    """The files of ``data.directory`` that can be read, by name.

    Where the settings name no columns, those of the first file hold for all. Raises DataError where there is no file,
    or two of a name.
    """
    directory = Path(str(settings.directory))
    if not directory.is_dir():
        raise DataError(f"{directory}: is no directory; data.directory holds one file a client")
    paths = _readable(directory)
    if not paths:
        raise DataError(f"{directory}: holds no file *{', *'.join(ENDINGS)}")
    for before, path in pairwise(paths):
        if before.stem == path.stem:
            raise DataError(f"{path}: {before.name} is the same client's; a client has one file")
    files = [ClientFile(path=path, client_id=i, name=path.stem, settings=settings) for i, path in enumerate(paths)]
    return files if settings.features is not None else with_columns(files, files[0].columns())


def files_of_sites(settings: DataSettings, places: Mapping[str, str]) -> list[ClientFile]:
    """The files of the named sites, by name, as if they lay in one directory; nothing is opened."""
    return [
        ClientFile(path=Path(places[name]), client_id=i, name=name, settings=settings)
        for i, name in enumerate(sorted(places))
    ]


def with_columns(files: Sequence[ClientFile], features: tuple[str, ...]) -> list[ClientFile]:
    """The same files, of which these columns are the inputs."""
    settings = files[0].settings.model_copy(update={"features": features})
    return [replace(file, settings=settings) for file in files]


def _readable(directory: Path) -> list[Path]:
    return sorted((p for p in directory.iterdir() if p.suffix in ENDINGS and p.name[0] != "."), key=lambda p: p.stem)


# ——— files ———


def _table(path: Path, settings: DataSettings) -> tuple[Floats, Array, tuple[str, ...]]:
    """x [n, f…] with NaN for what is missing, y [n], and the names of the features."""
    label = str(settings.label)
    if path.suffix == ".npz":
        features = settings.features or ("x",)
        columns: dict[str, Array] = read_npz(path, [*features, label])
    else:
        columns = _columns(path)
        features = settings.features or tuple(name for name in columns if name != label)
        missing = [name for name in (*features, label) if name not in columns]
        if missing:
            raise DataError(f"{path}: has no column {', '.join(missing)}; it has {', '.join(columns)}")
    return _inputs([columns[name] for name in features], features, path), columns[label], features


def _inputs(columns: Sequence[Array], features: Sequence[str], path: Path) -> Floats:
    """One array as it is; several as the columns of one."""
    for name, column in zip(features, columns, strict=True):
        if not np.issubdtype(column.dtype, np.number) and column.dtype != np.bool_:
            raise DataError(f"{path}: {name} holds {column.dtype}; numbers are needed")
        if column.ndim == 0 or len(column) != len(columns[0]):
            raise DataError(f"{path}: {name} has another number of rows than {features[0]}")
    whole = [column[:, None] if column.ndim == 1 else column for column in columns]
    if len(whole) == 1:
        return whole[0].astype(np.float64)
    if any(column.ndim > 2 for column in whole):
        raise DataError(f"{path}: of several arrays each must be [n] or [n, k]")
    return np.concatenate(whole, axis=1, dtype=np.float64)


def _columns(path: Path) -> dict[str, Array]:
    """The columns of a .csv or .parquet file; numbers as float64, with NaN where there is none."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix == ".csv":
            missing = csv.ConvertOptions(null_values=MISSING_IN_CSV, strings_can_be_null=True)
            table = csv.read_csv(path, convert_options=missing)
        else:
            table = parquet.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    return {name: _numbers(table[name]) for name in table.column_names}


def _numbers(column: Any) -> Array:
    """float64, where the column can be; else as it is."""
    import pyarrow as pa

    try:
        numbers: Array = column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return np.asarray(column.to_numpy(), dtype=str)
    return numbers
