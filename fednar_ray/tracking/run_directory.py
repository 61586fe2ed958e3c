"""The runs that are kept: in ``runs/`` of the working directory, and at a storage that an experiment names."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fednar_ray.checkpoint.manifest import MANIFEST
from fednar_ray.checkpoint.storage import open_storage
from fednar_ray.checkpoint.store import CheckpointStore
from fednar_ray.config import Experiment, load
from fednar_ray.core.errors import BadInput, ConfigError, StorageUnavailable
from fednar_ray.core.reports import RoundRecord
from fednar_ray.tracking.identity import RUN_FILE
from fednar_ray.tracking.journal import EXPERIMENT_FILE, ROUNDS_FILE, recorded

log = logging.getLogger("fednar_ray")

RUNS = "runs"
CHECKPOINTS = "checkpoints"
COMPARISON_FILE = "comparison.yaml"  # beside the files of a run, in the directory of a comparison
SIGNS = (EXPERIMENT_FILE, ROUNDS_FILE, RUN_FILE, CHECKPOINTS)  # of a run directory
FINISHED = "finished"  # an empty file: the run and its last records are complete


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRef:
    """A run that can be gone on with: a directory, or checkpoints alone."""

    name: str  # <experiment>-<id>
    directory: Path  # where its journal is, or will be
    storage: str  # of its checkpoints

    @property
    def finished(self) -> bool:
        """Is nothing left to do?"""
        return os.path.exists(self.directory / FINISHED)

    def checkpoints(self) -> CheckpointStore:
        """Its store, from which nothing is read yet."""
        return CheckpointStore(open_storage(self.storage), 1)


def storage_of(experiment: Experiment, directory: Path) -> str:
    """Where a run's checkpoints lie: within ``checkpoint.storage`` under the run's name, or in its directory."""
    storage = experiment.checkpoint.storage
    return str(directory / CHECKPOINTS) if storage is None else _within(storage, directory.name)


def _within(location: str, name: str) -> str:
    """``name`` below a path, or below a URI, whose query stays at its end."""
    if "://" not in location:
        return os.path.join(location, name)
    address, question, query = location.partition("?")
    return f"{address.rstrip('/')}/{name}{question}{query}"


def kept_in(directory: Path) -> RunRef:
    """The run of a run directory. Raises BadInput where it is none, or is damaged."""
    try:
        experiment = load(directory / EXPERIMENT_FILE)
    except ConfigError as error:
        checkpoints = os.path.join(directory, CHECKPOINTS)
        hint = f"; its checkpoints are in {checkpoints}, and --resume takes that place"
        found = hint if os.path.isdir(checkpoints) else ""
        raise BadInput(f"{directory} is not a run directory, or is damaged: {error}{found}") from None
    return RunRef(name=directory.name, directory=directory, storage=storage_of(experiment, directory))


def kept_runs(prefix: str = "") -> Iterator[RunRef]:
    """The runs in ``runs/`` whose names begin so, the newest first; damaged ones are warned about and left out."""
    for directory in sorted(_run_directories(prefix), key=_changed, reverse=True):
        try:
            yield kept_in(directory)
        except BadInput as problem:
            log.warning("left out: %s", problem)


def _run_directories(prefix: str = "") -> Iterator[Path]:
    """What lies in ``runs/`` and looks like a run: a directory with one of a run's files, or a link to nothing."""
    try:
        paths = sorted(Path(RUNS).absolute().glob(f"{prefix}*"))
    except OSError as error:
        raise BadInput(f"{RUNS} cannot be listed: {error.strerror}") from None
    for path in paths:
        if _there(path, *SIGNS) or (path.is_symlink() and not path.exists()):
            yield path


def _there(directory: Path, *names: str) -> bool:
    """Whether a directory has an entry of one of these names; one that cannot be looked into passes for it."""
    try:
        return any((directory / name).is_symlink() or (directory / name).exists() for name in names)
    except OSError:
        return True


def _changed(directory: Path) -> int:
    """When the experiment was written; 0 where it cannot be told."""
    try:
        return (directory / EXPERIMENT_FILE).stat().st_ctime_ns
    except OSError:
        return 0


def named(run: str) -> RunRef:
    """A run by directory, name, id, or the place of its checkpoints.

    Raises BadInput where there is none, or that one is damaged; what else is kept does not matter.
    """
    if "://" in run:
        return _at_storage(run, run.partition("?")[0].rstrip("/").rpartition("/")[2])
    path = Path(run).absolute()
    directory = path.parent if path.name == CHECKPOINTS else path
    if _there(directory, EXPERIMENT_FILE) and (path == directory or _is_whole(directory)):
        return kept_in(directory)
    if _there(path, *SIGNS) and path == directory:
        return kept_in(directory)
    if any(path.glob("round-*.json")):
        return _at_storage(str(path), directory.name)
    found = [each for each in _run_directories() if run == each.name or each.name.rpartition("-")[2] == run[:8]]
    if not found:
        names = ", ".join(kept.name for kept in list(kept_runs())[:10]) or "none are kept in this directory"
        raise BadInput(f"{run}: no such run, run directory or place of checkpoints; runs here: {names}")
    return kept_in(max(found, key=_changed))


def _is_whole(directory: Path) -> bool:
    try:
        kept_in(directory)
    except BadInput:
        return False
    return True


def _at_storage(location: str, name: str) -> RunRef:
    """The run whose checkpoints lie at ``location``, and whose directory may be gone or damaged."""
    return RunRef(name=name, directory=Path(RUNS).absolute() / name, storage=location)


def of_experiment(experiment: Experiment) -> Iterator[RunRef]:
    """The runs of an experiment's name: those of ``runs/``, the newest first, then those at its storage alone."""
    seen = set()
    for kept in kept_runs(f"{experiment.name}-"):
        if _experiment_name(kept.name) == experiment.name:
            seen.add(kept.name)
            yield kept
    storage = experiment.checkpoint.storage
    if storage is None:
        return
    try:
        names = {path.partition("/")[0] for path in open_storage(storage).names(f"{experiment.name}-")}
    except OSError as error:
        raise StorageUnavailable(f"{storage} cannot be listed: {error}") from error
    for name in sorted(name for name in names - seen if _experiment_name(name) == experiment.name):
        yield RunRef(name=name, directory=Path(RUNS).absolute() / name, storage=_within(storage, name))


def _experiment_name(run: str) -> str:
    """Of <experiment>-<id>; ``digits-big-7f3a09c1`` is no run of ``digits``."""
    return run.rpartition("-")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run in a line of a table."""

    run: str
    rounds: int  # recorded
    of: int
    resumes_from_round: int | None  # the newest checkpoint's; None: there is none
    finished: bool
    test_accuracy: float | None  # the last that was measured


def summarize(kept: RunRef) -> RunSummary:
    """What a run has come to; nothing is written, and checkpoints are not verified."""
    records = _records(kept)
    accuracies = [r.metrics["test_accuracy"] for r in records if "test_accuracy" in r.metrics]
    return RunSummary(
        run=kept.name,
        rounds=len(records),
        of=load(kept.directory / EXPERIMENT_FILE).federation.rounds,
        resumes_from_round=_newest_checkpoint(kept),
        finished=kept.finished,
        test_accuracy=accuracies[-1] if accuracies else None,
    )


def _records(kept: RunRef) -> tuple[RoundRecord, ...]:
    try:
        return recorded(kept.directory)
    except OSError as error:
        log.warning("the rounds of %s cannot be read: %s", kept.directory, error.strerror)
        return ()


def _newest_checkpoint(kept: RunRef) -> int | None:
    """The round of the newest checkpoint; None where there is none, or it cannot be told."""
    try:
        names = open_storage(kept.storage).names("round-")
    except (BadInput, OSError) as error:
        log.warning("the checkpoints of %s cannot be listed: %s", kept.name, error)
        return None
    return max((int(name[len("round-") : -len(".json")]) for name in names if MANIFEST.fullmatch(name)), default=None)
