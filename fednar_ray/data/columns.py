"""What is shown of a table's column."""

from dataclasses import dataclass
from datetime import timedelta

from fednar_ray.core.errors import format_names
from fednar_ray.core.fednar_table_schema import EPOCH, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSummary:
    """A summary of one input column over the training rows of all files.

    Attributes:
        name: The column's name.
        kind: number, boolean, date or category.
        levels: The levels of a category; None for other kinds.
        mean: The mean, of dates in days since 1970-01-01; None for categories, and if there is no value.
        std: The standard deviation, likewise.
        missing: The number of rows without a value.
    """

    name: str
    kind: Kind
    levels: tuple[str, ...] | None
    mean: float | None
    std: float | None
    missing: int

    def describe(self) -> str:
        """Describes the column in one line."""
        missing = f", {self.missing:,} missing" if self.missing else ""
        return f"{self.kind}{self._describe_values()}{missing}"

    def _describe_values(self) -> str:
        if self.levels is not None:
            return f", {len(self.levels)} level{'s' * (len(self.levels) != 1)}: {format_names(self.levels)}"
        if self.mean is None or self.std is None:
            return ", without values"
        if self.kind == "boolean":
            return f", {self.mean:.1%} true"
        if self.kind == "date":
            return f", mean {(EPOCH + timedelta(days=self.mean)).date()}, standard deviation {self.std:.4g} days"
        return f", mean {self.mean:.4g}, standard deviation {self.std:.4g}"
