"""The runs that are kept: in ``runs/`` of the working directory, and at a storage that an experiment names."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fednar_ray.checkpoint.manifest import MANIFEST
from fednar_ray.checkpoint.storage import open_storage
from fednar_ray.checkpoint.store import CheckpointStore
from fednar_ray.config import Experiment, load
from fednar_ray.errors import BadInput, ConfigError
from fednar_ray.tracking.journal import EXPERIMENT_FILE, recorded

RUNS = "runs"
CHECKPOINTS = "checkpoints"
FINISHED = "finished"  # an empty file: the run and its last records are complete


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRun:
    """A run that can be gone on with: a directory, or checkpoints alone."""

    name: str  # <experiment>-<id>
    directory: Path  # where its journal is, or will be
    storage: str  # of its checkpoints

    @property
    def finished(self) -> bool:
        """Is nothing left to do?"""
        return (self.directory / FINISHED).exists()

    def checkpoints(self) -> CheckpointStore:
        """Its store, from which nothing is read yet."""
        return CheckpointStore(open_storage(self.storage), 1)


def storage_of(experiment: Experiment, directory: Path) -> str:
    """Where a run's checkpoints lie: within ``checkpoint.storage`` under the run's name, or in its directory."""
    storage = experiment.checkpoint.storage
    return str(directory / CHECKPOINTS) if storage is None else _within(storage, directory.name)


def _within(location: str, name: str) -> str:
    """``name`` below a path, or below a URI, whose query stays at its end."""
    address, question, query = location.partition("?")
    return f"{address.rstrip('/')}/{name}{question}{query}"


def kept_in(directory: Path) -> KeptRun:
    """The run of a run directory. Raises BadInput where it is none."""
    try:
        experiment = load(directory / EXPERIMENT_FILE)
    except ConfigError as error:
        raise BadInput(f"{directory} is not a run directory: {error}") from None
    return KeptRun(name=directory.name, directory=directory, storage=storage_of(experiment, directory))


def kept_runs(prefix: str = "") -> Iterator[KeptRun]:
    """The runs in ``runs/`` whose names begin so, the newest first."""
    directories = [path for path in Path(RUNS).absolute().glob(f"{prefix}*") if (path / EXPERIMENT_FILE).is_file()]
    for directory in sorted(directories, key=lambda path: (path / EXPERIMENT_FILE).stat().st_ctime_ns, reverse=True):
        yield kept_in(directory)


def named(run: str) -> KeptRun:
    """A run by directory, name, id, or the place of its checkpoints. Raises BadInput where there is none."""
    path = Path(run).absolute()
    directory = path.parent if path.name == CHECKPOINTS else path
    if "://" not in run and (directory / EXPERIMENT_FILE).is_file():
        return kept_in(directory)
    if "://" in run or any(path.glob("round-*.json")):
        location = run if "://" in run else str(path)
        name = location.partition("?")[0].rstrip("/").rpartition("/")[2]
        return KeptRun(name=name, directory=Path(RUNS).absolute() / name, storage=location)
    known = list(kept_runs())
    found = [kept for kept in known if kept.name == run or kept.name.rpartition("-")[2] == run[:8]]
    if not found:
        names = ", ".join(kept.name for kept in known[:10]) or "none are kept in this directory"
        raise BadInput(f"{run}: no such run, run directory or place of checkpoints; runs here: {names}")
    return found[0]


def of_experiment(experiment: Experiment) -> Iterator[KeptRun]:
    """The runs of an experiment's name: those of ``runs/``, the newest first, then those at its storage alone."""
    seen = set()
    for kept in kept_runs(f"{experiment.name}-"):
        if _experiment_name(kept.name) == experiment.name:
            seen.add(kept.name)
            yield kept
    storage = experiment.checkpoint.storage
    if storage is None:
        return
    names = {path.partition("/")[0] for path in open_storage(storage).names(f"{experiment.name}-")}
    for name in sorted(name for name in names - seen if _experiment_name(name) == experiment.name):
        yield KeptRun(name=name, directory=Path(RUNS).absolute() / name, storage=_within(storage, name))


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


def summarise(kept: KeptRun) -> RunSummary:
    """What a run has come to; nothing is written, and checkpoints are not verified."""
    records = recorded(kept.directory)
    accuracies = [r.metrics["test_accuracy"] for r in records if "test_accuracy" in r.metrics]
    return RunSummary(
        run=kept.name,
        rounds=len(records),
        of=load(kept.directory / EXPERIMENT_FILE).federation.rounds,
        resumes_from_round=_newest_checkpoint(kept.storage),
        finished=kept.finished,
        test_accuracy=accuracies[-1] if accuracies else None,
    )


def _newest_checkpoint(location: str) -> int | None:
    """Its round."""
    names = open_storage(location).names("round-")
    return max((int(name[len("round-") : -len(".json")]) for name in names if MANIFEST.fullmatch(name)), default=None)
