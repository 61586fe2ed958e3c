"""The schema of tables: the kind and the levels of each input column, and the names of the classes.

MLflow copies this file into the saved model, so it imports nothing of fednar_ray.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Kind = Literal["number", "category", "boolean", "date"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FORMAT = 1  # of the JSON; a later version may add keys

MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "null", "NULL")
"""The texts that mean a missing value."""
BOOLEANS = {"true": 1.0, "yes": 1.0, "1": 1.0, "false": 0.0, "no": 0.0, "0": 0.0}
"""The texts of a boolean, in lower case."""

PREDICTION = "prediction"
"""The column of predictions."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = r"(?:[T ](\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?)\s?(Z|[+-]\d{2}:?\d{2})?)?"
_YEAR_FIRST = re.compile(rf"(\d{{4}})[-/](\d{{1,2}})[-/](\d{{1,2}}){_TIME}")
_DAY_FIRST = re.compile(rf"(\d{{1,2}})\.(\d{{1,2}})\.(\d{{4}}){_TIME}")

Floats = npt.NDArray[np.float64]


def parse_date(text: str) -> float | None:
    """Parses a date, with or without a time, such as ``2020-01-31``, ``2020-01-31T12:30Z`` or ``31.01.2020``.

    Args:
        text: The date: year, month and day with dashes or slashes, or day, month and year with dots.

    Returns:
        Days since 1970-01-01, with a fraction. A time without a zone is in UTC. None if the text is not such a date.
        ``01/02/2020`` is none, because it may be in January or February.
    """
    if (found := _YEAR_FIRST.fullmatch(text)) is not None:
        year, month, day, time, zone = found.groups()
    elif (found := _DAY_FIRST.fullmatch(text)) is not None:
        day, month, year, time, zone = found.groups()
    else:
        return None
    try:
        moment = datetime.fromisoformat(f"{year}-{month:0>2}-{day:0>2}T{time or '00:00'}{zone or 'Z'}")
    except ValueError:
        return None
    return (moment - EPOCH) / timedelta(days=1)


def parse_boolean(text: str) -> float | None:
    """Parses true, yes, false and no in any case, and 1 and 0. None if the text is none of them."""
    return BOOLEANS.get(text.lower())


def format_level(cell: Any) -> str | None:
    """Returns the text of a cell of a category, as it is in a .csv file; None for a missing value."""
    if cell is None or cell is np.ma.masked:
        return None
    if isinstance(cell, bool | np.bool_):
        return str(bool(cell)).lower()
    if isinstance(cell, float | np.floating):
        if np.isnan(cell):
            return None
        return str(int(cell)) if float(cell).is_integer() else repr(float(cell))
    text = str(cell).strip()
    return None if text in MISSING or text in ("<NA>", "NaT") else text


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSchema:
    """One input column.

    Attributes:
        name: The column's name.
        kind: number; boolean (0 and 1); date (days since 1970-01-01); or category.
        levels: The texts of a category, sorted. A category's code is its index here.
    """

    name: str
    kind: Kind = "number"
    levels: tuple[str, ...] = ()

    def encode(self, cells: Any) -> Floats:
        """Converts the cells of a column, a pandas Series, to numbers: those of the raw matrix that the model takes.

        Returns:
            float64 [n], in which NaN is a missing value.

        Raises:
            ValueError: A cell is not of this kind, or its level is unknown. The message names the column and the cell.
        """
        if self.kind == "number":
            return _to_numbers(self.name, cells)
        if self.kind == "date" and cells.dtype.kind == "M":
            return _count_days(cells)
        if self.kind == "boolean" and cells.dtype.kind in "biuf":
            return _to_numbers(self.name, cells)
        return self._encode_texts(cells)

    def _encode_texts(self, cells: Iterable[Any]) -> Floats:
        known: dict[Any, float] = {None: np.nan, **{level: float(i) for i, level in enumerate(self.levels)}}
        codes, wrong = [], []
        for cell in cells:
            text = format_level(cell)
            if text not in known:
                number = None if text is None or self.kind == "category" else self._parse(text)
                if number is None:
                    wrong.append(text)
                    continue
                known[text] = number
            codes.append(known[text])
        if wrong:
            self._refuse(wrong)
        return np.array(codes, dtype=np.float64)

    def _parse(self, text: str) -> float | None:
        return parse_date(text) if self.kind == "date" else parse_boolean(text)

    def _refuse(self, wrong: Sequence[str | None]) -> None:
        shown = ", ".join(repr(text) for text in list(dict.fromkeys(wrong))[:5])
        if self.kind == "category":
            known = ", ".join(self.levels[:20]) + (", …" if len(self.levels) > 20 else "")
            raise ValueError(f"column {self.name}: unknown level {shown}; the model knows {known}")
        remedy = "dates are written 2020-01-31" if self.kind == "date" else "booleans are true, false, yes, no, 1 or 0"
        raise ValueError(f"column {self.name}: {shown} is not a {self.kind}; {remedy}")

    def decode(self, numbers: Floats) -> list[Any]:
        """Converts numbers of the raw matrix back to cells: texts of a category, ISO dates, otherwise numbers."""
        if self.kind == "category":
            return [None if np.isnan(code) else self.levels[int(code)] for code in numbers]
        if self.kind == "date":
            return [None if np.isnan(days) else (EPOCH + timedelta(days=days)).isoformat() for days in numbers.tolist()]
        return list(numbers.tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSchema:
    """The columns that a model takes, in the order of its raw matrix, and the classes that it predicts.

    Attributes:
        columns: The input columns.
        task: classification, binary or regression.
        label: The name of the column that is predicted.
        class_names: The text of each class by its number; None if the labels are numbers.
        network_inputs: Number of inputs of the trained network, in which each level of a category is one; None before
            training.
        network_outputs: Number of outputs that the network was built with; likewise.
    """

    columns: tuple[ColumnSchema, ...]
    task: str = "classification"
    label: str | None = None
    class_names: tuple[str, ...] | None = None
    network_inputs: int | None = None
    network_outputs: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    def encode(self, frame: Any) -> Floats:
        """Converts a pandas DataFrame with these columns, in any order, to the raw matrix [n, columns].

        Raises:
            ValueError: A column is missing, or cells do not fit; the message has one line per column.
        """
        problems, found = [f"column {name} is missing" for name in self.names if name not in frame], []
        for column in self.columns:
            if column.name in frame:
                try:
                    found.append(column.encode(frame[column.name]))
                except ValueError as error:
                    problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))
        return np.stack(found, axis=1)

    def decode(self, rows: Floats) -> dict[str, list[Any]]:
        """Converts rows of the raw matrix [n, columns] back to cells by column."""
        return {column.name: column.decode(rows[:, i]) for i, column in enumerate(self.columns)}

    def write(self, path: Path) -> None:
        """Writes the schema as JSON."""
        document = {"format": FORMAT, **asdict(self)}
        path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def build_predictions(self, outputs: Floats) -> dict[str, Any]:
        """Turns the outputs of a network into the columns of its predictions.

        Args:
            outputs: One output per class, [n, classes]; the logit of class 1, [n, 1]; or of a regression the number,
                [n, 1].

        Returns:
            The column ``prediction`` [n], and per class its column ``probability_<class>`` [n], computed in float64.
            Classes without names have numbers.
        """
        logits = outputs.astype(np.float64)
        if self.task == "regression":
            return {PREDICTION: logits[:, 0]}
        chosen = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(axis=1)
        if logits.shape[1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = weights / weights.sum(axis=1, keepdims=True)
        classes = np.array(self.class_names or range(logits.shape[1]))
        named = dict(zip(name_probabilities(classes.tolist()), probabilities.T, strict=True))
        return {PREDICTION: classes[chosen.astype(np.int64)], **named}


def read_schema(path: Path) -> TableSchema:
    """Reads the schema that ``TableSchema.write`` wrote."""
    given = json.loads(path.read_text(encoding="utf-8"))
    columns = [
        ColumnSchema(name=column["name"], kind=column["kind"], levels=tuple(column["levels"]))
        for column in given["columns"]
    ]
    names = given.get("class_names")
    return TableSchema(
        columns=tuple(columns),
        task=given["task"],
        label=given.get("label"),
        class_names=None if names is None else tuple(names),
        network_inputs=given.get("network_inputs"),
        network_outputs=given.get("network_outputs"),
    )


def _count_days(moments: Any) -> Floats:
    """Converts a Series of datetimes to days since 1970-01-01, with NaN for missing values."""
    if getattr(moments.dtype, "tz", None) is not None:
        moments = moments.dt.tz_convert("UTC").dt.tz_localize(None)
    values = moments.to_numpy().astype("datetime64[us]")
    return np.where(np.isnat(values), np.nan, values.astype(np.int64) / 86_400_000_000)


def _to_numbers(name: str, cells: Any) -> Floats:
    """Converts a Series of numbers, or of texts that are numbers, to float64."""
    if cells.dtype.kind in "mMc":  # dates, durations and complex numbers, which numpy would convert silently
        raise ValueError(f"column {name}: holds {cells.dtype}; real numbers are needed")
    if cells.dtype.kind not in "biuf":
        missing = [isinstance(cell, str) and cell.strip() in MISSING for cell in cells]
        cells = cells.mask(np.array(missing, dtype=bool), None)
    try:
        numbers: Floats = cells.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name}: {error}; numbers are needed") from None
    return numbers


def name_probabilities(class_names: Sequence[Any]) -> list[str]:
    """Names the columns of probabilities."""
    return [f"probability_{name}" for name in class_names]
