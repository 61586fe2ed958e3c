"""The file of one client: finds it, reads its rows, and summarizes it. Whoever holds the file runs this code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fednar_ray.config.data import FolderSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.preprocessing import TablePreprocessing
from fednar_ray.core.random import Purpose, generator
from fednar_ray.data.examples import Array, Examples
from fednar_ray.data.sources.client_rows import ClientRows, RowChecker
from fednar_ray.data.sources.moments import Moments
from fednar_ray.data.sources.tables import FORMATS, find_extension, list_tables, read_columns

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
        return read_columns(self.locate(), self.settings.features, self.settings.label)[1]

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
        table, features = read_columns(self.locate(), self.settings.features, self.settings.label)
        x, y = RowChecker(
            path=self.path, table=table, features=features, settings=self.settings, show_values=self.show_values
        ).select_rows()
        order = generator(0, Purpose.TEST_SHARE, client_id=self.client_id).permutation(len(y))
        held = min(round(self.settings.test_share * len(y)), len(y) - 1)
        test, train = np.sort(order[:held]), np.sort(order[held:])
        return ClientRows(train_x=x[train], train_y=y[train], test_x=x[test], test_y=y[test])

    def preprocess(self, rows: ClientRows, preprocessing: TablePreprocessing) -> tuple[Examples, Examples]:
        """Converts the client's rows to training and test examples. The test set may be empty."""
        task, place = self.settings.task, str(self.path)
        train = Examples.of((preprocessing.apply(rows.train_x), rows.train_y), place, task)
        if not len(rows.test_y):
            return train, Examples(train.x[:0], train.y[:0])
        return train, Examples.of((preprocessing.apply(rows.test_x), rows.test_y), place, task)

    def summarize(self) -> "FileSummary":
        """Summarizes the file before training. Raises DataError as ``read`` does, and if labels do not fit the task."""
        rows, task = self.read(), self.settings.task
        train_y, test_y = (
            Examples.of((np.zeros(len(y)), y), str(self.path), task).y if len(y) else np.zeros(0, dtype=np.int64)
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


def with_features(files: Sequence[ClientFile], features: tuple[str, ...]) -> list[ClientFile]:
    """Returns the same files with these columns as inputs."""
    settings = files[0].settings.model_copy(update={"features": features})
    return [replace(file, settings=settings) for file in files]
