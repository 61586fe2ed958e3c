"""The checked rows of one file, how they are split into training and test rows, and the facts of its columns."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fednar_ray.config.tables import TabularSettings
from fednar_ray.core.random import Purpose, generator
from fednar_ray.data.examples import Array
from fednar_ray.data.sources.agreement import ColumnFacts, Facts
from fednar_ray.data.sources.client_rows import ClientRows, RowChecker
from fednar_ray.data.sources.tables import Table, read_columns

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedTable:
    """The rows of a file that are used.

    Attributes:
        table: The columns of the file.
        features: The names of the inputs.
        settings: The ``data`` section.
        x: The inputs [n, f…].
        y: The labels [n].
        kept: The numbers of these rows in the file, [n].
        show_values: Whether facts may show a value of the file.
    """

    table: Table
    features: tuple[str, ...]
    settings: TabularSettings
    x: npt.NDArray[np.float64]
    y: Array
    kept: Rows
    show_values: bool

    def split(self, train: Rows, test: Rows) -> tuple[ClientRows, Facts | None]:
        """Splits the rows, and describes each column; None if inputs have no named columns.

        Args:
            train: The indices of the training rows in ``x``.
            test: The indices of the test rows.
        """
        x, y, table = self.x, self.y, self.table
        rows = ClientRows(train_x=x[train], train_y=y[train], test_x=x[test], test_y=y[test])
        if not table.kinds:
            return rows, None
        label = table.kinds[self.settings.label]
        rows = replace(
            rows,
            levels=tuple(table.kinds[name].levels for name in self.features),
            classes=label.levels if label.kind == "category" else None,
        )
        facts = [
            describe_column(
                table,
                name,
                self.kept[train],
                self.kept[test],
                show_values=self.show_values,
                is_class=name == self.settings.label and self.settings.task != "regression",
            )
            for name in (*self.features, self.settings.label)
        ]
        return rows, facts


def read_checked(
    file: Path, settings: TabularSettings, *, place: Path, show_values: bool = True, groups: str | None = None
) -> CheckedTable:
    """Reads and checks a file.

    Args:
        file: The file.
        settings: The ``data`` section.
        place: The file, or a silo's directory, for messages.
        show_values: Whether messages and facts may show a value.
        groups: See ``read_columns``.

    Raises:
        DataError: The file cannot be read, or does not fit the settings. The message names the file.
    """
    table, features = read_columns(file, settings, groups)
    x, y, kept = RowChecker(
        path=place, table=table, features=features, settings=settings, show_values=show_values
    ).select_rows()
    return CheckedTable(table=table, features=features, settings=settings, x=x, y=y, kept=kept, show_values=show_values)


def hold_out(rows: int, share: float, client_id: int) -> tuple[Rows, Rows]:
    """Draws a client's training and test rows, in rising order. The same in every run; a training row is left."""
    order = generator(0, Purpose.TEST_SHARE, client_id=client_id).permutation(rows)
    held = min(round(share * rows), rows - 1)
    return np.sort(order[held:]), np.sort(order[:held])


def describe_column(
    table: Table, name: str, train: Rows, test: Rows, *, show_values: bool, is_class: bool = False
) -> ColumnFacts:
    """Describes a column of a file.

    Args:
        table: The file.
        name: The column.
        train: The numbers of its training rows in the file.
        test: The numbers of its test rows.
        show_values: Whether the example may show a value.
        is_class: Whether the column is a label whose numbers are classes.
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
    if column.kind != "category" and not is_class:
        return ColumnFacts(name=name, kind=column.kind, example=example, test_places={}, missing=missing)
    trained = set(column.values[train][~np.isnan(column.values[train])].astype(int).tolist())
    codes, first = np.unique(column.values[test], return_index=True)
    places = {
        column.levels[int(code)] if column.levels else str(int(code)): table.find_cell(int(test[row]), name)[0]
        for code, row in zip(codes, first, strict=True)
        if not np.isnan(code) and int(code) not in trained
    }
    levels = tuple(column.levels[code] if column.levels else str(code) for code in sorted(trained))
    return ColumnFacts(name=name, kind=column.kind, example=example, levels=levels, test_places=places, missing=missing)
