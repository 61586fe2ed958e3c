"""A finished comparison: its table, its runs, and where it was recorded."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from fednar_ray.config import CompareSettings
from fednar_ray.experiments.comparison.view import (
    ComparedRun,
    build_comparison_chart,
    build_comparison_frame,
    summarize_comparison,
)
from fednar_ray.report.chart import describe_files, render_card
from fednar_ray.report.comparison_table import Row
from fednar_ray.tracking.ui_url import build_run_url


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Comparison:
    """A finished comparison. A notebook shows it as a table and curves.

    Examples:
        >>> comparison = fr.compare(fr.load("compare"), seeds=5)
        >>> comparison.to_frame().groupby("regularizer")["final_accuracy"].mean()
    """

    name: str  # <experiment>-<id>
    settings: CompareSettings
    rows: tuple[Row, ...]
    notes: tuple[str, ...]  # which variants are identical because nothing was clipped
    answer: tuple[str, ...]  # what came out, in sentences
    page: Path  # report.html
    run_id: str
    tracking_uri: str
    directory: Path  # runs/<name>
    runs: tuple[ComparedRun, ...]  # in the order in which they were trained
    primary: str | None  # the metric that counts, without its split

    @property
    def url(self) -> str | None:
        """The comparison's page in MLflow's UI; None if MLflow is a local file, which ``fednar ui`` shows."""
        return build_run_url(self.tracking_uri, self.run_id)

    def to_frame(self) -> pd.DataFrame:
        """Returns one row per run, that is per weight decay, regularizer and seed.

        Columns are, in this order: ``run``, the name of its directory; the final value, such as ``final_accuracy``, and
        its ``difference`` to the baseline with the same seed and weight decay; ``regularizer``, ``weight_decay`` and
        ``seed``; ``rounds_to_target`` and ``bytes_to_target``; ``clip_fraction``, the share of clipped steps;
        ``client_seconds`` and ``wall_seconds``; and ``alerts``.
        """
        return build_comparison_frame(self.runs, self.settings, self.primary)

    def plot(self, metric: str | None = None, *, axes: Axes | None = None) -> Axes:
        """Draws a metric over rounds: each variant's mean over seeds, in a band from the lowest to the highest seed.

        Args:
            metric: Its name, such as ``effective_weight_decay``. None: the primary metric on the test set.
            axes: The matplotlib axes to draw into; None: new ones.

        Returns:
            The axes.

        Raises:
            BadInput: No round has the metric.
        """
        return build_comparison_chart(self.runs, self.name, self.primary, metric).plot(axes)

    def __repr__(self) -> str:
        return f"<{self._summary}; {self.name}>"

    @property
    def _summary(self) -> str:
        return summarize_comparison(self.rows, self.settings)

    def _repr_html_(self) -> str:
        """Returns the table and the curves that a notebook shows."""
        cells = [row.format_cells() for row in self.rows]
        chart = build_comparison_chart(self.runs, self.name, self.primary)
        title, *more = self.answer or (self._summary,)
        table = [tuple(cells[0]), *(tuple(row.values()) for row in cells)]
        return render_card(title, table, chart, [*more, *self.notes, describe_files(self.directory, self.url)])
