"""Ends a run whose validation metric no longer improves."""

import math
from collections.abc import Sequence

from fednar_ray.core.callbacks import RoundCallback, RunInfo, StopRun
from fednar_ray.core.errors import ConfigError
from fednar_ray.core.metric_names import format_metric_value, is_higher_better
from fednar_ray.core.reports import RoundRecord, RoundReport

TRAINING = ("train_loss",)


class EarlyStopping(RoundCallback):
    """Ends a run once a metric has not improved for a number of rounds.

    A resumed run takes its earlier rounds into account, so that it ends where an uninterrupted one does. The result has
    the parameters of the last round, not of the best one.

    Args:
        patience: The number of rounds without an improvement after which the run ends.
        metric: The metric, such as ``validation_loss`` or ``train_loss``. None: the run's primary metric on the
            validation set. A metric of the test set is refused, since it judges the result.
        min_change: The least change that counts as an improvement.

    Raises:
        ConfigError: An argument is out of range, or the metric is one of the test set. ``fr.run`` raises it if rounds
            do not report the metric, before anything is started.

    Examples:
        >>> result = fr.run(fr.load("digits", ["data.validation=0.1"]), callbacks=[fr.EarlyStopping(patience=5)])
        >>> result.stop
    """

    def __init__(self, patience: int = 10, *, metric: str | None = None, min_change: float = 0.0) -> None:
        problems = [f"patience: {patience!r}: should be a whole number of rounds, at least 1"]
        if isinstance(patience, int) and not isinstance(patience, bool) and patience >= 1:
            problems = []
        if not min_change >= 0:
            problems.append(f"min_change: {min_change!r}: should be 0 or more")
        if metric is not None and metric.startswith("test_"):
            problems.append(f"metric: {metric!r}: a test metric cannot end a run, since it judges its result")
        if problems:
            raise ConfigError(tuple(f"EarlyStopping.{problem}" for problem in problems))
        self._patience, self._given, self._min_change = patience, metric, min_change
        self._metric, self._best, self._best_round = metric or "", math.nan, -1

    def on_prepare(self, run: RunInfo) -> None:
        """Chooses the metric, and checks that rounds report it. Forgets what an earlier run has reached."""
        self._metric = self._given or f"validation_{run.primary}"
        self._best, self._best_round = math.nan, -1
        if self._metric in (*run.metrics, *TRAINING):
            return
        usable = [name for name in (*run.metrics, *TRAINING) if not name.startswith("test_")]
        remedy = (
            ""
            if any(name.startswith("validation_") for name in usable)
            else "; set data.validation=0.1 to hold out examples"
        )
        known = f"use one of {', '.join(usable)}{remedy}"
        raise ConfigError((f"EarlyStopping.metric: {self._metric!r}: rounds do not report it; {known}",))

    def on_resume(self, history: Sequence[RoundRecord]) -> None:
        """Takes the earlier rounds into account."""
        for record in history:
            self._observe(record)

    def on_round_end(self, report: RoundReport) -> None:
        """Ends the run if the metric has not improved for too long. Rounds without the metric decide nothing."""
        if self._observe(report) and report.round_index - self._best_round >= self._patience:
            best = format_metric_value(self._metric.partition("_")[2], self._best)
            name = self._metric.replace("_", " ")
            raise StopRun(
                f"{name} has not improved for {report.round_index - self._best_round} rounds; its best value was "
                f"{best}, in round {self._best_round + 1}"
            )

    def _observe(self, record: RoundRecord) -> bool:
        """Remembers the value if it is the best; returns whether the round has one."""
        value = record.metrics.get(self._metric)
        if value is None:
            return False
        gain = value - self._best if is_higher_better(self._metric) else self._best - value
        if self._best_round < 0 or gain > self._min_change or (math.isnan(self._best) and not math.isnan(value)):
            self._best, self._best_round = value, record.round_index
        return True
