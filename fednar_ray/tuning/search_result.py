"""A finished search: its trials, its best experiment, and where it was recorded."""

import logging
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from fednar_ray.config import Document
from fednar_ray.core.errors import FednarError
from fednar_ray.core.private_metrics import describe_spending, format_epsilon
from fednar_ray.core.stages import announce
from fednar_ray.experiments.redraw import write_search_report
from fednar_ray.report.chart import describe_files, render_card
from fednar_ray.report.search_report import SearchReport
from fednar_ray.tracking.journal import load_records
from fednar_ray.tracking.ui_url import build_run_url
from fednar_ray.tuning.final_runs import FinalRuns
from fednar_ray.tuning.search_view import build_search_chart, build_search_frame, summarize_search, tabulate_search
from fednar_ray.tuning.trial_table import STOPPED, TrialEntry, TrialTable

log = logging.getLogger("fednar_ray")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SearchResult:
    """A finished search. A notebook shows it as a table of the best trials and a chart.

    Attributes:
        name: The search's name.
        metric: The metric that guided the search, such as ``validation_accuracy``.
        mode: ``max`` or ``min``: which values of the metric are better.
        directory: ``searches/<name>``.
        trials: All trials, best first.
        best: The best trial.
        best_file: The best experiment, as a file for ``fednar run``.
        test_metric: The primary metric on the test set, such as ``test_accuracy``.
        best_test: The test metric of the best experiment, trained again; averaged over ``search.seeds`` seeds.
        baseline_test: The same of the baseline.
        clipped: The share of steps that the best experiment's bound clips, trained again; averaged over rounds and
            seeds. None if its regularizer has no bound.
        privacy: What all runs of the search have spent of the clients' privacy together; None if they are not private.
        rounds_trained: Number of rounds that all trials trained.
        rounds_saved: Number of rounds that trials did not train because they were stopped early.
        ended_early: The stop rule that ended the search; None if none did.
        report: The written report; None if MLflow did not answer.
        run_id: The parent run in MLflow.
        tracking_uri: The MLflow store.
    """

    name: str
    metric: str
    mode: str
    directory: Path
    trials: tuple[TrialEntry, ...]
    best: TrialEntry
    best_file: Path
    test_metric: str
    best_test: float
    baseline_test: float
    clipped: float | None
    privacy: str | None
    rounds_trained: int
    rounds_saved: int
    ended_early: str | None
    report: SearchReport | None
    run_id: str
    tracking_uri: str

    @property
    def url(self) -> str | None:
        """The search's page in MLflow's UI; None if MLflow is a local file, which ``fednar ui`` shows."""
        return build_run_url(self.tracking_uri, self.run_id)

    def to_frame(self) -> pd.DataFrame:
        """Returns one row per trial, best first.

        Columns are, in this order: ``trial``; the metric by its name, such as ``validation_accuracy``; one per searched
        key; ``status``, which is finished, stopped early or failed; ``rounds``, ``seconds`` of training and
        ``failure``, the reason if it failed.
        """
        return build_search_frame(self.trials, self.metric)

    def plot(self, key: str | None = None, *, axes: Axes | None = None) -> Axes:
        """Draws the metric of each trial.

        Args:
            key: The searched key to draw it over, such as ``regularizer.clip_bound``. None: the order of the trials,
                with the best value so far.
            axes: The matplotlib axes to draw into; None: new ones.

        Returns:
            The axes.

        Raises:
            BadInput: The key was not searched, or its values are not numbers.
        """
        return build_search_chart(self.trials, self.name, self.metric, self.mode, key).plot(axes)

    def __repr__(self) -> str:
        return f"<{self._summary}; {self.name}>"

    @property
    def _summary(self) -> str:
        return summarize_search(self.trials, self.best, self.metric)

    def _repr_html_(self) -> str:
        """Returns the table and the chart that a notebook shows."""
        chart = build_search_chart(self.trials, self.name, self.metric, self.mode)
        test = self.test_metric.replace("_", " ")
        note = f"{test}, measured once: best {self.best_test:.4g}, baseline {self.baseline_test:.4g}"
        notes = [note, *([] if self.privacy is None else [self.privacy]), describe_files(self.directory, self.url)]
        return render_card(self._summary, tabulate_search(self.trials, self.metric), chart, notes)


def build_result(
    table: TrialTable, document: Document, best: TrialEntry, final: FinalRuns, ended_early: str | None
) -> SearchResult:
    """Builds the result of a search, and writes its report.

    Args:
        table: The trials, all of which have ended.
        document: The experiment and the search section.
        best: The best trial.
        final: The best experiment and the baseline, trained again.
        ended_early: The stop rule that ended the search; None if none did.
    """
    assert document.search is not None
    rounds, search = document.experiment.federation.rounds, document.search
    stopped = [entry for entry in table.trials.values() if entry.status == STOPPED or entry.ended is not None]
    return SearchResult(
        name=table.name,
        metric=search.metric,
        mode=search.mode,
        directory=table.directory,
        trials=tuple(table.rank(search.mode)),
        best=best,
        best_file=table.files.best_yaml,
        test_metric=final.test_metric,
        best_test=final.best_test,
        baseline_test=final.baseline_test,
        clipped=final.clipped,
        privacy=_describe_privacy(table, final, search.seeds),
        rounds_trained=search.seeds * sum(entry.rounds for entry in table.trials.values()),
        rounds_saved=search.seeds * sum(rounds - entry.rounds for entry in stopped),
        ended_early=ended_early,
        report=_write_report(table),
        run_id=table.parent_id,
        tracking_uri=table.tracking_uri,
    )


def _describe_privacy(table: TrialTable, final: FinalRuns, seeds: int) -> str | None:
    """Describes what all trials and the final runs have spent; None if they are not private."""
    runs = [run.metrics for run in (*final.best, *final.baseline)]
    if not any(map(format_epsilon, runs)):
        return None
    records = [load_records(table.get_trial_directory(entry)) for entry in table.trials.values()]
    return describe_spending([*runs, *(each[-1].metrics for each in records if each for _ in range(seeds))])


def _write_report(table: TrialTable) -> SearchReport | None:
    announce("writing the report")
    try:
        return write_search_report(table.name, table.tracking_uri, table.files.report)
    except (FednarError, OSError) as error:
        log.warning("the report was not written: %s; write it with: fednar report %s", error, table.name)
        return None
