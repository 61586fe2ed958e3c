"""The file of one client: finds it, reads its rows, and summarizes it. Whoever holds the file runs this code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fednar_ray.config.data import FolderSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.fednar_table_schema import TableSchema
from fednar_ray.core.preprocessing import TablePreprocessing
from fednar_ray.core.random import Purpose, generator
from fednar_ray.data.examples import Array, Examples
from fednar_ray.data.sources.agreement import ColumnFacts, Facts
from fednar_ray.data.sources.client_rows import ClientRows, RowChecker
from fednar_ray.data.sources.moments import Moments
from fednar_ray.data.sources.tables import FORMATS, Table, find_extension, list_tables, read_columns

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFile:
    """The location of a client's rows, and how to read them. Actors get it instead of the rows.

    Attributes:
        path: The file. At a silo it may also be a directory that holds only this file.
        client_id: The client's number, which decides which rows are its test set.
        name: The client's name.
        settings: The ``data`` section.
        show_values: Whether an error may show a value of the file. At silos it may not, because rows must stay there.
    """

    path: Path
    client_id: int
    name: str
    settings: FolderSettings
    show_values: bool = True

    def read_features(self) -> tuple[str, ...]:
        """Reads the names of the file's inputs. Raises DataError as ``read`` does."""
        return read_columns(self.locate(), self.settings)[1]

    def locate(self) -> Path:
        """Returns the path of the file itself.

        Raises:
            DataError: There is no such file, its format is unknown, or a directory does not hold exactly one file.
        """
        if not self.path.is_dir():
            if not self.path.is_file():
                raise DataError(f"{self.path}: there is no such file")
            if find_extension(self.path) is None:
                raise DataError(f"{self.path}: is not a {FORMATS} file")
            return self.path
        found, _ = list_tables(self.path)
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or f"no {FORMATS} file"
            raise DataError(f"{self.path}: holds {names}; a client has exactly one file")
        return found[0]

    def read(self) -> ClientRows:
        """Reads the client's rows and splits them into training and test rows.

        The split depends only on the client's number and its number of rows, so it is the same in every run.

        Raises:
            DataError: The file cannot be read, or does not fit the settings. The message names the file.
        """
        return self._read()[0]

    def _read(self) -> tuple[ClientRows, Facts | None]:
        """Reads the client's rows, and what is to be known of each column; None if inputs have no named columns."""
        table, features = read_columns(self.locate(), self.settings)
        x, y, kept = RowChecker(
            path=self.path, table=table, features=features, settings=self.settings, show_values=self.show_values
        ).select_rows()
        order = generator(0, Purpose.TEST_SHARE, client_id=self.client_id).permutation(len(y))
        held = min(round(self.settings.test_share * len(y)), len(y) - 1)
        test, train = np.sort(order[:held]), np.sort(order[held:])
        rows = ClientRows(train_x=x[train], train_y=y[train], test_x=x[test], test_y=y[test])
        if not table.kinds:
            return rows, None
        label = table.kinds[self.settings.label]
        rows = replace(
            rows,
            levels=tuple(table.kinds[name].levels for name in features),
            classes=label.levels if label.kind == "category" else None,
        )
        facts = [
            describe_column(table, name, kept[train], kept[test], show_values=self.show_values)
            for name in (*features, self.settings.label)
        ]
        return rows, facts

    def preprocess(self, rows: ClientRows, preprocessing: TablePreprocessing) -> tuple[Examples, Examples]:
        """Converts the client's rows to training and test examples. The test set may be empty."""
        task, place = self.settings.task, str(self.path)
        rows = rows.encode(preprocessing.schema)
        train = Examples.of((preprocessing.apply(rows.train_x), rows.train_y), place, task)
        if not len(rows.test_y):
            return train, Examples(train.x[:0], train.y[:0])
        return train, Examples.of((preprocessing.apply(rows.test_x), rows.test_y), place, task)

    def summarize(self) -> "FileSummary":
        """Summarizes the file before training. Raises DataError as ``read`` does, and if labels do not fit the task."""
        (rows, facts), task = self._read(), self.settings.task
        kind = task if rows.classes is None else "classification"  # before the classes are agreed, there may be many
        train_y, test_y = (
            Examples.of((np.zeros(len(y)), y), str(self.path), kind).y if len(y) else np.zeros(0, dtype=np.int64)
            for y in (rows.train_y, rows.test_y)
        )
        return FileSummary(
            moments=rows.moments,
            label_moments=rows.label_moments,
            train=len(train_y),
            test=len(test_y),
            counts=count_labels(train_y, task),
            classes=1 if task == "regression" else 1 + max(int(y.max(initial=0)) for y in (train_y, test_y)),
            labels=(train_y, test_y.astype(train_y.dtype)),
            digest=rows.digest,
            facts=facts,
            class_names=rows.classes,
        )

    def summarize_without_labels(self) -> "FileSummary":
        """Summarizes the file without the label of any single example, for silos."""
        return replace(self.summarize(), labels=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSummary:
    """A summary of one client's file, from which a federation is planned without its rows."""

    moments: Moments  # of the training inputs
    label_moments: Moments  # of the training labels
    train: int  # number of training examples
    test: int  # number of test examples
    counts: Counts  # training examples by class, [classes]; in regression their number, [1]
    classes: int  # one more than the highest label of the file; 1 in regression
    labels: tuple[Array, Array] | None  # of training and test examples; None: they may not leave the silo
    digest: str  # see ClientRows.digest
    facts: Facts | None = None  # of the columns; None if inputs have no named columns
    class_names: tuple[str, ...] | None = None  # the texts of this file's labels; None if labels are numbers

    def encode(self, schema: TableSchema | None) -> "FileSummary":
        """Returns the summary with the classes of the schema that all clients share."""
        if schema is None or schema.class_names is None:
            return self
        agreed = {name: index for index, name in enumerate(schema.class_names)}
        position = np.array([agreed.get(name, -1) for name in self.class_names or ()], dtype=np.int64)  # -1: unused
        counts = np.zeros(len(schema.class_names), dtype=np.int64)
        used = np.flatnonzero(self.counts)
        counts[position[used]] = self.counts[used]
        labels = None if self.labels is None else (position[self.labels[0]], position[self.labels[1]])
        return replace(self, counts=counts, classes=len(counts), labels=labels)


def describe_column(table: Table, name: str, train: Counts, test: Counts, *, show_values: bool) -> ColumnFacts:
    """Describes a column of a file.

    Args:
        table: The file.
        name: The column.
        train: The numbers of its training rows in the file.
        test: The numbers of its test rows.
        show_values: Whether the example may show a value.
    """
    column = table.kinds[name]
    there = np.flatnonzero(~np.isnan(column.values))
    example = ""
    if len(there):
        place, text = table.find_cell(int(there[0]), name)
        value = column.values[there[0]]
        text = text or (column.levels[int(value)] if column.levels else f"{value:g}")
        example = f"{place}: {text.strip()!r}" if show_values else place
    missing = int(np.isnan(column.values[train]).sum())
    if column.kind != "category":
        return ColumnFacts(name=name, kind=column.kind, example=example, test_places={}, missing=missing)
    trained = set(column.values[train][~np.isnan(column.values[train])].astype(int).tolist())
    codes, first = np.unique(column.values[test], return_index=True)
    places = {
        column.levels[int(code)]: table.find_cell(int(test[row]), name)[0]
        for code, row in zip(codes, first, strict=True)
        if not np.isnan(code) and int(code) not in trained
    }
    levels = tuple(column.levels[code] for code in sorted(trained))
    return ColumnFacts(name=name, kind=column.kind, example=example, levels=levels, test_places=places, missing=missing)


def count_labels(labels: Array, task: str) -> Counts:
    """Counts examples by class, [classes]; in regression all of them, [1]."""
    return np.array([len(labels)]) if task == "regression" else np.bincount(labels)


def list_silo_files(settings: FolderSettings, places: Mapping[str, str]) -> list[ClientFile]:
    """Lists the files of the silos, ordered by the silos' names. No file is opened.

    Args:
        settings: The ``data`` section.
        places: The path of each silo's file, or of the directory that holds it, by the silo's name.
    """
    return [
        ClientFile(path=Path(places[name]), client_id=i, name=name, settings=settings, show_values=False)
        for i, name in enumerate(sorted(places))
    ]


def summarize_all(files: Sequence[ClientFile]) -> list["FileSummary"]:
    """Summarizes files. Raises one DataError with the problems of all of them."""
    summaries, problems = [], []
    for file in files:
        try:
            summaries.append(file.summarize())
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return summaries


def with_features(files: Sequence[ClientFile], features: tuple[str, ...]) -> list[ClientFile]:
    """Returns the same files with these columns as inputs."""
    settings = files[0].settings.model_copy(update={"features": features})
    return [replace(file, settings=settings) for file in files]
