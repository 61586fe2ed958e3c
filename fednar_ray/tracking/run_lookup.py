"""Finds the runs that exist: in ``runs/`` of the working directory, and at a storage that an experiment names."""

import difflib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fednar_ray.checkpoint.locations import build_storage_location, open_storage
from fednar_ray.checkpoint.store import CheckpointStore
from fednar_ray.config import Experiment, load
from fednar_ray.core.errors import BadInput, ConfigError, StorageUnavailable
from fednar_ray.tracking.identity import read_identity
from fednar_ray.tracking.run_directory import RUNS, RunDirectory

log = logging.getLogger("fednar_ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRef:
    """A run that can be resumed or inspected: its directory, and where its checkpoints are."""

    name: str  # <experiment>-<id>
    directory: Path  # may be missing, if only the checkpoints are left
    storage: str  # path or URI of the checkpoints

    @property
    def files(self) -> RunDirectory:
        """The names of the files in ``directory``."""
        return RunDirectory(self.directory)

    def open_checkpoints(self) -> CheckpointStore:
        """Opens the store of the run's checkpoints. Reads nothing yet."""
        return CheckpointStore(open_storage(self.storage), 1)


def find_checkpoint_location(experiment: Experiment, directory: Path) -> str:
    """Returns the path or URI of a run's checkpoints.

    That is a folder of the run's name below ``checkpoint.storage``, or the run directory if the setting is null.
    """
    storage = experiment.checkpoint.storage
    if storage is None:
        return str(RunDirectory(directory).checkpoints)
    return build_storage_location(storage, directory.name)


def load_run(directory: Path) -> RunRef:
    """Returns the run of a run directory.

    Raises:
        BadInput: The directory is not a run's, or its experiment cannot be read.
    """
    files = RunDirectory(directory)
    try:
        experiment = load(files.experiment_yaml)
    except ConfigError as error:
        hint = f"; its checkpoints are in {files.checkpoints}, which --resume accepts as well"
        found = hint if os.path.isdir(files.checkpoints) else ""
        raise BadInput(f"{directory} is not a run directory, or is damaged: {error}{found}") from None
    return RunRef(name=directory.name, directory=directory, storage=find_checkpoint_location(experiment, directory))


def list_runs(prefix: str = "") -> Iterator[RunRef]:
    """Yields the runs in ``runs/`` whose names start with ``prefix``, newest first.

    A damaged run is left out, and a warning names it.
    """
    for directory in sorted(_list_run_directories(prefix), key=_get_creation_time, reverse=True):
        try:
            yield load_run(directory)
        except BadInput as problem:
            log.warning("left out: %s", problem)


def list_own_runs(prefix: str = "") -> Iterator[RunRef]:
    """Yields runs as ``list_runs``, without comparisons and without the runs that belong to a comparison or a search.

    These vary settings that their user did not choose, so they never stand for an experiment.
    """
    return (ref for ref in list_runs(prefix) if not _belongs_to_another(ref))


def _belongs_to_another(ref: RunRef) -> bool:
    """Returns whether a run is a comparison, or belongs to a comparison or a search."""
    if ref.files.comparison_yaml.exists():
        return True
    try:
        return read_identity(ref.directory).parent_id is not None
    except BadInput:  # a damaged run.json
        return False


def _list_run_directories(prefix: str = "") -> Iterator[Path]:
    """Yields what looks like a run in ``runs/``: a directory with one of a run's files, or a broken link."""
    try:
        paths = sorted(Path(RUNS).absolute().glob(f"{prefix}*"))
    except OSError as error:
        raise BadInput(f"{RUNS} cannot be listed: {error.strerror}") from None
    for path in paths:
        if _any_exists(*RunDirectory(path).marks) or (path.is_symlink() and not path.exists()):
            yield path


def _any_exists(*paths: Path) -> bool:
    """Returns whether one of the paths exists. A directory that may not be read counts as having them."""
    try:
        return any(path.is_symlink() or path.exists() for path in paths)
    except OSError:
        return True


def _get_creation_time(directory: Path) -> int:
    """Returns when the experiment was written, in nanoseconds; 0 if that is unknown."""
    return get_change_time(RunDirectory(directory).experiment_yaml)


def get_change_time(path: Path) -> int:
    """Returns when a file was written or moved here, in nanoseconds; 0 if that is unknown."""
    try:
        return path.stat().st_ctime_ns
    except OSError:
        return 0


def find_run(run: str) -> RunRef:
    """Returns the run that ``run`` names: by directory, name, id, or the location of its checkpoints.

    Raises:
        BadInput: There is no such run, or it is damaged. Other damaged runs do not matter.
    """
    if "://" in run:
        return _build_run_at_storage(run, run.partition("?")[0].rstrip("/").rpartition("/")[2])
    path = Path(run).absolute()
    directory = path.parent if path == RunDirectory(path.parent).checkpoints else path
    if _any_exists(RunDirectory(directory).experiment_yaml) and (path == directory or _is_loadable(directory)):
        return load_run(directory)
    if _any_exists(*RunDirectory(path).marks) and path == directory:
        return load_run(directory)
    if any(path.glob("round-*.json")):
        return _build_run_at_storage(str(path), directory.name)
    found = [each for each in _list_run_directories() if run == each.name or each.name.rpartition("-")[2] == run[:8]]
    if not found:
        raise BadInput(f"{run}: no such run, run directory or location of checkpoints; {_describe_known(run)}")
    return load_run(max(found, key=_get_creation_time))


def find_run_here(name: str) -> RunRef | None:
    """Finds a run or comparison as ``find_run`` does; None if there is none, or if its directory is elsewhere."""
    try:
        ref = find_run(name)
    except BadInput:
        return None
    return ref if ref.directory.is_dir() else None


def _describe_known(wanted: str) -> str:
    """Describes the runs here: the names that are like the wanted one, or else the newest."""
    names = [ref.name for ref in list_runs()]
    known = list(dict.fromkeys([*names, *map(_parse_experiment_name, names)]))
    if close := difflib.get_close_matches(wanted, known, n=3):
        return f"did you mean {' or '.join(close)}?"
    return f"runs here: {', '.join(names[:10]) or 'none'}"


def find_run_or_newest(run: str) -> RunRef:
    """Returns the run that ``run`` names as in ``find_run``, or the newest run of the experiment of this name.

    The newest run is none that belongs to a comparison or a search: such a run has to be named exactly.

    Raises:
        BadInput: There is no such run, or it is damaged.
    """
    try:
        return find_run(run)
    except BadInput:
        newest = next((ref for ref in list_own_runs(f"{run}-") if _parse_experiment_name(ref.name) == run), None)
        if newest is not None:
            return newest
        others = [ref.name for ref in list_runs(f"{run}-") if _parse_experiment_name(ref.name) == run]
        if others:
            raise BadInput(
                f"{run}: only comparisons and searches have runs of this name; train one with fednar run, or name one "
                f"of theirs exactly: {', '.join(others[:10])}"
            ) from None
        raise


def _is_loadable(directory: Path) -> bool:
    try:
        load_run(directory)
    except BadInput:
        return False
    return True


def _build_run_at_storage(location: str, name: str) -> RunRef:
    """Returns the run whose checkpoints are at ``location``; its directory may be missing or damaged."""
    return RunRef(name=name, directory=Path(RUNS).absolute() / name, storage=location)


def list_runs_of(experiment: Experiment) -> Iterator[RunRef]:
    """Yields the runs of an experiment's name: those in ``runs/``, newest first, then those that only its storage has.

    Raises:
        StorageUnavailable: The experiment's storage cannot be listed.
    """
    seen = set()
    for ref in list_runs(f"{experiment.name}-"):
        if _parse_experiment_name(ref.name) == experiment.name:
            seen.add(ref.name)
            yield ref
    storage = experiment.checkpoint.storage
    if storage is None:
        return
    try:
        names = {path.partition("/")[0] for path in open_storage(storage).list_names(f"{experiment.name}-")}
    except OSError as error:
        raise StorageUnavailable(f"{storage} cannot be listed: {error}") from error
    for name in sorted(name for name in names - seen if _parse_experiment_name(name) == experiment.name):
        yield _build_run_at_storage(build_storage_location(storage, name), name)


def _parse_experiment_name(run: str) -> str:
    """Returns the experiment in <experiment>-<id>: ``digits-big-7f3a09c1`` is not a run of ``digits``."""
    return run.rpartition("-")[0]
