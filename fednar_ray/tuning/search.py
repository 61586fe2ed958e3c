"""Runs a search: from its file, over its trials, to its best experiment."""

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from fednar_ray.config import Document, Experiment, SearchSettings, dump, flatten_chosen_settings
from fednar_ray.core.errors import BadInput, FednarError, RunFailed
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.given import NOTHING_GIVEN, Given
from fednar_ray.experiments.redraw import write_search_report
from fednar_ray.experiments.run_start import open_store
from fednar_ray.report.chart import render_card
from fednar_ray.report.notes import note_search
from fednar_ray.report.search_report import SearchReport
from fednar_ray.tracking.file_writes import replace_file
from fednar_ray.tracking.identity import check_not_copied
from fednar_ray.tracking.mlflow import Store
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.notes import Note
from fednar_ray.tracking.registration import register_model
from fednar_ray.tracking.run_views import RunView
from fednar_ray.tracking.searches import ABOUT
from fednar_ray.tracking.tags import BEST_RUN_ID_TAG, BEST_TRIAL_TAG, STATUS_TAG
from fednar_ray.tracking.tracker import RunTracker
from fednar_ray.tracking.ui_url import build_run_url
from fednar_ray.tuning.checking import check_trials
from fednar_ray.tuning.creation import add_parent_run, create_search, get_search_name, load_search_document
from fednar_ray.tuning.final_runs import FinalRuns, FinalTraining, warn_if_different
from fednar_ray.tuning.resources import TrialResources, plan_resources
from fednar_ray.tuning.search_lock import hold_search
from fednar_ray.tuning.search_status import SearchStatus, Show
from fednar_ray.tuning.search_view import build_search_chart, build_search_frame, describe_search, tabulate_search
from fednar_ray.tuning.trial_plan import TrialPlan
from fednar_ray.tuning.trial_table import STOPPED, TrialEntry, TrialTable, check_name_is_free
from fednar_ray.tuning.tune_run import run_trials

log = logging.getLogger("fednar_ray")

BEST_SO_FAR = "best_so_far"  # the search's metric of the best finished trial, over the number of ended trials
SPECIFIC = {"points", "stop", "baseline"}  # sections of a search that are in its file, and no parameters in MLflow


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
        """Returns one row per trial, best first: status, rounds, metric, seconds, and a column per searched key."""
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
        return describe_search(self.trials, self.best, self.metric)

    def _repr_html_(self) -> str:
        """Returns the table and the chart that a notebook shows."""
        chart = build_search_chart(self.trials, self.name, self.metric, self.mode)
        test = self.test_metric.replace("_", " ")
        note = f"{test}, measured once: best {self.best_test:.4g}, baseline {self.baseline_test:.4g}"
        return render_card(self._summary, tabulate_search(self.trials, self.metric), chart, [note])


def start_search(
    document: Document, session: RaySession, show: Show, register: str | None = None, given: Given = NOTHING_GIVEN
) -> SearchResult:
    """Starts a new search and runs it to its end.

    Args:
        document: The experiment and the search section.
        session: The Ray session that trains the trials.
        show: Called with the state of the search after each event.
        register: The name under which MLflow registers the best model; None to register none.
        given: The objects that replace sections of the experiment.

    Raises:
        BadInput: The document or its data are wrong, or another process runs the search. Nothing was started.
        RunFailed: No trial has trained all rounds.
    """
    name = get_search_name(document)
    with hold_search(name):
        check_name_is_free(name)
        assert document.search is not None
        resources = plan_resources(document.experiment, session, given)
        document = check_trials(document, session, given)
        assert document.search is not None
        points = _list_first_points(document.search)
        with ThreadPoolExecutor(1) as background:
            opening = background.submit(open_store, document.experiment)
            session.connect()  # a local Ray starts while the store is opened
            store, experiment_id = opening.result()
        table = create_search(document, store, experiment_id)
        return _Search(document, table, store, session, resources, show, given).run(points, register)


def resume_search(
    name: str, session: RaySession, show: Show, register: str | None = None, given: Given = NOTHING_GIVEN
) -> SearchResult:
    """Resumes a search whose process was interrupted or killed. Of a finished search, only the end is repeated.

    Args:
        name: The search's name.
        session: The Ray session that trains the trials.
        show: Called with the state of the search after each event.
        register: The name under which MLflow registers the best model; None to register none.
        given: The objects that replace sections of the experiment, the same as at its start.

    Raises:
        BadInput: There is no search of that name, its files cannot be read, or another process runs it.
        RunFailed: No trial has trained all rounds.
    """
    check_not_copied(TrialTable.load(name).directory, "search")
    with hold_search(name):
        table = TrialTable.load(name)  # once more: the process that held the search may have changed it
        document = load_search_document(table)
        resources = plan_resources(document.experiment, session, given)
        document = check_trials(document, session, given)
        store = Store(table.tracking_uri)
        store.check()
        session.connect()
        add_parent_run(table, store)
        return _Search(document, table, store, session, resources, show, given, resume=True).run((), register)


class _Search:
    """A search that is running."""

    def __init__(
        self,
        document: Document,
        table: TrialTable,
        store: Store,
        session: RaySession,
        resources: TrialResources,
        show: Show,
        given: Given,
        *,
        resume: bool = False,
    ) -> None:
        assert document.search is not None
        self._document, self._search, self._table = document, document.search, table
        self._store, self._session, self._resources, self._show = store, session, resources, show
        self._given = given
        self._plan = TrialPlan(raw=document.raw, execution=resources.execution, search=document.search, given=given)
        self._rounds = document.experiment.federation.rounds
        self._resume = resume

    def run(self, points: Sequence[Mapping[str, Any]], register: str | None) -> SearchResult:
        """Trains the trials, then the final runs."""
        table, metric = self._table, self._search.metric
        with RunTracker(self._store, table.parent_id, table.directory, resumed=self._resume) as parent:
            self._log_inputs(parent)
            ended_early = self._run_trials(points, parent)
            parent.log_table(table.build_results(self._search.mode), table.files.results_table.name)
            best = self._find_best()
            training = FinalTraining(
                self._document, table, self._store, self._session, self._given, resume=self._resume
            )
            experiment = training.build_best(self._plan, best)
            self._write_best(experiment, parent)
            final = training.train(experiment)
            warn_if_different(final.best, best, metric)
            self._log_outputs(parent, best, final)
            if register is not None:
                register_model(self._store, final.best[0].run_id, register)
        return self._build_result(best, final, ended_early)

    def _log_inputs(self, parent: RunTracker) -> None:
        """Logs the experiment and the search section once, also if the search is resumed."""
        if self._table.described:
            return
        search = self._search.model_dump(mode="json")
        chosen = {
            *self._search.model_dump(exclude_unset=True),
            *(key.removeprefix("search.") for key in ABOUT),
        } - SPECIFIC
        described = {f"search.{key}": value for key, value in search.items() if key in chosen and value is not None}
        described |= {"search.scheduler": self._search.scheduler.name, "search.space": json.dumps(search["space"])}
        parent.log_params({**flatten_chosen_settings(self._document.experiment), **described})
        parent.log_experiment(self._document.experiment)
        parent.log_file(self._table.files.search_yaml)
        parent.log_view(self._build_view())
        self._table.described = True
        self._table.save()

    def _build_view(self) -> RunView:
        test = f"test_{self._search.metric.removeprefix('validation_')}"
        return RunView(
            key=self._table.parent_id[:8],
            name=f"{self._table.name}: best first",
            metrics=[name_in_mlflow(self._search.metric), name_in_mlflow(test)],
            params=list(self._search.space),
            tags=[STATUS_TAG],
            ascending=self._search.mode == "min",
            parent=self._table.parent_id,
        )

    def _run_trials(self, points: Sequence[Mapping[str, Any]], parent: RunTracker) -> str | None:
        def show(status: SearchStatus) -> None:
            if status.ended is not None and status.best is not None and status.best.value is not None:
                parent.log_metrics({BEST_SO_FAR: status.best.value}, step=status.done)
            self._show(status)

        self._session.discard_idle()
        return run_trials(
            self._table,
            self._store,
            self._plan,
            self._resources,
            points,
            show,
            rounds=self._rounds,
            resume=self._resume,
        )

    def _find_best(self) -> TrialEntry:
        best = self._table.find_best(self._search.mode)
        if best is not None:
            return best
        failures = [entry for entry in self._table.trials.values() if entry.failure is not None]
        why = f"; {failures[0].name} failed: {failures[0].failure}" if failures else ""
        raise RunFailed(
            f"no trial of {self._table.name} trained all {self._rounds} rounds, so there is no best trial{why}"
        )

    def _write_best(self, experiment: Experiment, parent: RunTracker) -> None:
        path = self._table.files.best_yaml
        replace_file(path, dump(experiment))
        parent.log_file(path)

    def _log_outputs(self, parent: RunTracker, best: TrialEntry, final: FinalRuns) -> None:
        """Logs the best trial's values, and the metrics that judge the search; its final runs have the others."""
        assert best.value is not None
        metric, test = name_in_mlflow(self._search.metric), name_in_mlflow(final.test_metric)
        parent.log_metrics(
            {
                f"best/{metric}": best.value,
                f"baseline/{metric}": final.baseline[0].metrics[self._search.metric],
                f"best/{test}": final.best_test,
                f"baseline/{test}": final.baseline_test,
            }
        )
        parent.log_params({f"best.{key}": value for key, value in best.values.items()})
        parent.log_tags({BEST_TRIAL_TAG: best.name, BEST_RUN_ID_TAG: final.best[0].run_id})
        parent.link_model(final.best[0].run_id)
        parent.log_note(self._describe(final), self._table.name)

    def _describe(self, final: FinalRuns) -> Note:
        trials = [asdict(entry) for entry in self._table.rank(self._search.mode)]
        tests = final.best_test, final.baseline_test
        view, report = self._table.parent_id[:8], f"{self._table.files.report.name}/index.html"
        keys = list(self._search.space)
        return note_search(trials, keys, self._search.metric, final.test_metric, tests, view, report)

    def _build_result(self, best: TrialEntry, final: FinalRuns, ended_early: str | None) -> SearchResult:
        table, seeds = self._table, self._search.seeds
        stopped = [entry for entry in table.trials.values() if entry.status == STOPPED]
        return SearchResult(
            name=table.name,
            metric=self._search.metric,
            mode=self._search.mode,
            directory=table.directory,
            trials=tuple(table.rank(self._search.mode)),
            best=best,
            best_file=table.files.best_yaml,
            test_metric=final.test_metric,
            best_test=final.best_test,
            baseline_test=final.baseline_test,
            rounds_trained=seeds * sum(entry.rounds for entry in table.trials.values()),
            rounds_saved=seeds * sum(self._rounds - entry.rounds for entry in stopped),
            ended_early=ended_early,
            report=_write_report(table),
            run_id=table.parent_id,
            tracking_uri=self._store.uri,
        )


def _write_report(table: TrialTable) -> SearchReport | None:
    try:
        return write_search_report(table.name, table.tracking_uri, table.files.report)
    except (FednarError, OSError) as error:
        log.warning("the report was not written: %s; write it with: fednar report %s", error, table.name)
        return None


def _list_first_points(search: SearchSettings) -> list[Mapping[str, Any]]:
    """Lists the values to try before all others: those of the file, then the best ones of an earlier search.

    Raises:
        BadInput: There is no such earlier search, or it did not search all keys.
    """
    points: list[Mapping[str, Any]] = list(search.points)
    if search.warm_start is None:
        return points
    earlier = TrialTable.load(search.warm_start.search)
    ranked = [entry for entry in earlier.rank(search.mode) if entry.value is not None]
    for entry in ranked[: search.warm_start.points]:
        missing = [key for key in search.space if key not in entry.values]
        if missing:
            raise BadInput(f"search.warm_start.search: {earlier.name} did not search {', '.join(missing)}")
        points.append({key: entry.values[key] for key in search.space})
    return points
