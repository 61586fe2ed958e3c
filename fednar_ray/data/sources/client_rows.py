"""The rows of one client: converts the columns of its table to inputs and labels, and checks every value."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fednar_ray.config.tables import TabularSettings
from fednar_ray.core.errors import DataError
from fednar_ray.core.fednar_table_schema import TableSchema, format_level
from fednar_ray.data.examples import Array
from fednar_ray.data.sources.arrow_columns import find_text
from fednar_ray.data.sources.cell_kinds import PARSERS, find_decimal_commas, find_decimal_points
from fednar_ray.data.sources.moments import Moments
from fednar_ray.data.sources.tables import Table

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

LARGEST = float(np.finfo(np.float32).max)
LABELS = {
    "classification": "labels are whole numbers from 0 to classes-1",
    "binary": "the labels of task binary are 0 and 1",
    "regression": "labels are numbers that float32 can hold",
}
"""What labels must be, by task, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRows:
    """One client's rows, unchanged from its file. NaN is a missing value.

    Attributes:
        train_x: Inputs. A category is the index of its level.
        train_y: Labels. A text is its index in ``classes``.
        test_x: Inputs, likewise.
        test_y: Labels, likewise.
        levels: The levels of each input of this client, empty for numbers; None if inputs have no named columns.
        classes: The texts of this client's labels; None if labels are numbers.
    """

    train_x: Floats
    train_y: Array
    test_x: Floats
    test_y: Array
    levels: tuple[tuple[str, ...], ...] | None = None
    classes: tuple[str, ...] | None = None

    @property
    def moments(self) -> Moments:
        """The moments of the training inputs. Those of categories only count values, since indices have no mean."""
        x = self.train_x.copy()
        for column, levels in enumerate(self.levels or ()):
            if levels:
                x[:, column] = np.where(np.isnan(x[:, column]), np.nan, 0.0)
        return Moments.of(x)

    def encode(self, schema: TableSchema | None) -> "ClientRows":
        """Returns the same rows with the levels and classes of the schema that all clients share."""
        if schema is None or self.levels is None:
            return self
        train_x, test_x = self.train_x.copy(), self.test_x.copy()
        for i, (column, levels) in enumerate(zip(schema.columns, self.levels, strict=True)):
            if levels:
                for x in (train_x, test_x):
                    x[:, i] = _translate(x[:, i], levels, column.levels)
        train_y, test_y = self.train_y, self.test_y
        if self.classes is not None and schema.class_names is not None:
            own, agreed = self.classes, schema.class_names
            train_y, test_y = (_translate(y, own, agreed).astype(np.int64) for y in (train_y, test_y))
        levels_of_all = tuple(column.levels for column in schema.columns)
        return ClientRows(
            train_x=train_x,
            train_y=train_y,
            test_x=test_x,
            test_y=test_y,
            levels=levels_of_all,
            classes=schema.class_names,
        )

    @property
    def label_moments(self) -> Moments:
        """The moments of the training labels, as numbers."""
        return Moments.of(self.train_y.astype(np.float64))

    @property
    def digest(self) -> str:
        """The SHA-256 of all rows, in hexadecimal."""
        parts = (self.train_x, self.train_y, self.test_x, self.test_y)
        found = hashlib.sha256(b"".join(np.ascontiguousarray(part).data for part in parts))
        if any(self.levels or ()) or self.classes is not None:
            found.update(json.dumps([self.levels, self.classes]).encode())
        return found.hexdigest()


def _translate(codes: Array, own: Sequence[str], agreed: Sequence[str]) -> Floats:
    """Replaces indices of a client's own levels by those of the agreed ones. NaN stays."""
    position = {level: float(i) for i, level in enumerate(agreed)}
    table = np.array([*(position.get(level, np.nan) for level in own), np.nan])
    return table[np.where(np.isnan(codes), len(own), codes).astype(np.int64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChecker:
    """Converts and checks the table of one client.

    Attributes:
        path: The client's file, or a silo's directory, for messages.
        table: The columns of the file.
        features: The names of the inputs.
        settings: The ``data`` section.
        show_values: Whether messages may show a value of the file.
    """

    path: Path
    table: Table
    features: Sequence[str]
    settings: TabularSettings
    show_values: bool

    def select_rows(self) -> tuple[Floats, Array, Rows]:
        """Returns the inputs [n, f…] and the labels [n] of all rows that are used, and their numbers in the file, [n].

        Raises:
            DataError: A value is text, infinite or not a label of the task; a value is missing, and the settings refuse
                missing values; or columns do not fit together. The message names the file and the first bad cell.
        """
        x, y = self._build_arrays()
        kept = self._find_complete_rows(x, y)
        self._check_values(kept)
        return x[kept], y[kept], kept

    def _build_arrays(self) -> tuple[Floats, Array]:
        label, columns = self.settings.label, self.table.columns
        text = list(self._iter_text_problems(tuple(dict.fromkeys((*self.features, label)))))
        if text:
            raise DataError("\n".join(text))
        x, y = _join_inputs([columns[name] for name in self.features], self.features, self.path), columns[label]
        if y.ndim != 1 or len(x) != len(y):
            raise DataError(f"{self.path}: inputs {x.shape} and {label} {y.shape} do not have one label per row")
        if not len(y):
            raise DataError(f"{self.path}: has no rows")
        return x, y

    def _iter_text_problems(self, used: Sequence[str]) -> Iterator[str]:
        """Yields one line per column that holds text instead of numbers, or numbers like 1,5 beside 1.5."""
        for name in used:
            commas = self._find_decimal_commas(name)
            if len(commas):
                point = self._find_decimal_point(used)
                but = "" if point is None else f", but {point} has a decimal point"
                remedy = "write all numbers of a file alike, or set data.csv.decimal: ',' or data.types"
                yield self._describe(name, commas, f"has a decimal comma{but}; {remedy}: {{{name}: category}}")
            elif self.table.columns[name].dtype == object:
                yield self._describe_text(name)

    def _find_decimal_commas(self, name: str) -> Rows:
        kind = self.table.kinds.get(name)
        if kind is None or self.settings.types.get(name) == "category":
            return np.empty(0, dtype=np.int64)
        return find_decimal_commas(kind)

    def _find_decimal_point(self, used: Sequence[str]) -> str | None:
        """Returns the place of a number like 1.5; None if the used columns of the file have none."""
        found = ((name, find_decimal_points(self.table.kinds[name])) for name in used)
        places = (f"{self.table.find_cell(int(rows[0]), name)[0]}, column {name}" for name, rows in found if len(rows))
        return next(places, None)

    def _describe_text(self, name: str) -> str:
        """Describes the cells of a column that hold text."""
        classes = name == self.settings.label and self.settings.task != "regression"
        remedy = (
            "labels are whole numbers from 0" if classes else "write numbers as 1234.5, and leave missing cells empty"
        )
        if name != self.settings.label:
            remedy += f", or leave the column out with data.exclude, or set data.types: {{{name}: category}}"
        wanted = self.settings.types.get(name, "number")
        rows = find_text(self.table.columns[name])
        if wanted in PARSERS:
            cells = map(format_level, self.table.columns[name].tolist())
            rows = np.array([i for i, cell in enumerate(cells) if cell is not None and PARSERS[wanted](cell) is None])
        return self._describe(name, rows, f"is not a {wanted}; {remedy}")

    def _describe(self, name: str, rows: Rows, why: str) -> str:
        return self.table.describe_bad_values(name, rows, why, show_values=self.show_values)

    def _find_complete_rows(self, x: Floats, y: Array) -> Rows:
        """Finds the rows to use, by the setting ``missing``. Raises DataError for missing values that it refuses."""
        gaps: npt.NDArray[np.bool_] = np.isnan(x).reshape(len(x), -1)
        unlabeled = np.isnan(y) if np.issubdtype(y.dtype, np.floating) else np.zeros(len(y), dtype=bool)
        if self.settings.missing == "drop":
            kept = np.flatnonzero(~(gaps.any(axis=1) | unlabeled))
            if not len(kept):
                raise DataError(f"{self.path}: every row has a missing value; data.missing: mean keeps these rows")
            return kept
        if unlabeled.any():
            first = self.table.find_cell(int(unlabeled.argmax()), self.settings.label)[0]
            count = "1 row has" if unlabeled.sum() == 1 else f"{unlabeled.sum()} rows have"
            where = f"{count} no {self.settings.label} (the first: {first})"
            raise DataError(f"{self.path}: {where}; data.missing: drop leaves them out")
        if self.settings.missing == "refuse" and gaps.any():
            incomplete = set(np.flatnonzero(gaps.any(axis=0)).tolist())
            one_each = gaps.shape[1] == len(self.features)  # else inputs are arrays of several columns
            named = [name for i, name in enumerate(self.features) if i in incomplete or not one_each]
            first = self.table.find_cell(int(gaps.any(axis=1).argmax()), named[0])[0]
            are_missing = "1 value is missing" if gaps.sum() == 1 else f"{gaps.sum()} values are missing"
            places = f"{are_missing}, of {', '.join(named)}"
            raise DataError(f"{self.path}: {places}; set data.missing to mean or drop (the first: {first})")
        return np.arange(len(y))

    def _check_values(self, kept: Rows) -> None:
        """Raises DataError for infinite inputs, and for labels that the task does not have."""
        label, task, columns = self.settings.label, self.settings.task, self.table.columns
        problems = [
            (name, _find_infinite(columns[name][kept]), "is infinite, or more than float32 can hold (3.4e38)")
            for name in self.features
        ]
        y = columns[label][kept]
        named = label in self.table.kinds and self.table.kinds[label].kind == "category"
        if not named and np.issubdtype(y.dtype, np.number) and not np.issubdtype(y.dtype, np.complexfloating):
            wrong = _find_infinite(y) if task == "regression" else _find_non_classes(y, task)
            problems.append((label, wrong, f"is not a label; {LABELS[task]}"))
        found = [self._describe(name, kept[rows], why) for name, rows, why in problems if len(rows)]
        if found:
            raise DataError("\n".join(found))


def _find_infinite(values: Array) -> Rows:
    """Finds the rows of values [n, …] with a number that float32 cannot hold."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    return np.flatnonzero((np.abs(flat) > LARGEST).any(axis=1))


def _find_non_classes(labels: Array, task: str) -> Rows:
    """Finds the rows of labels [n] that are not classes of the task."""
    numbers = labels.astype(np.float64)
    wrong = ~np.isfinite(numbers) | (numbers != np.round(numbers)) | (numbers < 0)
    return np.flatnonzero(wrong | (numbers > 1) if task == "binary" else wrong)


def _join_inputs(columns: Sequence[Array], features: Sequence[str], path: Path) -> Floats:
    """Joins columns [n] and arrays [n, k] to inputs. A single array may have any shape [n, …], and keeps it."""
    for name, column in zip(features, columns, strict=True):
        kind = column.dtype
        if not (np.issubdtype(kind, np.number) or kind == np.bool_) or np.issubdtype(kind, np.complexfloating):
            raise DataError(f"{path}: {name} holds {kind}; real numbers are needed")
        if column.ndim == 0 or len(column) != len(columns[0]):
            raise DataError(f"{path}: {name} does not have as many rows as {features[0]}")
    arrays = [column[:, None] if column.ndim == 1 else column for column in columns]
    if len(arrays) == 1:
        return arrays[0].astype(np.float64)
    if any(array.ndim > 2 for array in arrays):
        raise DataError(f"{path}: if there are several arrays, each must be [n] or [n, k]")
    return np.concatenate(arrays, axis=1, dtype=np.float64)
