"""Summarizes runs from their files, for ``fednar runs``."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fednar_ray.algorithms.regularizers import CLIPPING
from fednar_ray.checkpoint.locations import open_storage
from fednar_ray.checkpoint.manifest import parse_manifest_name
from fednar_ray.config import Experiment, load
from fednar_ray.core.errors import BadInput
from fednar_ray.core.metric_names import find_judged
from fednar_ray.core.reports import RoundRecord
from fednar_ray.tracking.identity import read_identity
from fednar_ray.tracking.journal import load_records
from fednar_ray.tracking.locks import is_held
from fednar_ray.tracking.outbox import read_tags
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.run_lookup import RunRef, get_change_time
from fednar_ray.tracking.stop_record import read_stop
from fednar_ray.tracking.tags import END_TAG, PRIMARY_TAG

log = logging.getLogger("fednar_ray")

FINISHED, STOPPED, RUNNING = "finished", "stopped early", "running"
INTERRUPTED, FAILED, UNFINISHED = "interrupted", "failed", "unfinished"
"""The states of runs, comparisons and searches. Unfinished: killed, or running on another machine."""

INTERRUPTIONS = ("KeyboardInterrupt", "Interrupted", "SystemExit", "GeneratorExit")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run of ``fednar runs``."""

    run: str
    label: str  # what tells it apart from other runs of its experiment
    started: str | None  # when, in ISO format and local time; None if that is unknown
    rounds: int  # recorded so far
    of: int  # rounds of the experiment
    status: str
    why: str | None  # why it was stopped, or failed
    resumes_from_round: int | None  # round of the newest checkpoint; None if there is none
    finished: bool
    test_metric: str | None  # its primary metric on the test set, such as test_auc; None if no round was evaluated
    test_value: float | None  # the last one measured
    test_accuracy: float | None  # the same of the accuracy; None in regression
    regularizer: str
    weight_decay: float  # λ_0
    clip_bound: float  # A_0
    seed: int
    parent_id: str | None  # the MLflow run of the comparison or search that it belongs to


def summarize(ref: RunRef) -> RunSummary:
    """Summarizes a run from its files. Writes nothing, and does not verify checkpoints."""
    records, tags = _load_records(ref), read_tags(ref.directory)
    last = {name: value for record in records for name, value in record.metrics.items()}
    metric = f"test_{find_judged(last, tags.get(PRIMARY_TAG))}"
    experiment = load(ref.files.experiment_yaml)
    status, why = _find_status(ref.files, tags.get(END_TAG))
    return RunSummary(
        run=ref.name,
        label=_describe_settings(experiment),
        started=find_start(ref.files),
        rounds=len(records),
        of=experiment.federation.rounds,
        status=status,
        why=why,
        resumes_from_round=find_newest_checkpoint(ref),
        finished=ref.files.finished,
        test_metric=metric if metric in last else None,
        test_value=last.get(metric),
        test_accuracy=last.get("test_accuracy"),
        regularizer=experiment.regularizer.name,
        weight_decay=experiment.regularizer.weight_decay,
        clip_bound=experiment.regularizer.clip_bound,
        seed=experiment.seed,
        parent_id=_read_parent(ref.directory),
    )


def find_start(files: RunDirectory) -> str | None:
    """Returns when a run or a comparison was first started, in ISO format and local time; None if that is unknown.

    Of one that an earlier version started, it is when its experiment was last written, which resuming does, too.
    """
    with suppress(BadInput):
        started = read_identity(files.path).started
        if started is not None:
            return datetime.fromisoformat(started).astimezone().replace(tzinfo=None).isoformat()
    return format_time(files.experiment_yaml)


def format_time(path: Path) -> str | None:
    """Returns when a file was written, in ISO format and local time; None if that is unknown."""
    nanoseconds = get_change_time(path)
    return datetime.fromtimestamp(nanoseconds // 10**9).isoformat() if nanoseconds else None


def _describe_settings(experiment: Experiment) -> str:
    """Describes what tells the runs of an experiment apart. A regularizer that does not clip has no A."""
    regularizer = experiment.regularizer
    parts: list[str] = [regularizer.name]
    if regularizer.name != "none":
        parts.append(f"λ={regularizer.weight_decay:.4g}")
    if regularizer.name in CLIPPING:
        parts.append(f"A={regularizer.clip_bound:.4g}")
    return " ".join([*parts, f"seed={experiment.seed}"])


def _find_status(files: RunDirectory, end: str | None) -> tuple[str, str | None]:
    """Finds the state of a run, and why it ended. ``end`` is the error of the last process that trained it."""
    stop = read_stop(files.path)
    if files.finished:
        return (FINISHED, None) if stop is None else (STOPPED, stop.reason)
    if is_held(files.lock):
        return RUNNING, None
    if end is None:
        return UNFINISHED, None
    kind, _, reason = end.partition(": ")
    return (INTERRUPTED, None) if kind in INTERRUPTIONS else (FAILED, reason or kind)


def _read_parent(directory: Path) -> str | None:
    try:
        return read_identity(directory).parent_id
    except BadInput:  # a damaged run.json
        return None


def _load_records(ref: RunRef) -> tuple[RoundRecord, ...]:
    try:
        return load_records(ref.directory)
    except OSError as error:
        log.warning("the rounds of %s cannot be read: %s", ref.directory, error.strerror)
        return ()


def find_newest_checkpoint(ref: RunRef) -> int | None:
    """Returns the round of the newest checkpoint; None if there is none, or the storage cannot be listed."""
    try:
        names = open_storage(ref.storage).list_names("round-")
    except (BadInput, OSError) as error:
        log.warning("the checkpoints of %s cannot be listed: %s", ref.name, error)
        return None
    return max((index for name in names if (index := parse_manifest_name(name)) is not None), default=None)
