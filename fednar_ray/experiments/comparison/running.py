"""Trains the runs of a comparison one after the other, or those that are left, and makes the table."""

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from fednar_ray.config import CompareSettings, Document, Experiment, flatten_chosen_settings
from fednar_ray.core.errors import BadInput, CheckpointError, ConfigError, Interrupted
from fednar_ray.core.generators import drain
from fednar_ray.core.metric_names import is_higher_better
from fednar_ray.core.reports import RoundRecord, RoundReport
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.alerts import Alert, find_alerts
from fednar_ray.experiments.alerts.callback import compute_chance_level
from fednar_ray.experiments.artifacts import log_optional_file
from fednar_ray.experiments.comparison.record import ComparisonRecord, PlannedRun, plan_runs
from fednar_ray.experiments.comparison.view import (
    ComparedRun,
    build_comparison_chart,
    build_comparison_frame,
    summarize_comparison,
)
from fednar_ray.experiments.given import NOTHING_GIVEN, Given
from fednar_ray.experiments.placement import plan_execution
from fednar_ray.experiments.prepare import choose_primary_metric
from fednar_ray.experiments.result import Result
from fednar_ray.experiments.resume import Resumption, resume_from
from fednar_ray.experiments.run_facts import describe_command
from fednar_ray.experiments.run_start import open_store
from fednar_ray.experiments.train import train
from fednar_ray.report.chart import render_card
from fednar_ray.report.comparison_answer import describe_comparison
from fednar_ray.report.comparison_page import ComparisonPage
from fednar_ray.report.comparison_table import Outcome, Row, build_metrics, build_rows
from fednar_ray.report.facts import RunFacts
from fednar_ray.report.identical import describe_identical, find_identical
from fednar_ray.report.notes import note_comparison
from fednar_ray.report.progress import ShowRound
from fednar_ray.report.run_plots import Variant
from fednar_ray.tracking.identity import check_not_copied, read_identity
from fednar_ray.tracking.journal import load_records
from fednar_ray.tracking.locks import DirectoryLocked
from fednar_ray.tracking.mlflow import Store
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.reading import find_mlflow_run, list_children
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.run_views import RunView
from fednar_ray.tracking.tags import IDENTICAL_TAG, KIND_TAG, PARENT_TAG
from fednar_ray.tracking.tracker import RunTracker
from fednar_ray.tracking.ui_url import build_run_url

log = logging.getLogger("fednar_ray")


class Progress(NamedTuple):
    """One round of one of the comparison's runs."""

    run: int  # counted from 0
    runs: int
    label: str
    report: RoundReport
    primary: str  # the metric that counts, without its split


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Comparison:
    """A finished comparison. A notebook shows it as a table and curves.

    Example:
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

        Columns are the final value of the measure, the rounds and bytes to the target, the share of clipped steps, the
        seconds, the alerts, and the name of the run's directory.
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
        return render_card(self._summary, [tuple(cells[0]), *(tuple(row.values()) for row in cells)], chart, self.notes)


def run_comparison(
    document: Document,
    session: RaySession,
    show: ShowRound,
    record: ComparisonRecord | None = None,
    given: Given = NOTHING_GIVEN,
) -> Comparison:
    """Runs ``iter_comparison`` to its end, and shows its progress.

    Args:
        document: The experiment, and what is varied.
        session: The Ray session that all runs share.
        show: Called after each round, with the number of rounds of all runs that are done.
        record: A comparison to resume.
        given: The objects that replace sections of the experiment.
    """
    rounds = document.experiment.federation.rounds

    def show_round(step: Progress) -> None:
        show(step.run * rounds + step.report.round_index + 1, step.label, step.report.metrics, step.primary)

    with closing(iter_comparison(document, session, record, given)) as comparing:
        return drain(comparing, show_round)


def iter_comparison(
    document: Document,
    session: RaySession,
    record: ComparisonRecord | None = None,
    given: Given = NOTHING_GIVEN,
) -> Generator[Progress, None, Comparison]:
    """Trains every variant with every seed, each as a child of one MLflow run. The generator returns the comparison.

    Args:
        document: The experiment, and what is varied.
        session: The Ray session that all runs share.
        record: A comparison to resume: its finished runs are read, an interrupted one continues from its checkpoint,
            and the others are trained. Without one, a new comparison is started.
        given: The objects that replace sections of the experiment.

    Yields:
        The progress after each round.

    Raises:
        BadInput: Something that was given is wrong; raised before Ray starts.
        RunFailed: A run failed.
    """
    store, experiment_id = open_store(document.experiment) if record is None else _open_store_of(record)
    planned = plan_runs(document.experiment, document.compare) if record is None else record.runs
    to_train = [run for run in planned if record is None or not _is_finished(record, run)]
    primary = _check(document, to_train, session, given)
    if record is None:
        run_id = store.create_run(experiment_id, f"{document.experiment.name} comparison", {KIND_TAG: "comparison"})
        directory = RunDirectory.of_run(document.experiment.name, run_id).path
        record = ComparisonRecord(directory=directory, document=document, runs=planned)
        resumed = False
    else:
        run_id, resumed = read_identity(record.directory).run_id, True
    with RunTracker(store, run_id, record.directory, resumed=resumed) as parent:
        if resumed:
            record = ComparisonRecord.load(record.directory)  # nobody else writes it from here on
            RunDirectory(record.directory).finished_mark.unlink(missing_ok=True)
        else:
            parent.log_params({**flatten_chosen_settings(document.experiment), **_build_params(document.compare)})
            parent.log_experiment(document.experiment)
            parent.log_view(_build_view(record.name, run_id, primary))
        record.document = document
        record.save()
        try:
            result = yield from _Runs(record, store, run_id, session, given).train_all(parent)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(f"resume it with: fednar compare --resume {record.name}") from interrupt
    RunDirectory(record.directory).finished_mark.touch()
    return result


def _open_store_of(record: ComparisonRecord) -> tuple[Store, str]:
    """Opens the store that a comparison was recorded in. No MLflow experiment is needed: its run exists."""
    check_not_copied(record.directory, "comparison")
    store = Store(read_identity(record.directory).tracking_uri)
    store.check()
    return store, ""


def _check(document: Document, to_train: Sequence[PlannedRun], session: RaySession, given: Given) -> str:
    """Checks the experiment and the target before anything is trained, and then starts Ray.

    Returns:
        The primary metric; an empty text if there is nothing to train.
    """
    if not to_train:
        return ""
    prepared = given.prepare(to_train[0].build_experiment(document.experiment), session)
    keys = {"accuracy": "target_accuracy", "rmse": "target_rmse"}
    task, wanted = prepared.federation.task, keys.get(prepared.primary, "target")
    wrong = [key for key in (*keys.values(), "target") if key != wanted and key in document.compare.model_fields_set]
    if refused := [key for key in wrong if getattr(document.compare, key) is not None]:
        what = task if prepared.primary in keys else f"the primary metric {prepared.primary}"
        raise ConfigError(
            tuple(
                f"compare.{key}: {getattr(document.compare, key):g} is not a target for {what}; set compare.{wanted}"
                for key in refused
            )
        )
    plan_execution(prepared, session)
    return prepared.primary


def _is_finished(record: ComparisonRecord, run: PlannedRun) -> bool:
    """Returns whether all rounds of a run are recorded, and its last records are complete."""
    directory = record.find_directory(run)
    if directory is None or not RunDirectory(directory).finished:
        return False
    return len(load_records(directory)) >= record.document.experiment.federation.rounds


def _build_view(name: str, run_id: str, primary: str) -> RunView:
    return RunView(
        key=run_id[:8],
        name=f"{name}: best first",
        metrics=[name_in_mlflow(f"test_{primary}"), name_in_mlflow("clip_fraction")],
        params=["regularizer.name", "regularizer.weight_decay", "seed"],
        tags=[],
        ascending=not is_higher_better(primary),
        parent=run_id,
    )


def _build_params(settings: CompareSettings) -> dict[str, object]:
    return {f"compare.{key}": value for key, value in settings.model_dump(mode="json").items()}


class _Runs:
    """The runs of a comparison that is being trained."""

    def __init__(self, record: ComparisonRecord, store: Store, run_id: str, session: RaySession, given: Given) -> None:
        self._record, self._store, self._run_id, self._session = record, store, run_id, session
        self._given = given
        self._settings = record.document.compare
        self._primary: str | None = None  # of the last run; all runs have the same

    def train_all(self, parent: RunTracker) -> Generator[Progress, None, Comparison]:
        """Trains the remaining runs, and then writes the table and the plots."""
        outcomes: dict[Variant, list[Outcome]] = {}
        resumptions = [self._find_resumption(run) for run in self._record.runs]
        self._end_abandoned()
        for index, (run, resumption) in enumerate(zip(self._record.runs, resumptions, strict=True)):
            outcome = yield from self._train_or_load(index, run, resumption)
            outcomes.setdefault(run.variant, []).append(outcome)
        return self._log_results(parent, outcomes)

    def _log_results(self, parent: RunTracker, outcomes: dict[Variant, list[Outcome]]) -> Comparison:
        files, document = RunDirectory(self._record.directory), self._record.document
        rows = tuple(build_rows(outcomes, self._settings, self._primary))
        notes = tuple(describe_identical(group, self._get_run_name(group)) for group in find_identical(outcomes))
        page = ComparisonPage(
            name=self._record.name,
            rows=rows,
            outcomes=outcomes,
            settings=self._settings,
            facts=self._collect_facts(),
            experiment=document.experiment,
            notes=notes,
        )
        log_optional_file(parent, page.draw, files.comparison_plot)
        log_optional_file(parent, page.write, files.report)
        cells = [row.format_cells() for row in rows]
        parent.log_table([{**row.format_cells(), **row.numbers} for row in rows], files.comparison_table.name)
        parent.log_metrics(build_metrics(rows))
        if notes:
            parent.log_tags({IDENTICAL_TAG: "; ".join(notes)})
        answer = tuple(describe_comparison(rows, self._settings))
        parent.log_note(note_comparison(answer[0], cells, self._run_id[:8], files.report.name), self._record.name)
        return Comparison(
            name=self._record.name,
            settings=self._settings,
            rows=rows,
            notes=notes,
            answer=answer,
            page=files.report,
            run_id=self._run_id,
            tracking_uri=parent.uri,
            directory=self._record.directory,
            runs=tuple(self._iter_compared(outcomes)),
            primary=self._primary,
        )

    def _collect_facts(self) -> RunFacts:
        """Returns the facts of the first run, which the others share, with the command of the comparison."""
        directory = self._record.find_directory(self._record.runs[0])
        assert directory is not None
        return replace(RunFacts.read(RunDirectory(directory).facts), command=describe_command())

    def _iter_compared(self, outcomes: Mapping[Variant, Sequence[Outcome]]) -> Iterator[ComparedRun]:
        """Yields the runs with their outcomes, of which each variant has one per seed."""
        left = {variant: iter(runs) for variant, runs in outcomes.items()}
        for run in self._record.runs:
            directory = self._record.find_directory(run)
            assert directory is not None
            yield ComparedRun(variant=run.variant, seed=run.seed, directory=directory, outcome=next(left[run.variant]))

    def _get_run_name(self, group: Sequence[Variant]) -> str:
        """Returns the name of a run of one of the variants, of fednar if it is among them."""
        wanted = max(group, key=lambda variant: variant.regularizer == "fednar")
        return next(run.directory for run in self._record.runs if run.variant == wanted and run.directory is not None)

    def _find_resumption(self, run: PlannedRun) -> Resumption | None:
        """Returns where an interrupted run resumes; None if it is finished, or has to be trained from round 0."""
        directory = self._record.find_directory(run)
        if directory is None or _is_finished(self._record, run):
            return None
        try:
            return resume_from(str(directory), self._build_experiment(run))
        except (ConfigError, DirectoryLocked):  # another experiment now; or a process that is training the run
            raise
        except (BadInput, CheckpointError) as error:
            log.warning("%s is trained from its first round: %s", run.label, error)
            run.directory = None
            return None

    def _end_abandoned(self) -> None:
        """Ends the MLflow runs that a killed process left and that are not resumed."""
        directories = [self._record.find_directory(run) for run in self._record.runs]
        kept = {_read_run_id(directory) for directory in directories if directory is not None}
        parent = find_mlflow_run(self._store, self._run_id)
        for child in () if parent is None else list_children(self._store, parent):
            if kept.isdisjoint((child.info.run_id, child.info.run_id[:8])):
                self._store.abandon_run(child.info.run_id)

    def _build_experiment(self, run: PlannedRun) -> Experiment:
        """Builds the run's experiment, with the group size of the earlier runs, even if those ran on other hardware."""
        base = self._record.document.experiment
        group_size = next((each.group_size for each in self._record.runs if each.group_size is not None), None)
        if base.execution.vectorize == "auto" and group_size is not None:
            execution = base.execution.model_copy(update={"vectorize": group_size})
            base = base.model_copy(update={"execution": execution})
        return run.build_experiment(base)

    def _train_or_load(
        self, index: int, run: PlannedRun, resumption: Resumption | None
    ) -> Generator[Progress, None, Outcome]:
        """Returns the outcome of a run, which is trained or resumed unless it is finished."""
        if resumption is None and run.directory is not None:
            return self._load_outcome(run)

        def on_start(directory: Path, group_size: int) -> None:
            run.directory, run.group_size = directory.name, group_size
            self._record.save()

        experiment = self._build_experiment(run) if resumption is None else resumption.experiment
        prepared = self._given.prepare(experiment, self._session)
        self._primary = prepared.primary
        training = train(
            prepared,
            self._session,
            tags={PARENT_TAG: self._run_id},
            name=run.label,
            resumption=resumption,
            on_start=on_start,
            ready_first=True,
            with_page=False,
            actors_of=self._record.name,  # the runs share their actors
        )
        result = yield from _add_label(training, index, len(self._record.runs), run.label, prepared.primary)
        return _build_outcome(result.history, result.alerts)

    def _load_outcome(self, run: PlannedRun) -> Outcome:
        directory, experiment = self._record.find_directory(run), self._build_experiment(run)
        assert directory is not None
        history = load_records(directory)[: experiment.federation.rounds]
        federation = self._given.load_data(experiment, self._session)
        self._primary, chance = choose_primary_metric(experiment, federation), compute_chance_level(federation)
        return _build_outcome(history, find_alerts(experiment, history, chance, is_compared=True))


def _build_outcome(history: Sequence[RoundRecord], alerts: Sequence[Alert]) -> Outcome:
    return Outcome(tuple(history), tuple(a.name for a in alerts), tuple(a.message for a in alerts))


def _read_run_id(directory: Path) -> str:
    """Returns the MLflow run of a run directory; if its run.json is damaged, the part in the directory's name."""
    try:
        return read_identity(directory).run_id
    except BadInput:
        return directory.name.rpartition("-")[2]


def _add_label(
    training: Generator[RoundReport, None, Result], run: int, runs: int, label: str, primary: str
) -> Generator[Progress, None, Result]:
    """Turns the reports of a training into progress, and returns its result."""
    try:
        while True:
            yield Progress(run, runs, f"training {run + 1} of {runs}, {label}", next(training), primary)
    except StopIteration as end:
        result: Result = end.value
        return result
    finally:
        training.close()
