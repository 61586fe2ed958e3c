"""Runs a search: from its file, over its trials, to its best experiment."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import psutil

from fednar_ray.config import Document, Experiment, SearchSettings
from fednar_ray.core.counting import format_count
from fednar_ray.core.errors import BadInput, CapacityError, RunFailed
from fednar_ray.core.stages import announce
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.given import NOTHING_GIVEN, Given
from fednar_ray.experiments.run_start import open_store
from fednar_ray.tracking.file_writes import replace_file
from fednar_ray.tracking.identity import check_not_copied
from fednar_ray.tracking.registration import register_model
from fednar_ray.tracking.store import Store
from fednar_ray.tracking.tracker import RunTracker
from fednar_ray.tuning.checking import check_trials
from fednar_ray.tuning.creation import add_parent_run, create_search, load_search_document
from fednar_ray.tuning.final_runs import FinalTraining, warn_if_different
from fednar_ray.tuning.packing import decide_packing
from fednar_ray.tuning.resources import TrialResources, plan_resources
from fednar_ray.tuning.search_lock import hold_search
from fednar_ray.tuning.search_log import log_best, log_inputs, log_order, log_outputs
from fednar_ray.tuning.search_result import SearchResult, build_result
from fednar_ray.tuning.search_status import SearchStatus, Show
from fednar_ray.tuning.started_processes import use_started_processes
from fednar_ray.tuning.strategy import count_trials
from fednar_ray.tuning.trial_plan import TrialPlan
from fednar_ray.tuning.trial_table import TrialEntry, TrialTable, check_name_is_free
from fednar_ray.tuning.tune_run import run_trials

log = logging.getLogger("fednar_ray")

BEST_SO_FAR = "best_so_far"  # the search's metric of the best finished trial, over the number of ended trials


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
    name = document.search_name
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
        memory, gpu_memory = psutil.virtual_memory().total, session.get_gpu_memory_bytes() if resources.gpu else None
        packing = decide_packing(document.search, resources.matrix, resources.concurrent, memory, gpu_memory)
        if packing.reason is not None and document.search.pack != "off":
            log.info("each process trains one trial at a time: %s", packing.reason)
        table = create_search(document, store, experiment_id, points, packing.width, gpu=resources.gpu)
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
        resources = plan_resources(_keep_on_cpu(document.experiment, table), session, given)
        if table.pack > 1 and table.gpu and not resources.gpu:
            raise CapacityError(f"{name}: its trials train on GPUs, and there are none; resume it where there are")
        document = check_trials(document, session, given)
        store = Store(table.tracking_uri)
        store.check()
        session.connect()
        add_parent_run(table, store)
        return _Search(document, table, store, session, resources, show, given, resume=True).run((), register)


def _keep_on_cpu(experiment: Experiment, table: TrialTable) -> Experiment:
    """Keeps the trials of a search that was packed without a GPU on CPUs, even if it is resumed where there is one."""
    if table.pack == 1 or table.gpu:
        return experiment
    return experiment.model_copy(update={"execution": experiment.execution.model_copy(update={"placement": "serial"})})


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
        self._store, self._session, self._show = store, session, show
        self._resources = resources.for_packs() if table.pack > 1 else resources
        self._given = given
        execution = {**resources.execution, **({"compile": "off"} if table.pack > 1 else {})}  # rows are not compiled
        self._plan = TrialPlan(raw=document.raw, execution=execution, search=document.search, given=given)
        self._rounds = document.experiment.federation.rounds
        self._resume = resume

    def run(self, points: Sequence[Mapping[str, Any]], register: str | None) -> SearchResult:
        """Trains the trials, then the final runs."""
        table, metric = self._table, self._search.metric
        with RunTracker(self._store, table.parent_id, table.directory, resumed=self._resume) as parent:
            table.files.finished_mark.unlink(missing_ok=True)
            log_inputs(parent, table, self._document)
            ended_early = self._run_trials(points, parent)
            log_order(parent, table, self._search)
            best = self._find_best()
            training = FinalTraining(
                self._document, table, self._store, self._session, self._given, resume=self._resume
            )
            experiment = training.build_best(self._plan, best)
            log_best(parent, table, experiment)
            final = training.train(experiment)
            warn_if_different(final.best, best, metric)
            log_outputs(parent, table, self._search, best, final)
            if register is not None:
                register_model(self._store, final.best[0].run_id, register)
        result = build_result(table, self._document, best, final, ended_early)
        replace_file(table.files.finished_mark, ended_early or "")
        return result

    def _run_trials(self, points: Sequence[Mapping[str, Any]], parent: RunTracker) -> str | None:
        def show(status: SearchStatus) -> None:
            if status.ended is not None and status.best is not None and status.best.value is not None:
                parent.log_metrics({BEST_SO_FAR: status.best.value}, step=status.done)
            self._show(status)

        self._session.discard_idle()
        packed = f", at most {self._table.pack} together in a process" if self._table.pack > 1 else ""
        announce(f"training {format_count(count_trials(self._search), 'trial')}{packed}")
        with use_started_processes() if self._session.owns_ray else nullcontext():
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
