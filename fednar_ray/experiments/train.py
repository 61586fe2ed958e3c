"""Trains a prepared experiment, and records it in MLflow and in a run directory, round by round."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from fednar_ray.core.callbacks import CallbackList, RoundCallback
from fednar_ray.core.reports import RoundReport
from fednar_ray.core.stages import announce
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.artifacts import log_optional_file, log_outputs, log_page
from fednar_ray.experiments.callbacks import prepare_callbacks
from fednar_ray.experiments.iter_rounds import build_round_plan, train_rounds
from fednar_ray.experiments.pack_member import PackMember
from fednar_ray.experiments.placement import ExecutionPlan, open_pool, plan_execution
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.experiments.private_runs import open_key
from fednar_ray.experiments.result import Result, load_result
from fednar_ray.experiments.resume import Resumption
from fednar_ray.experiments.run_facts import collect_facts
from fednar_ray.experiments.run_start import ResumedRun, build_start
from fednar_ray.experiments.tracked_run import TrackedRun, start_tracked_run
from fednar_ray.report.facts import RunFacts
from fednar_ray.report.notes import note_run
from fednar_ray.tracking.file_writes import raise_as_run_failed
from fednar_ray.tracking.mlflow_names import START_UP
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.shared_sender import SharedSender
from fednar_ray.tracking.tags import END_TAG, PARENT_TAG


def train(
    prepared: Prepared,
    session: RaySession,
    *,
    tags: Mapping[str, str] | None = None,
    name: str | None = None,
    resumption: Resumption | None = None,
    on_start: Callable[[Path, ExecutionPlan], None] | None = None,
    ready_first: bool = False,
    with_page: bool = True,
    callbacks: Sequence[RoundCallback] = (),
    actors_of: str | None = None,
    member: PackMember | None = None,
    sender: SharedSender | None = None,
) -> Generator[RoundReport, None, Result]:
    """Trains and records a run, yielding one report per round. The generator returns the result.

    Args:
        prepared: The experiment with its data and model.
        session: The Ray session that clients train in.
        tags: Tags of a new MLflow run.
        name: Name of a new MLflow run; None: the experiment's. Log lines call the run by it, too.
        resumption: The run and checkpoint to resume from. None starts a new run.
        on_start: Called before the first round of a new run, with its directory and its execution plan.
        ready_first: Whether the first round waits until all actors have warmed up, so that its time is comparable.
        with_page: Whether the run gets a page of its own; those of a comparison are part of the comparison's page.
        callbacks: The caller's callbacks, which see each round after it was recorded.
        actors_of: The name by which Ray's dashboard names the actors; None: the name of the run,
            or of the experiment.
        member: The run's place in a pack of runs that this process trains together.
        sender: Sends the records of several runs to MLflow, whose end waits for MLflow. None: this run waits itself.
    """
    prepare_callbacks(prepared, callbacks)
    start = build_start(prepared, resumption, name, tags or {}, sender)
    start.check()
    if isinstance(start, ResumedRun) and start.is_finished:
        return load_result(start)
    recorded = None if resumption is None else resumption.checkpoint.facts.get("privacy_key")
    prepared = open_key(prepared, recorded)
    start = replace(start, prepared=prepared)
    with ThreadPoolExecutor(1) as background:
        opening = background.submit(start.open_store)
        digesting = background.submit(prepared.digest_data)
        plan, starting = plan_execution(prepared, session), time.perf_counter()
        owner = actors_of or start.name or prepared.experiment.name  # MLflow's id of the run is not known yet
        trainer = None if member is None else member.trainer
        with open_pool(prepared, plan, session, trainer, owner) as pool, CallbackList() as started:
            opened, data_digest = opening.result(), digesting.result()
            start.check_data(data_digest)
            identity = start.open_run(opened)
            tracked = start_tracked_run(
                started, start, identity, plan, data_digest, on_start, is_compared=not with_page
            )
            tracked.start_callbacks(callbacks, started)
            pool.wait_until_ready(first=not ready_first)
            if start.is_new:
                tracked.tracker.log_metrics({START_UP: time.perf_counter() - starting})
            if member is not None:
                member.enter(pool, build_round_plan(prepared, plan), tracked.state)
            reason = None
            for report in train_rounds(prepared, plan, pool, tracked.state):
                reason = started.on_round_end(report)
                yield report
                if reason is not None:
                    break
            places = tuple(pool.list_actors())
            result = tracked.build_result(places, reason)
            _log_end(tracked, result, collect_facts(prepared, plan, places, data_digest), with_page=with_page)
    mark = RunDirectory(result.directory).finished_mark
    with raise_as_run_failed(mark):
        mark.touch()
    return result


def _log_end(tracked: TrackedRun, result: Result, facts: RunFacts, *, with_page: bool) -> None:
    """Logs what a run leaves at its end: the model, its facts, its page, and the note that MLflow shows first."""
    prepared, tracker, files = tracked.start.prepared, tracked.tracker, RunDirectory(result.directory)
    announce("saving the model")
    log_outputs(prepared, tracker, result.directory, result.history, result.model)
    log_optional_file(tracker, facts.write, files.facts)
    if with_page:
        announce("drawing the page")
        log_page(prepared, tracker, result.directory, result.history, facts, result.alerts)
    page = files.report.name if with_page else None
    note = note_run(prepared.experiment, result.history, prepared.primary, facts, page)
    tracker.log_note(note, None if PARENT_TAG in tracked.start.tags else result.directory.name)
    if result.stop is not None:
        result.stop.save(result.directory)
        tracker.log_tags({END_TAG: str(result.stop)})
