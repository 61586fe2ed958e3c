"""The file of one client: finds it, reads its rows, and summarizes it. Whoever holds the file runs this code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fednar_ray.config.tables import TabularSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.fednar_table_schema import TableSchema
from fednar_ray.core.preprocessing import TablePreprocessing
from fednar_ray.data.examples import Array, Examples
from fednar_ray.data.sources.agreement import Facts
from fednar_ray.data.sources.checked_table import hold_out, read_checked
from fednar_ray.data.sources.client_rows import ClientRows
from fednar_ray.data.sources.moments import Moments
from fednar_ray.data.sources.tables import FORMATS, find_extension, list_tables, read_columns

Counts = npt.NDArray[np.int64]
Answer = TypeVar("Answer")


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
    settings: TabularSettings
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
        checked = read_checked(self.locate(), self.settings, place=self.path, show_values=self.show_values)
        return checked.split(*hold_out(len(checked.y), self.settings.test_share, self.client_id))

    def preprocess(self, rows: ClientRows, preprocessing: TablePreprocessing) -> tuple[Examples, Examples]:
        """Converts the client's rows to training and test examples. One of both may be empty."""
        task, place = self.settings.task, str(self.path)
        rows = rows.encode(preprocessing.schema)
        train, test = (
            Examples.of((preprocessing.apply(x), y), place, task) if len(y) else None
            for x, y in ((rows.train_x, rows.train_y), (rows.test_x, rows.test_y))
        )
        known = train or test
        assert known is not None
        empty = Examples(known.x[:0], known.y[:0])
        return train or empty, test or empty

    def summarize(self) -> "FileSummary":
        """Summarizes the file before training. Raises DataError as ``read`` does, and if labels do not fit the task."""
        return self.read_and_summarize()[1]

    def read_and_summarize(self) -> tuple[ClientRows, "FileSummary"]:
        """Reads the client's rows once, and summarizes them. Raises DataError as ``summarize`` does."""
        rows, facts = self._read()
        return rows, self.summarize_rows(rows, facts)

    def summarize_rows(self, rows: ClientRows, facts: Facts | None) -> "FileSummary":
        """Summarizes rows that were read before. Raises DataError if labels do not fit the task."""
        task = self.settings.task
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


def count_labels(labels: Array, task: str) -> Counts:
    """Counts examples by class, [classes]; in regression all of them, [1]."""
    return np.array([len(labels)]) if task == "regression" else np.bincount(labels)


def list_silo_files(settings: TabularSettings, places: Mapping[str, str]) -> list[ClientFile]:
    """Lists the files of the silos, ordered by the silos' names. No file is opened.

    Args:
        settings: The ``data`` section.
        places: The path of each silo's file, or of the directory that holds it, by the silo's name.
    """
    return [
        ClientFile(path=Path(places[name]), client_id=i, name=name, settings=settings, show_values=False)
        for i, name in enumerate(sorted(places))
    ]


def ask_all(files: Sequence[ClientFile], question: Callable[[ClientFile], Answer]) -> list[Answer]:
    """Asks each file, such as for its summary.

    Raises:
        DataError: The problems of all files. What is wrong in the same way in several files is told once.
    """
    answers: list[Answer] = []
    problems: dict[str, list[str]] = {}  # the text without the file's path → the texts
    for file in files:
        try:
            answers.append(question(file))
        except DataError as error:
            problems.setdefault(str(error).replace(str(file.path), ""), []).append(str(error))
    if problems:
        raise DataError("\n".join(map(_merge, problems.values())))
    return answers


def _merge(texts: Sequence[str]) -> str:
    """Returns the text of the first of several files that differ only in their path, and how many there are."""
    more = len(texts) - 1
    if not more:
        return texts[0]
    path, colon, rest = texts[0].partition(": ")
    return f"{path} and {more} more file{'s' * (more > 1)}{colon}{rest}"


def with_features(files: Sequence[ClientFile], features: tuple[str, ...]) -> list[ClientFile]:
    """Returns the same files with these columns as inputs."""
    settings = files[0].settings.model_copy(update={"features": features})
    return [replace(file, settings=settings) for file in files]
